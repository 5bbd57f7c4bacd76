"""What an answer must be, in the words of every server that clients know, over HTTP on one node."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from test.support.http import assert_error, call, stream_json
from test.support.nodes import NodeProcess, ring

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO: list[Any] = [{"role": "user", "content": "hello"}]
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
ANSWERS = ('{"a":1}', '{"a":2}')
GBNF = 'root ::= "ye" [s] | no\nno ::= "no"  # or not'
LARK = 'start: "yes" | NO\nNO: /no/'
JSON_CONSTRAINTS: dict[str, dict[str, Any]] = {
    "OpenAI": {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
    "json_object with a schema": {"response_format": {"type": "json_object", "schema": SCHEMA}},
    "json_schema with it beside": {"response_format": {"type": "json_schema", "schema": SCHEMA}},
    "TGI": {"response_format": {"type": "json", "value": SCHEMA}},
    "json_schema": {"json_schema": SCHEMA},
    "guided_json": {"guided_json": SCHEMA},
    "guided_json as text": {"guided_json": json.dumps(SCHEMA)},
    "structured_outputs": {"structured_outputs": {"json": SCHEMA}},
}  # yapf: disable
WORD_CONSTRAINTS: dict[str, dict[str, Any]] = {
    "GBNF": {"grammar": GBNF}, "Lark": {"grammar": LARK}, "guided_regex": {"guided_regex": "^(yes|no)$"},
    "guided_choice": {"guided_choice": ["yes", "no"]}, "guided_grammar": {"guided_grammar": LARK},
    "structured_outputs.regex": {"structured_outputs": {"regex": "yes|no"}},
    "structured_outputs.choice": {"structured_outputs": {"choice": ["yes", "no"]}},
    "structured_outputs.grammar": {"structured_outputs": {"grammar": GBNF}},
    "a format of type grammar": {"response_format": {"type": "grammar", "grammar": GBNF}},
    "a format of type regex": {"response_format": {"type": "regex", "pattern": "yes|no"}},
    "regex": {"regex": "yes|no"}, "ebnf": {"ebnf": GBNF},
}  # yapf: disable
FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}}


def tool(name: str = "f", **fields: Any) -> dict[str, Any]:
  return {"type": "function", "function": {"name": name} | fields}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
  home = tmp_path_factory.mktemp("constraints")
  with ring(home, 1, "--inference-engine", "dummy", "--default-model", "dummy") as started:
    yield started[0]


def sent(node: NodeProcess, body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
  return call(node, "POST", CHAT, json.dumps(body).encode(), {"Content-Type": "application/json"})


def content(node: NodeProcess, **fields: Any) -> str:
  status, answer = node.post(CHAT, {"messages": HELLO, "max_tokens": 60} | fields)
  assert status == 200, answer
  return str(answer["choices"][0]["message"]["content"])


def text(node: NodeProcess, **fields: Any) -> str:
  status, answer = node.post(TEXT, {"prompt": "hello", "max_tokens": 60} | fields)
  assert status == 200, answer
  return str(answer["choices"][0]["text"])


def squeezed(answer: str) -> str:
  return json.dumps(json.loads(answer), separators=(",", ":"))


@pytest.mark.parametrize("name", JSON_CONSTRAINTS)
def test_21_line_5_requirement_41_json_in_every_dialect(node: NodeProcess, name: str) -> None:
  assert squeezed(content(node, **JSON_CONSTRAINTS[name])) in ANSWERS
  assert squeezed(text(node, **JSON_CONSTRAINTS[name])) in ANSWERS


@pytest.mark.parametrize("name", WORD_CONSTRAINTS)
def test_21_line_5_requirement_41_words_in_every_dialect(node: NodeProcess, name: str) -> None:
  assert content(node, **WORD_CONSTRAINTS[name]) in ("yes", "no")
  assert text(node, **WORD_CONSTRAINTS[name]) in ("yes", "no")


def test_21_line_5_letters_beyond_ascii_and_slashes(node: NodeProcess) -> None:
  assert content(node, guided_choice=['é/"水\n']) == 'é/"水\n'
  assert content(node, guided_regex="/a/é\n") == "/a/é\n"


def test_21_line_5_requirement_41_json_object_and_free_text(node: NodeProcess) -> None:
  assert isinstance(json.loads(content(node, structured_outputs={"json_object": True})), dict)
  content(node, structured_outputs={"json_object": False}, response_format={"type": "text"})


def test_21_line_5_a_grammar_beside_tools(node: NodeProcess) -> None:
  for form in ({"grammar": LARK}, {"guided_choice": ["yes", "no"]}):
    status, answer = node.post(CHAT, {"messages": HELLO, "max_tokens": 80, "tools": [tool(**FUNCTION)]} | form)
    assert status == 200, answer
    message = answer["choices"][0]["message"]
    assert message.get("tool_calls") or message["content"] in ("yes", "no")


def test_21_line_5_two_constraints_are_refused_by_name(node: NodeProcess) -> None:
  fields = {"grammar": LARK, "response_format": {"type": "json_object"}}
  for route, body in ((CHAT, {"messages": HELLO}), (TEXT, {"prompt": "a"})):
    error = assert_error(*node.post(route, body | fields), 400)
    assert error["param"] == "grammar" and "response_format and grammar" in error["message"]
    two = {"structured_outputs": {"regex": "a", "choice": ["a"]}}
    assert "structured_outputs.regex and structured_outputs.choice" in assert_error(*node.post(route, body | two),
                                                                                    400)["message"]


@pytest.mark.parametrize("fields", [
    {"grammar": "root ::= ("}, {"grammar": "start: foo"}, {"guided_regex": "(?=a)"}, {"guided_regex": "("},
    {"guided_json": {"type": "string", "not": {}}}, {"guided_json": "{"}, {"guided_choice": []},
    {"structured_outputs": {"structural_tag": "{}"}}, {"response_format": {"type": "structural_tag"}},
    {"response_format": {"type": "regex"}}, {"response_format": {"type": "json_schema"}},
    {"json_schema": {"$ref": "#/$defs/a"}}
], ids=str)  # yapf: disable
def test_21_line_5_what_cannot_be_followed_is_refused_by_name(node: NodeProcess, fields: dict[str, Any]) -> None:
  for route, body in ((CHAT, {"messages": HELLO}), (TEXT, {"prompt": "a"})):
    if fields == {"guided_json": {"type": "string", "not": {}}}:
      fields = {"guided_json": {"type": "string", "not": {"const": "a"}}}
    error = assert_error(*node.post(route, body | fields), 400)
    assert error["param"] == next(iter(fields)), error


@pytest.mark.parametrize("fields", [
    {"audio": {"voice": "a"}}, {"modalities": ["text", "audio"]}, {"web_search_options": {"a": 1}}, {"best_of": 3},
    {"use_beam_search": True}, {"length_penalty": 2.0}, {"bad_words": ["a"]}, {"allowed_token_ids": [1]},
    {"min_tokens": 3}, {"logits_processors": ["a"]}, {"prompt_logprobs": 1}, {"tfs_z": 0.5}, {"negative_prompt": "x"},
    {"skip_special_tokens": False}, {"chat_template": "{{ messages }}"}, {"banned_strings": ["a"]}, {"top_n_sigma": 1}
], ids=str)  # yapf: disable
def test_21_line_5_requirement_12_what_is_not_done_is_named(node: NodeProcess, fields: dict[str, Any]) -> None:
  for route, body in ((CHAT, {"messages": HELLO}), (TEXT, {"prompt": "a"})):
    error = assert_error(*node.post(route, body | fields), 400)
    assert error["param"] == next(iter(fields)) and "not done here" in error["message"]


def test_21_line_5_requirement_12_what_says_nothing_is_passed_over(node: NodeProcess) -> None:
  content(
      node, audio=None, modalities=["text"], best_of=1, use_beam_search=False, length_penalty=1.0, bad_words=[],
      min_tokens=0, prediction={"type": "content", "content": "a"}, guided_decoding_backend="xgrammar", zzz={"a": [1]}
  )  # yapf: disable


def test_21_line_5_functions_are_called_as_before_there_were_tools(node: NodeProcess) -> None:
  body = {"messages": HELLO, "max_tokens": 100, "functions": [FUNCTION], "function_call": {"name": "f"}}
  status, answer = node.post(CHAT, body)
  assert status == 200, answer
  choice = answer["choices"][0]
  assert choice["finish_reason"] == "function_call" and "tool_calls" not in choice["message"]
  called = choice["message"]["function_call"]
  assert called["name"] == "f" and json.loads(called["arguments"]) == {"a": 1}
  chunks = stream_json(node, CHAT, body | {"stream": True})
  deltas = [chunk["choices"][0]["delta"].get("function_call") for chunk in chunks if chunk["choices"]]
  deltas = [delta for delta in deltas if delta]
  assert deltas[0] == {"name": "f", "arguments": ""}
  assert json.loads("".join(delta["arguments"] for delta in deltas)) == {"a": 1}
  assert chunks[-1]["choices"][0]["finish_reason"] == "function_call"
  history = [*HELLO, choice["message"], {"role": "function", "name": "f", "content": "3"}]
  status, answer = node.post(CHAT, body | {"messages": history, "function_call": "none"})
  assert status == 200 and "function_call" not in answer["choices"][0]["message"], answer


def test_21_line_5_functions_and_tools_are_one_too_many(node: NodeProcess) -> None:
  body = {"messages": HELLO, "functions": [FUNCTION]}
  assert assert_error(*node.post(CHAT, body | {"tools": [tool()]}), 400)["param"] == "functions"
  assert assert_error(*node.post(CHAT, {"messages": HELLO, "function_call": {"name": "f"}}),
                      400)["param"] == "function_call"
  assert assert_error(*node.post(CHAT, body | {"function_call": {"name": "g"}}), 400)["param"]


def test_21_line_5_requirement_41_the_formats_of_messages_and_ollama(node: NodeProcess) -> None:
  body = {"messages": HELLO, "max_tokens": 60, "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}
  status, answer = node.post("/v1/messages", body)
  assert status == 200, answer
  assert squeezed(answer["content"][0]["text"]) in ANSWERS
  status, answer = node.post("/api/chat", {"messages": HELLO, "stream": False, "format": SCHEMA})
  assert status == 200, answer
  assert squeezed(answer["message"]["content"]) in ANSWERS


BAD = {
    "type": "object", "properties": {
        "mail": {"type": "string", "pattern": r"^(?!\.)[a-z]+$"}, "n": {"type": "array", "uniqueItems": True}
    }
}


def test_21_line_4_a_tool_is_relaxed_and_it_is_told(node: NodeProcess) -> None:
  body = {"messages": HELLO, "max_tokens": 4, "tools": [tool(), tool("g", parameters=BAD)]}
  for choice in ("auto", "required"):
    status, headers, _ = sent(node, body | {"tool_choice": choice})
    assert status == 200
    assert headers["x-exo-relaxed"] == "tools.g.mail pattern, tools.g.n uniqueItems"
  status, headers, _ = sent(node, body | {"tools": [tool()]})
  assert status == 200 and "x-exo-relaxed" not in headers


def test_21_line_4_a_tool_without_parameters_takes_none(node: NodeProcess) -> None:
  body = {
      "messages": HELLO, "max_tokens": 60, "tools": [tool()], "tool_choice": "required", "parallel_tool_calls": False
  }
  status, answer = node.post(CHAT, body)
  assert status == 200, answer
  assert json.loads(answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]) == {}


def test_21_line_4_a_tool_that_nothing_can_be_made_of_is_given_up_alone(node: NodeProcess) -> None:
  impossible = {
      "type": "object", "properties": {"a": {"type": "string", "minLength": 3, "maxLength": 1}}, "required": ["a"]
  }
  body = {"messages": HELLO, "max_tokens": 60, "tools": [tool(**FUNCTION), tool("g", parameters=impossible)]}
  status, headers, _ = sent(node, body | {"tool_choice": "required"})
  assert status == 200 and headers["x-exo-relaxed"] == "tools.g parameters"
  strict = tool("g", parameters=impossible, strict=True)
  error = assert_error(*node.post(CHAT, body | {"tools": [strict], "tool_choice": "required"}), 400)
  assert error["param"] == "tools" and "strict" in error["message"]
  assert node.post(CHAT, body | {"tools": [strict]})[0] == 200


def test_21_line_4_a_format_is_refused_in_words_unless_it_need_not_be_strict(node: NodeProcess) -> None:
  form: dict[str, Any] = {"name": "a", "schema": BAD}
  body = {"messages": HELLO, "max_tokens": 40}
  error = assert_error(*node.post(CHAT, body | {"response_format": {"type": "json_schema", "json_schema": form}}), 400)
  assert error["param"] == "response_format"
  assert "response_format.mail" in error["message"] and "`pattern`" in error["message"] and "strict: false" in error[
      "message"]
  relaxed = {"response_format": {"type": "json_schema", "json_schema": form | {"strict": False}}}
  status, headers, _ = sent(node, body | relaxed)
  assert status == 200
  assert headers["x-exo-relaxed"] == "response_format.mail pattern, response_format.n uniqueItems"
