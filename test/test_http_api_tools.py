"""Numbers 24 to 27: structured output, tools and reasoning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from openai import OpenAI
from pydantic import BaseModel

from test.support.http import assert_error, call, stream_json
from test.support.nodes import NodeProcess, ring

CHAT = "/v1/chat/completions"
WEATHER = [{"role": "user", "content": "What is the weather in Paris, in celsius?"}]
CITY = {
    "type": "object", "properties": {
        "city": {"type": "string"}, "population": {"type": "integer",
                                                   "minimum": 0}, "kind": {"enum": ["capital", "town"]},
        "rivers": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 3}
    }, "required": ["city", "population", "kind", "rivers"], "additionalProperties": False
}
TOOLS = [{
    "type": "function", "function": {
        "name": "get_weather", "description": "The weather of a city", "parameters": {
            "type": "object", "properties": {"city": {"type": "string"}, "unit": {"enum": ["celsius", "fahrenheit"]}},
            "required": ["city", "unit"], "additionalProperties": False
        }
    }
}, {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture(scope="module", params=["dummy", "smollm2-135m"])
def model(request: pytest.FixtureRequest) -> str:
  return str(request.param)


@pytest.fixture(scope="module", params=[1, 2], ids=["alone", "ring of two"])
def node(request: pytest.FixtureRequest, model: str, model_home: Path) -> Iterator[NodeProcess]:
  engine = "dummy" if model == "dummy" else "onnx"
  with ring(model_home, request.param, "--inference-engine", engine, "--default-model", model) as started:
    yield started[-1]


def chat(node: NodeProcess, messages: Any = WEATHER, **fields: Any) -> Any:
  status, answer = node.post(CHAT, {"messages": messages, "max_tokens": 150} | fields)
  assert status == 200, answer
  return answer["choices"][0]


def test_24_json_object_parses_even_where_room_is_short(node: NodeProcess, model: str) -> None:
  for max_tokens in (12, 60, 200) if model == "dummy" else (12, 50):
    for fields in ({}, {"temperature": 1.5, "seed": max_tokens}):
      choice = chat(node, response_format={"type": "json_object"}, max_tokens=max_tokens, **fields)
      assert isinstance(json.loads(choice["message"]["content"]), dict) and choice["finish_reason"] == "stop"


def test_24_json_schema_validates(node: NodeProcess, model: str) -> None:
  wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}
  messages = [{"role": "user", "content": "Describe Paris as JSON."}]
  tries: list[dict[str, Any]] = [{"max_tokens": 100}, {"temperature": 1.2, "seed": 4}]
  for fields in [*tries, {"temperature": 2.0, "seed": 5, "n": 2}] if model == "dummy" else tries:
    choice = chat(node, messages, response_format=wanted, **fields)
    jsonschema.validate(json.loads(choice["message"]["content"]), CITY)
    chunks = stream_json(node, CHAT, {"messages": messages, "max_tokens": 150, "response_format": wanted, **fields})
    streamed = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"][0]["index"] == 0)
    assert streamed == choice["message"]["content"]
  assert chat(node, response_format={"type": "text"})["message"] == chat(node)["message"]


@pytest.mark.parametrize(
    "wanted", [
        {"type": "xml"},
        {},
        "json",
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"name": "x"}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "banana"}}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "string", "pattern": "("}}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#/$defs/nowhere"}}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": False}},
        {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"allOf": [{"type": "string"}, {"type": "integer"}]}}
        },
    ]
)
def test_24_a_bad_format_is_refused(node: NodeProcess, wanted: Any) -> None:
  error = assert_error(*node.post(CHAT, {"messages": WEATHER, "response_format": wanted}), 400)
  assert error["param"] == "response_format" and "TEXT" not in error["message"]


def test_24_enormous_schemas_are_bounded(node: NodeProcess) -> None:
  deep: Any = {"type": "string"}
  for _ in range(200):
    deep = {"type": "object", "properties": {"a": deep}}
  wide = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(20000)}}
  slow = {"type": "string", "pattern": "^(a|b|ab)*c{500}(x{1,300}){1,300}$"}
  for schema in (deep, wide):
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert_error(*node.post(CHAT, {"messages": WEATHER, "response_format": wanted}), 400)
  wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": slow}}
  assert node.post(CHAT, {"messages": WEATHER, "response_format": wanted, "max_tokens": 8}, 30)[0] in (200, 400)
  assert node.chat("hello", max_tokens=3)[0] == 200


def test_25_and_26_forced_calls(node: NodeProcess, model: str) -> None:
  schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
  for choice in (
      "required", {"type": "function",
                   "function": {"name": "get_weather"}}, {"type": "function", "function": {"name": "now"}}
  ):
    for fields in ({}, {"temperature": 1.3, "seed": 1}) if model == "dummy" else ({}, ):
      answer = chat(node, tools=TOOLS, tool_choice=choice, **fields)
      calls = answer["message"]["tool_calls"]
      assert answer["finish_reason"] == "tool_calls" and calls and not answer["message"]["content"]
      assert len({made["id"] for made in calls}) == len(calls) and all(made["type"] == "function" for made in calls)
      for made in calls:
        jsonschema.validate(json.loads(made["function"]["arguments"]), schemas[made["function"]["name"]])
      if isinstance(choice, dict):
        assert [made["function"]["name"] for made in calls] == [choice["function"]["name"]]
  assert len(chat(node, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)["message"]["tool_calls"]) == 1


def test_25_streamed_calls(node: NodeProcess) -> None:
  fields = {"messages": WEATHER, "max_tokens": 150, "tools": TOOLS, "tool_choice": "required"}
  whole = chat(node, **{k: v for k, v in fields.items() if k != "messages"})["message"]["tool_calls"]
  chunks = [c["choices"][0] for c in stream_json(node, CHAT, fields)]
  built: dict[int, dict[str, str]] = {}
  for delta in (c["delta"] for c in chunks):
    for piece in delta.get("tool_calls", []):
      if piece["index"] not in built:
        assert piece["id"] and piece["type"] == "function" and piece["function"]["arguments"] == ""
        built[piece["index"]] = {"name": piece["function"]["name"], "arguments": ""}
      else:
        assert set(piece) == {"index", "function"} and set(piece["function"]) == {"arguments"}
        built[piece["index"]]["arguments"] += piece["function"]["arguments"]
  assert [built[i] for i in sorted(built)] == [made["function"] for made in whole]
  assert chunks[-1]["finish_reason"] == "tool_calls" and chunks[-1]["delta"] == {}
  assert sum(len(c["delta"].get("tool_calls", [])) for c in chunks) > 2 * len(built)  # in fragments


def test_25_tools_reach_the_template(node: NodeProcess) -> None:
  def tokens(**fields: Any) -> int:
    status, answer = node.post(CHAT, {"messages": WEATHER, "max_tokens": 1, **fields})
    assert status == 200
    return int(answer["usage"]["prompt_tokens"])

  assert tokens(tools=TOOLS) > tokens(tools=TOOLS[:1]) > tokens()
  assert tokens(tools=TOOLS, tool_choice="none") == tokens()


def test_26_none_and_wrong_choices(node: NodeProcess) -> None:
  answer = chat(node, tools=TOOLS, tool_choice="none")
  assert "tool_calls" not in answer["message"] and answer["finish_reason"] in ("stop", "length")
  for wrong in ({"tool_choice": "required"}, {"tools": TOOLS, "tool_choice": "sometimes"},
                {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "nothing"}}
                 }, {"tools": [{"type": "function", "function": {"name": "bad name!"}}]
                     }, {"tools": [{"type": "magic"}]}, {"tools": [TOOLS[0], TOOLS[0]]}, {"tools": "all"}, {
                         "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "banana"}}}],
                         "tool_choice": "required"
                     }):
    assert_error(*node.post(CHAT, {"messages": WEATHER, **wrong}), 400)


def test_06_a_conversation_with_a_tool(node: NodeProcess) -> None:
  made = chat(node, tools=TOOLS, tool_choice=TOOLS[0] | {"function": {"name": "get_weather"}})["message"]
  result = {"role": "tool", "tool_call_id": made["tool_calls"][0]["id"], "content": "21 degrees and sunny"}
  assert chat(node, [*WEATHER, made, result], tools=TOOLS)["message"]["content"] is not None


class City(BaseModel):
  name: str
  country: str
  inhabitants: int


def test_24_openai_parse_with_pydantic(node: NodeProcess, model: str) -> None:
  client = OpenAI(base_url=f"{node.url}/v1", api_key="none", max_retries=0, timeout=120)
  parsed = client.chat.completions.parse(
      model=model, messages=[{"role": "user", "content": "Tell me of Paris."}], response_format=City, max_tokens=150
  )
  assert isinstance(parsed.choices[0].message.parsed, City)
  answer = client.responses.parse(model=model, input="Tell me of Paris.", text_format=City, max_output_tokens=150)
  assert isinstance(answer.output_parsed, City)
  with client.chat.completions.stream(
      model=model, messages=[{"role": "user", "content": "Tell me of Paris."}], response_format=City, max_tokens=150
  ) as stream:
    assert isinstance(stream.get_final_completion().choices[0].message.parsed, City)


def test_24_logprobs_of_constrained_text(node: NodeProcess) -> None:
  choice = chat(node, response_format={"type": "json_object"}, logprobs=True, top_logprobs=2, max_tokens=40)
  entries = choice["logprobs"]["content"]
  assert b"".join(bytes(e["bytes"]) for e in entries).decode() == choice["message"]["content"]
  assert all(-9999 <= e["logprob"] <= 0 for e in entries)


def test_26_many_constrained_requests_at_once(node: NodeProcess, model: str) -> None:
  def one(i: int) -> Any:
    wanted = {"type": "json_schema", "json_schema": {"name": "c", "schema": CITY}}
    fields: Any = {"response_format": wanted} if i % 2 else {"tools": TOOLS, "tool_choice": "required"}
    return chat(node, **fields, temperature=1.0, seed=i, max_tokens=90)

  with ThreadPoolExecutor(8) as pool:
    for i, choice in enumerate(pool.map(one, range(8 if model == "dummy" else 4))):
      if i % 2:
        jsonschema.validate(json.loads(choice["message"]["content"]), CITY)
      else:
        assert choice["message"]["tool_calls"]


def test_27_no_reasoning_where_there_is_none(node: NodeProcess) -> None:
  assert "reasoning_content" not in chat(node)["message"]
  assert call(node, "GET", "/health")[0] == 200
