"""Issue 21, line 2: what Claude Code and its like send to `/v1/messages`, and what they go by in the answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exo.errors import ConfigError, InvalidRequestError
from exo.model_aliases import ModelAliases, parse_alias
from test.support.http import call, stream_data
from test.support.nodes import NodeProcess
from test.test_security_http import JSON

MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
  home = tmp_path_factory.mktemp("agents")
  (home / ".exo").mkdir()
  (home / ".exo" / "aliases").write_text("# by hand\nof-the-file=dummy\nnonsense\nelsewhere=nosuch\n")
  flags = ("--inference-engine", "dummy", "--default-model", "dummy", "--discovery-module", "none")
  started = NodeProcess(
      home, *flags, "--model-alias", "claude-*=dummy", "--model-alias", "claude-none=nosuch", node_id="agents"
  )
  yield started.wait_ready()
  started.stop()


def body(content: Any = "hello", **fields: Any) -> dict[str, Any]:
  messages = content if isinstance(content, list) and content and "role" in content[0] else [{
      "role": "user", "content": content
  }]
  return {"model": "dummy", "max_tokens": 5, "messages": messages} | fields


def prompt_of(node: NodeProcess, request: dict[str, Any]) -> int:
  """How many tokens, which the dummy model's characters are, its prompt has; both ways to count are one."""
  status, counted = node.post(COUNT, {key: value for key, value in request.items() if key != "max_tokens"})
  assert status == 200, counted
  status, answer = node.post(MESSAGES, request)
  assert status == 200, answer
  usage = answer["usage"]
  assert usage["input_tokens"] + usage["cache_read_input_tokens"] == counted["input_tokens"]
  return int(counted["input_tokens"])


@pytest.mark.parametrize("stream", [False, True])
def test_21_line_2_requirement_42_overflow_is_told_in_words_that_agents_know(node: NodeProcess, stream: bool) -> None:
  status, answer = node.post(MESSAGES, body("x" * 9000, stream=stream))
  assert status == 400 and answer["type"] == "error" and answer["error"]["type"] == "invalid_request_error"
  assert answer["error"]["message"] == f"prompt is too long: {9000 + len('user: ' + chr(10))} tokens > 8192 maximum"


def test_21_line_2_requirement_42_errors_have_anthropics_types(node: NodeProcess) -> None:
  for request, status, kind in (
      (body(model="nosuch"), 404, "not_found_error"), (body(max_tokens=0), 400, "invalid_request_error"),
      ({"model": "dummy", "messages": []}, 400, "invalid_request_error")
  ):  # yapf: disable
    found, answer = node.post(MESSAGES, request)
    assert (found, answer["type"], answer["error"]["type"]) == (status, "error", kind)
    assert answer["error"]["message"]


def test_21_line_2_documents_and_search_results_are_read(node: NodeProcess) -> None:
  plain = prompt_of(node, body("What?"))
  text = {
      "type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Grass is green."},
      "title": "G"
  }
  blocks = {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "Grass is green."}]}}
  found = {
      "type": "search_result", "source": "https://a.example", "title": "A",
      "content": [{"type": "text", "text": "Sky."}]
  }
  question = {"type": "text", "text": "What?"}
  for block, least in ((text, "Grass is green."), (blocks, "Grass is green."), (found, "https://a.example Sky.")):
    assert prompt_of(node, body([block, question])) >= plain + len(least)
  result = {"type": "tool_result", "tool_use_id": "t", "content": [found, text]}
  used = {"type": "tool_use", "id": "t", "name": "look", "input": {"q": 1}}
  turns = [*HELLO, {"role": "assistant", "content": [used]}, {"role": "user", "content": [result]}]
  assert prompt_of(node, body(turns)) > prompt_of(node, body(turns[:2])) + len("Grass is green. Sky.")
  for unread in ({"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBE"}},
                 {"type": "document", "source": {"type": "url", "url": "https://a.example"}}, {"type": "image", "source": {}},
                 {"type": "document"}, {"type": "search_result", "content": [{"text": "no type"}]}):  # yapf: disable
    status, answer = node.post(MESSAGES, body([unread, question]))
    assert status == 400 and "messages" in answer["error"]["message"], answer


def test_21_line_2_what_a_hosted_service_did_is_passed_over(node: NodeProcess) -> None:
  used = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "x"}}
  result = {
      "type": "web_search_tool_result", "tool_use_id": "s", "content": [{"type": "web_search_result", "url": "u"}]
  }
  failed = {"type": "web_search_tool_result", "tool_use_id": "s", "content": {"type": "web_search_tool_result_error"}}
  said = {"type": "text", "text": "so"}
  turns = [*HELLO, {"role": "assistant", "content": [used, result, failed, said]}, {"role": "user", "content": "and?"}]
  short = [*HELLO, {"role": "assistant", "content": [said]}, {"role": "user", "content": "and?"}]
  assert prompt_of(node, body(turns)) == prompt_of(node, body(short))


def test_21_line_2_many_stops_and_long_names(node: NodeProcess) -> None:
  tool = {"name": "mcp__" + "x" * 123, "input_schema": {"type": "object", "properties": {"q": {"type": "integer"}}}}
  status, answer = node.post(
      MESSAGES, body(tools=[tool], tool_choice={"type": "tool", "name": tool["name"]}, max_tokens=400)
  )
  assert status == 200 and answer["content"][-1]["name"] == tool["name"], answer
  full = node.post(MESSAGES, body(max_tokens=40))[1]["content"][0]["text"]
  answer = node.post(
      MESSAGES, body(max_tokens=40, stop_sequences=[f"never {i}" for i in range(62)] + ["", full[8:11]])
  )[1]
  assert answer["stop_sequence"] == full[8:11] and answer["content"][0]["text"] == full[:full.index(full[8:11])]
  assert node.post(MESSAGES, body(stop_sequences=["x"] * 65))[0] == 400
  assert node.post(MESSAGES, body(tools=[tool | {"name": "x" * 129}]))[0] == 400


def test_21_line_2_tools_of_anthropics_own_kinds(node: NodeProcess) -> None:
  """What the client runs is described here, what a service runs is left out; neither is a reason to refuse."""
  shell = {"type": "bash_20250124", "name": "bash"}
  edit = {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool"}
  hosted = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}
  none = prompt_of(node, body())
  assert prompt_of(node, body(tools=[hosted])) == none
  assert prompt_of(node, body(tools=[shell, edit, hosted])) == prompt_of(node, body(tools=[shell, edit])) > none
  status, headers, _ = call(node, "POST", MESSAGES, json.dumps(body(tools=[shell, hosted])).encode(), JSON)
  assert status == 200 and headers["x-exo-ignored-tools"] == "web_search_20250305"
  choice = {"type": "tool", "name": "bash"}
  answer = node.post(MESSAGES, body(tools=[shell, edit], tool_choice=choice, max_tokens=400))[1]
  assert answer["content"][-1]["name"] == "bash" and set(answer["content"][-1]["input"]) <= {"command", "restart"}


def test_21_line_2_an_answer_goes_on_with_what_the_assistant_said(node: NodeProcess) -> None:
  """The dummy model's answer follows from its prompt: one that ends in the beginning of its answer goes on as that did."""
  whole = node.post(MESSAGES, body(max_tokens=20))[1]["content"][0]["text"]
  begun = [*HELLO, {"role": "assistant", "content": whole[:8]}]
  assert prompt_of(node, body(begun)) == prompt_of(node, body()) + 8
  assert node.post(MESSAGES, body(begun, max_tokens=12))[1]["content"][0]["text"] == whole[8:]
  blocks = [*HELLO, {"role": "assistant", "content": [{"type": "text", "text": whole[:8]}]}]
  events = [json.loads(data) for data in stream_data(node, MESSAGES, body(blocks, max_tokens=12, stream=True))]
  assert "".join(e["delta"].get("text", "") for e in events if e["type"] == "content_block_delta") == whole[8:]
  chat = {"model": "dummy", "messages": begun, "max_tokens": 12}
  asked = node.post("/v1/chat/completions", chat | {"continue_final_message": True})[1]
  assert asked["choices"][0]["message"]["content"] == whole[8:]
  assert node.post("/v1/chat/completions", chat)[1]["choices"][0]["message"]["content"] != whole[8:]
  for wrong in (HELLO, begun[1:]):
    assert node.post("/v1/chat/completions", chat | {"messages": wrong, "continue_final_message": True})[0] == 400


def test_21_line_2_prefilled_answers_of_a_real_model(real: NodeProcess) -> None:
  question = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
  begun = [*question, {"role": "assistant", "content": "The capital of France is"}]
  tool = {"name": "look", "input_schema": {"type": "object"}}
  for more in ({}, {"tools": [tool]}):
    request = {"model": "smollm2-135m", "max_tokens": 3, "messages": begun, "temperature": 0} | more
    answer = real.post(MESSAGES, request)[1]["content"][0]["text"]
    assert answer.startswith(" Paris"), answer


@pytest.fixture(scope="module")
def real(model_home: Path) -> Iterator[NodeProcess]:
  started = NodeProcess(model_home, "--discovery-module", "none", node_id="real")
  yield started.wait_ready()
  started.stop()


def test_21_line_2_thinking_is_asked_of_the_template(node: NodeProcess) -> None:
  for thinking in ({"type": "enabled", "budget_tokens": 1024}, {"type": "disabled"}, {"type": "adaptive"}):
    assert node.post(MESSAGES, body(thinking=thinking))[0] == 200
  assert node.post(MESSAGES, body(thinking={"type": "perhaps"}))[0] == 400


def test_21_line_2_names_of_other_services_are_aliases(node: NodeProcess) -> None:
  for name in ("claude-sonnet-4-5-20250929", "claude-", "of-the-file"):
    assert node.post(MESSAGES, body(model=name))[1]["model"] == "dummy"
    assert node.post("/v1/chat/completions", body(model=name))[1]["model"] == "dummy"
    assert node.get(f"/v1/models/{name}")[0] == 200
  for name in ("claude-none", "elsewhere", "xclaude-3", "nonsense"):
    assert node.post(MESSAGES, body(model=name))[0] == 404


def test_21_line_2_aliases_are_kept_and_read(tmp_path: Path) -> None:
  file = tmp_path / "aliases"
  aliases = ModelAliases(("a=b", "c*=d"), file)
  assert [aliases.target(name) for name in ("a", "c", "cd", "x", "*", "[")] == ["b", "d", "d", None, None, None]
  aliases.add("x", "y")
  aliases.add("x", "z")
  assert aliases.target("x") == "z" and file.read_text() == "x=z\n" and file.stat().st_mode & 0o777 == 0o600
  assert ModelAliases((), file).listed() == {"x": "z"}
  assert aliases.listed() == {"a": "b", "x": "z"}
  assert aliases.remove("x") and not aliases.remove("x") and aliases.target("x") is None
  for name, target in (("a", "b"), ("with space", "b"), ("c*", "b"), ("n", "with space"), ("", "b"), ("n=m", "b")):
    with pytest.raises(InvalidRequestError):
      aliases.add(name, target)
  for text in ("a", "=b", "a=", "*=b", "a=b*", "a b=c", "a=b=c"):
    with pytest.raises(ConfigError, match="--model-alias"):
      parse_alias(text)
  assert json.dumps(aliases.listed()) == '{"a": "b"}'
