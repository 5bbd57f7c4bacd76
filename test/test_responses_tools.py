"""Tools and items of the Responses API as agents send them: what the model sees of them, and how its calls come back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import msgspec
import pytest
from openai import OpenAI

from exo.api.chat_parts import CallArguments, CallBegin
from exo.api.response_builder import ItemIds, ResponseBuilder
from exo.api.response_items import messages_of, tools_in
from exo.api.response_tools import ResponseTool, ToolSet
from exo.api.string_field import StringField
from exo.errors import InvalidRequestError
from test.support.http import assert_error, call
from test.support.nodes import NodeProcess

GRAMMAR = 'start: "*** Begin Patch" LF'
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "name": "shell", "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}},
    {"type": "custom", "name": "apply_patch", "description": "Edits files.",
     "format": {"type": "grammar", "syntax": "lark", "definition": GRAMMAR}},
    {"type": "namespace", "name": "mcp__files", "description": "Files of the user.", "tools": [
        {"type": "function", "name": "read", "parameters": {"type": "object", "properties": {}}},
        {"type": "custom", "name": "note"}, {"type": "file_search"}]},
    {"type": "namespace", "name": "web", "tools": [{"type": "function", "name": "read"}]},
    {"type": "local_shell"},
    {"type": "web_search", "external_web_access": False}, {"type": "web_search_preview"}, {"type": "image_generation"},
    {"type": "mcp", "server_label": "x", "server_url": "https://example.org"},
    {"type": "code_interpreter", "container": {"type": "auto"}}, {"type": "file_search", "vector_store_ids": ["a"]},
    {"type": "computer_use_preview", "environment": "linux", "display_width": 1, "display_height": 1},
    {"type": "shell", "environment": {"type": "container_auto"}},
]  # yapf: disable
HOSTED = [
    "file_search", "web_search", "web_search_preview", "image_generation", "mcp", "code_interpreter",
    "computer_use_preview", "shell"
]


@pytest.fixture(scope="module")
def node(dummy_ring: list[NodeProcess]) -> NodeProcess:
  return dummy_ring[0]


@pytest.fixture(scope="module")
def client(node: NodeProcess) -> Iterator[OpenAI]:
  with OpenAI(base_url=f"{node.url}/v1", api_key="any", max_retries=0, timeout=60) as made:
    yield made


def tool_set(*tools: dict[str, Any]) -> ToolSet:
  return ToolSet(msgspec.convert(list(tools), list[ResponseTool]))


def events_of(tools: ToolSet, name: str, arguments: str, piece: int = 3, cut: bool = False) -> list[dict[str, Any]]:
  """Of one call whose arguments come in pieces."""
  builder = ResponseBuilder(ItemIds("resp_" + "0" * 32), tools, lambda: "call_1")
  events = list(builder.add([CallBegin(0, name)]))
  for at in range(0, len(arguments), piece):
    events += builder.add([CallArguments(0, arguments[at:at + piece])])
  return [*events, *builder.end(cut)]


def test_21_line_1_requirement_40_what_the_model_sees() -> None:
  tools = tool_set(*TOOLS)
  shown = {tool.shown: tool for tool in tools.offered}
  assert list(shown) == ["shell", "apply_patch", "mcp__files__read", "mcp__files__note", "web__read", "local_shell"]
  assert tools.ignored == HOSTED
  assert GRAMMAR in (shown["apply_patch"].function.description or "")
  assert (shown["mcp__files__read"].function.description or "").startswith("Files of the user.")
  long = tool_set({"type": "namespace", "name": "n" * 60, "tools": [{"type": "function", "name": "f" * 60}]})
  assert len(long.offered[0].shown) == 64
  for wrong in ({"type": "function"}, {"type": "namespace", "tools": []}, {"type": "custom"}):
    with pytest.raises(InvalidRequestError):
      tool_set(wrong)
  with pytest.raises(InvalidRequestError):
    tool_set({"type": "function", "name": "f"}, {"type": "function", "name": "f"})
  both = tool_set({"type": "function", "name": "apply_patch"}, {"type": "apply_patch"}, {"type": "shell"})
  assert [tool.shown for tool in both.offered] == ["apply_patch", "apply_patch_", "shell"]


@pytest.mark.parametrize("piece", [1, 2, 7, 1000])
def test_21_line_1_requirement_40_calls_of_custom_tools_stream_their_text(piece: int) -> None:
  text = '*** Begin Patch\n+ "é", \\ and \U0001f642\t€\n'
  for ascii_only in (True, False):
    arguments = json.dumps({"input": text}, ensure_ascii=ascii_only)
    events = events_of(tool_set(*TOOLS), "apply_patch", arguments, piece)
    deltas = [e["delta"] for e in events if e["type"] == "response.custom_tool_call_input.delta"]
    assert "".join(deltas) == text and (piece > 100 or len(deltas) > 3)
    assert events[-2]["type"] == "response.custom_tool_call_input.done" and events[-2]["input"] == text
    assert events[-1]["item"] == {
        "type": "custom_tool_call", "id": events[-1]["item"]["id"], "call_id": "call_1", "name": "apply_patch",
        "input": text, "status": "completed"
    }


def test_21_line_1_texts_out_of_odd_objects() -> None:
  for whole, value in (('{"input": ""}', ""), ('{"other": 1, "input": "x"}', "x"), ('{"input": 5}', '{"input": 5}'),
                       ('{"input": "\\ud83d"}', "?"), ('{"input": "a\\ud83d b"}', "a? b"), ('["x"]', '["x"]')):
    field = StringField("input")
    assert "".join(field.push(char) for char in whole) + field.end() == value == field.value
  cut = StringField("input")
  assert cut.push('{"input": "ab\\') + cut.end() == "ab"


def test_21_line_1_requirement_40_calls_come_back_in_their_own_types() -> None:
  tools = tool_set(*TOOLS, {"type": "apply_patch"})
  read = events_of(tools, "mcp__files__read", "{}")[-1]["item"]
  assert (read["type"], read["name"], read["namespace"]) == ("function_call", "read", "mcp__files")
  note = events_of(tools, "mcp__files__note", '{"input": "x"}')[-1]["item"]
  assert (note["type"], note["name"], note["namespace"]) == ("custom_tool_call", "note", "mcp__files")
  ran = events_of(tools, "local_shell", '{"command": ["ls", "-l"], "timeout_ms": 5}')
  assert [e["type"] for e in ran] == ["response.output_item.added", "response.output_item.done"]
  assert ran[-1]["item"]["type"] == "local_shell_call" and ran[0]["item"]["action"]["command"] == []
  assert ran[-1]["item"]["action"] == {
      "type": "exec", "command": ["ls", "-l"], "env": {}, "timeout_ms": 5, "user": None, "working_directory": None
  }
  assert events_of(tools, "local_shell",
                   '{"command": "ls | wc"}')[-1]["item"]["action"]["command"] == ["sh", "-c", "ls | wc"]
  cut = events_of(tools, "local_shell", '{"command": ["ls', cut=True)[-1]["item"]
  assert cut["status"] == "incomplete" and cut["action"]["command"] == []
  patch = events_of(tools, "apply_patch_", '{"type": "delete_file", "path": "a"}')[-1]["item"]
  assert patch["type"] == "apply_patch_call" and patch["operation"] == {"type": "delete_file", "path": "a"}
  shell = events_of(tool_set({"type": "shell"}), "shell", '{"commands": ["ls"]}')[-1]["item"]
  assert shell["type"] == "shell_call" and shell["action"]["commands"] == ["ls"]


def test_21_line_1_requirement_39_every_item_is_read() -> None:
  tools = tool_set(*TOOLS)
  items: list[dict[str, Any]] = [
      {"role": "user", "content": "Hi"},
      {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "s"}], "encrypted_content": "gAAA"},
      {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "x"}},
      {"type": "message", "role": "assistant", "content": [
          {"type": "output_text", "text": "a", "annotations": []}, {"type": "refusal", "refusal": "b"}, {"type": "text", "text": "c"}]},
      {"type": "custom_tool_call", "call_id": "c1", "name": "apply_patch", "input": "*** x"},
      {"type": "custom_tool_call_output", "call_id": "c1", "output": "done"},
      {"type": "local_shell_call", "id": "l1", "call_id": "c2", "status": "completed",
       "action": {"type": "exec", "command": ["ls"], "env": {}}},
      {"type": "local_shell_call_output", "id": "l1", "output": "{}"},
      {"type": "function_call", "call_id": "c3", "name": "read", "namespace": "mcp__files", "arguments": "{}"},
      {"type": "function_call_output", "call_id": "c3", "output": [{"type": "input_text", "text": "x"}, {"type": "input_text", "text": "y"}]},
      {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "think"}]},
      {"type": "shell_call", "call_id": "c4", "action": {"commands": ["pwd"], "timeout_ms": None}},
      {"type": "shell_call_output", "call_id": "c4", "output": [{"stdout": "/", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}]},
      {"type": "apply_patch_call", "call_id": "c5", "operation": {"type": "delete_file", "path": "a"}},
      {"type": "apply_patch_call_output", "call_id": "c5", "status": "completed"},
      {"type": "mcp_call", "id": "m1", "server_label": "s", "name": "f", "arguments": "{}", "output": "z"},
      {"type": "mcp_list_tools", "id": "m2", "server_label": "s", "tools": [{"name": "f", "input_schema": {}}]},
      {"type": "image_generation_call", "id": "i1", "result": "aGk=", "status": "completed"},
      {"type": "computer_call_output", "call_id": "c6", "output": {"type": "computer_screenshot"}},
      {"type": "tool_search_call", "arguments": {"query": "x"}, "execution": "server"},
      {"type": "tool_search_output", "tools": [], "execution": "server"},
      {"type": "additional_tools", "role": "developer", "tools": [{"type": "function", "name": "late"}]},
      {"type": "compaction", "encrypted_content": "gAAAA of another service"},
      {"role": "developer", "content": [{"type": "input_text", "text": "d"}]},
  ]  # yapf: disable
  told = [message.for_template() for message in messages_of(items, tools)]
  assert [(m["role"], m["content"]) for m in told[:4]] == [("user", "Hi"), ("assistant", "abc"), ("tool", "done"),
                                                           ("assistant", "")]
  calls = [(c["function"]["name"], c["function"]["arguments"]) for m in told for c in m.get("tool_calls", ())]
  assert calls == [("apply_patch", {"input": "*** x"}), ("local_shell", {"command": ["ls"]}), ("mcp__files__read", {}),
                   ("shell", {"commands": ["pwd"]}), ("apply_patch", {"type": "delete_file", "path": "a"}),
                   ("s__f", {})]
  results = [(m["tool_call_id"], m["content"]) for m in told if m["role"] == "tool"]
  assert [result[0] for result in results] == ["c1", "c2", "c3", "c4", "c5", "m1"] and results[2][1] == "xy"
  assert [m.get("reasoning_content") for m in told if m.get("tool_calls")][3] == "think"
  assert told[-2]["role"] == "user" and "another service" in told[-2]["content"]
  for wrong in ({"type": "magic"}, {"type": "function_call"}, {"role": "user", "content": [{"type": "input_image"}]},
                {"role": "user", "content": [{"type": "input_file", "file_id": "x"}]
                 }, {"role": 5}, {"content": "x"}, {"role": "user",
                                                    "content": 5}, {"type": 7}, {"type": "local_shell_call"},
                {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image"}]}):
    with pytest.raises(InvalidRequestError) as error:
      messages_of([{"role": "user", "content": "Hi"}, wrong], tools)
    assert "input[1]" in error.value.message


def test_21_line_1_requirement_40_tools_that_come_as_items(node: NodeProcess) -> None:
  late = {
      "type": "namespace", "name": "late", "tools": [{"type": "function", "name": "f"},
                                                     {"type": "custom", "name": "exec"}]
  }
  found = {"type": "function", "name": "found", "description": "new"}
  search = {"type": "tool_search", "execution": "client", "description": "Searches.", "parameters": {
      "type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}}  # yapf: disable
  items: list[dict[str, Any]] = [
      {"type": "additional_tools", "role": "developer", "tools": [late, {"type": "function", "name": "found"}]},
      {"role": "user", "content": "Hi"},
      {"type": "tool_search_call", "call_id": "c1", "execution": "client", "status": "completed", "arguments": {"query": "x"}},
      {"type": "tool_search_output", "call_id": "c1", "execution": "client", "status": "completed", "tools": [found]}
  ]  # yapf: disable
  tools = ToolSet(msgspec.convert([search], list[ResponseTool]), tools_in(items))
  assert [tool.shown for tool in tools.offered] == ["tool_search", "late__f", "late__exec", "found"]
  assert tools.offered[-1].function.description == "new"
  told = [message.for_template() for message in messages_of(items, tools)]
  assert told[1]["tool_calls"][0]["function"] == {"name": "tool_search", "arguments": {"query": "x"}}
  assert json.loads(told[2]["content"]) == [found]
  body = {"model": "dummy", "input": items, "tools": [search], "max_output_tokens": 400}
  for choice, kind in (({"type": "tool_search"}, "tool_search_call"),
                       ({"type": "custom", "name": "exec", "namespace": "late"}, "custom_tool_call"),
                       ({"type": "function", "name": "found"}, "function_call")):  # yapf: disable
    status, answer = node.post("/v1/responses", body | {"tool_choice": choice})
    assert status == 200 and answer["output"][0]["type"] == kind, answer
    if kind == "tool_search_call":
      assert isinstance(answer["output"][0]["arguments"]["query"], str) and answer["output"][0]["execution"] == "client"
  items[0]["tools"] = [{"name": "f"}]
  assert "input[0]" in assert_error(*node.post("/v1/responses", body), 400)["message"]


def test_21_line_1_requirement_40_hosted_tools_are_named_in_a_header(node: NodeProcess, client: OpenAI) -> None:
  headers = {"Content-Type": "application/json"}
  body: dict[str, Any] = {"model": "dummy", "input": "Hi", "max_output_tokens": 4, "tools": TOOLS}
  for fields in ({}, {"stream": True}):
    status, told, _ = call(node, "POST", "/v1/responses", json.dumps(body | fields).encode(), headers)
    assert status == 200 and told["x-exo-ignored-tools"] == ", ".join(HOSTED)
  node.wait_said("web_search_preview, image_generation")
  status, told, answer = call(node, "POST", "/v1/responses", json.dumps(body | {"tools": TOOLS[:5]}).encode(), headers)
  assert status == 200 and "x-exo-ignored-tools" in told  # the one in the namespace
  assert [tool["type"] for tool in answer["tools"]] == [tool["type"] for tool in TOOLS[:5]]
  only = {"model": "dummy", "input": "Hi", "max_output_tokens": 4, "tools": [{"type": "web_search"}]}
  assert node.post("/v1/responses", only)[0] == 200
  for choice in ("required", {"type": "web_search"}, {"type": "function", "name": "nosuch"}, {"type": "custom"}):
    assert_error(*node.post("/v1/responses", only | {"tool_choice": choice}), 400)
  chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
  tools = [{"type": "function", "function": {"name": "f"}}, {"type": "web_search"}, {"type": "custom", "custom": {}}]
  status, told, _ = call(node, "POST", "/v1/chat/completions", json.dumps(chat | {"tools": tools}).encode(), headers)
  assert status == 200 and told["x-exo-ignored-tools"] == "web_search, custom"
  assert_error(*node.post("/v1/chat/completions", chat | {"tools": [{"type": "function"}]}), 400)
  assert_error(*node.post("/v1/chat/completions", chat | {"tools": tools[1:], "tool_choice": "required"}), 400)


def test_21_line_1_requirement_40_forced_calls_of_each_kind(client: OpenAI) -> None:
  tools: Any = TOOLS
  asked: dict[str, Any] = {"model": "dummy", "input": "Hi", "tools": tools, "max_output_tokens": 400}
  choices: list[tuple[dict[str, Any], str]] = [
      ({"type": "custom", "name": "apply_patch"}, "custom_tool_call"), ({"type": "local_shell"}, "local_shell_call"),
      ({"type": "function", "name": "shell"}, "function_call"), ({"type": "function", "name": "read"}, "function_call"),
      ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "read", "namespace": "web"}]},
       "function_call")
  ]  # yapf: disable
  for choice, kind in choices:
    answer = client.responses.create(tool_choice=choice, **asked)  # type: ignore[arg-type, call-overload]
    made = [item.to_dict() for item in answer.output if item.type == kind]
    assert answer.status == "completed" and made and len(made) == len(answer.output), answer.to_dict()
    streamed = list(
        client.responses.create(tool_choice=choice, stream=True, **asked)
    )  # type: ignore[arg-type, call-overload]
    again = [item.to_dict() for item in streamed[-1].response.output]
    assert [item | {"id": "", "call_id": ""} for item in again] == [item | {"id": "", "call_id": ""} for item in made]
    if kind == "custom_tool_call":
      deltas = "".join(e.delta for e in streamed if e.type == "response.custom_tool_call_input.delta")
      assert deltas == made[0]["input"]
    elif kind == "local_shell_call":
      assert made[0]["action"]["command"]
    elif choice["type"] == "allowed_tools":
      assert {item["namespace"] for item in made} == {"web"}
    elif choice["name"] == "shell":
      jsonschema.validate(json.loads(made[0]["arguments"]), TOOLS[0]["parameters"])
    back: Any = [{"role": "user", "content": "Hi"}, *made,
                 {"type": kind.removesuffix("_call") + "_call_output" if kind != "custom_tool_call" else "custom_tool_call_output",
                  "id": made[0]["id"], "call_id": made[0]["call_id"], "output": "ok"}]  # yapf: disable
    assert client.responses.create(**asked | {"input": back, "max_output_tokens": 4}).output_text


def test_21_line_1_fields_of_responses(node: NodeProcess) -> None:
  asked: dict[str, Any] = {"model": "dummy", "input": "Hi", "max_output_tokens": 5}
  told = {
      "metadata": {"a": "b"}, "service_tier": "flex", "max_tool_calls": 3, "truncation": "auto", "user": "u",
      "safety_identifier": "s", "prompt_cache_key": "k", "reasoning": {"effort": "low", "summary": "auto"},
      "parallel_tool_calls": False, "top_logprobs": 2
  }
  more = {
      "include": ["reasoning.encrypted_content"], "stream_options": {"include_obfuscation": False},
      "client_metadata": {}
  }
  status, answer = node.post("/v1/responses", asked | told | more)
  assert status == 200 and {key: answer[key] for key in told} == told, answer
  entries = answer["output"][0]["content"][0]["logprobs"]
  assert len(entries) == 5 and all(len(entry["top_logprobs"]) == 2 and entry["logprob"] <= 0 for entry in entries)
  assert bytes(b for entry in entries for b in entry["bytes"]).decode() == answer["output"][0]["content"][0]["text"]
  for field, value in {
      "background": True, "prompt": {"id": "pmpt_1"}, "context_management": [{"type": "compaction"}],
      "moderation": {"model": "x"}, "truncation": "middle", "metadata": {"a": 5}, "top_logprobs": 21,
      "reasoning": {"effort": "enormous"}, "max_tool_calls": 0, "include": "x", "conversation": 5
  }.items():
    error = assert_error(*node.post("/v1/responses", asked | {field: value}), 400)
    assert error["param"] == field, error


def test_21_line_1_truncation_drops_the_oldest(node: NodeProcess) -> None:
  long = [{"role": role, "content": f"{i} " + "word " * 400} for i in range(8) for role in ("user", "assistant")]
  body = {"model": "dummy", "instructions": "Be kind.", "input": [*long, {"role": "user", "content": "Hi"}],
          "max_output_tokens": 4}  # yapf: disable
  assert assert_error(*node.post("/v1/responses", body), 400)["code"] == "context_length_exceeded"
  status, answer = node.post("/v1/responses", body | {"truncation": "auto"})
  assert status == 200 and 2000 < answer["usage"]["input_tokens"] < 8192
  body["input"] = "word " * 4000
  assert_error(*node.post("/v1/responses", body | {"truncation": "auto"}), 400)
