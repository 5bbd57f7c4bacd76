"""Schemas as agents write them: what of them calls and answers are held to, and what is said of the rest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from exo.api.held_schemas import HeldSchema, held_schema
from exo.errors import InvalidRequestError
from exo.inference.grammar import findings
from test.support.http import assert_error, call
from test.support.nodes import NodeProcess, ring

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
JSON = {"Content-Type": "application/json"}
TEXT = {"type": "string"}
A = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
B = {"type": "object", "properties": {"b": {"enum": ["x", "y"]}}, "required": ["b"], "additionalProperties": False}


def of_tool(schema: Any) -> tuple[dict[str, Any], list[str]]:
  """(what the library sees, what is said to be relaxed)."""
  held = held_schema({"type": "object"} | schema, "tools.f", findings, strict=False, closing=True)
  return seen(held), [str(item) for item in held.relaxed]


def seen(held: HeldSchema) -> dict[str, Any]:
  schema: dict[str, Any] = json.loads(held.rule.removeprefix("%json "))
  del schema["x-guidance"]
  assert findings([f"start: {held.rule}"])[0][0] == ""
  return schema


def field(schema: Any) -> Any:
  return {"properties": {"p": schema}}


@pytest.mark.parametrize(
    ("schema", "told"), [
        (field(TEXT | {"pattern": r"^(?!\.)[a-z.]+@[a-z.]+$"}), ["tools.f.p pattern"]),
        (field(TEXT | {"pattern": r"\bfoo\b"}), ["tools.f.p pattern"]),
        (field(TEXT | {"pattern": r"(a|b)\1"}), ["tools.f.p pattern"]),
        (field(TEXT | {"pattern": "("}), ["tools.f.p pattern"]),
        (field(TEXT | {"format": "of-its-own"}), ["tools.f.p format"]),
        (field(TEXT | {"format": "date-time"}), []),
        (field({"type": "array", "items": TEXT, "uniqueItems": True}), ["tools.f.p uniqueItems"]),
        (field({"type": "array", "items": {"not": TEXT}}), ["tools.f.p[] not"]),
        (field({"type": "array", "contains": TEXT, "minContains": 2}), ["tools.f.p contains"]),
        (field({"type": "object", "propertyNames": TEXT, "additionalProperties": TEXT}), []),
        (field({"type": "object", "propertyNames": {"maxLength": 3}}), ["tools.f.p propertyNames"]),
        (field({"$ref": "https://example.com/schema.json"}), ["tools.f.p $ref"]),
        (field({"$ref": "#/$defs/nowhere"}), ["tools.f.p $ref"]),
        (field({"oneOf": [TEXT, TEXT | {"minLength": 3}]}), ["tools.f.p oneOf"]),
        (field({"type": "banana"}), ["tools.f (all of it)"]),
        ({"dependentRequired": {"p": ["q"]}, "properties": {"p": TEXT, "q": TEXT}}, ["tools.f dependentRequired"]),
        ({"minProperties": 2, "properties": {"p": TEXT, "q": TEXT}}, ["tools.f minProperties"]),
        ({"unevaluatedProperties": False, "properties": {"p": TEXT}}, []),
        ({"patternProperties": {"^a": TEXT, "b": TEXT}}, ["tools.f patternProperties"]),
        ({"patternProperties": {"^(?!a)": TEXT}}, ["tools.f patternProperties"]),
        ({"properties": {"p": TEXT}, "required": ["q"]}, []),
        ({}, []),
        ({"properties": {"not": TEXT, "if": TEXT, "enum": {"enum": ["not"]}}}, []),
    ]
)  # yapf: disable
def test_21_line_4_what_no_grammar_holds_is_left_out_and_named(schema: Any, told: list[str]) -> None:
  assert of_tool(schema)[1] == told


def test_21_line_4_conditions_leave_room_for_what_they_ask() -> None:
  schema, told = of_tool({
      "properties": {"kind": TEXT},
      "if": {"properties": {"kind": {"const": "a"}}},
      "then": {"properties": {"size": {"type": "integer"}}, "required": ["size"]},
  })
  assert told == ["tools.f if"] and set(schema["properties"]) == {"kind", "size"}
  assert schema["additionalProperties"] is False


@pytest.mark.parametrize(
    "schema", [
        {"allOf": [A, B]},
        {"allOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/definitions/B"}], "$defs": {"A": A}, "definitions": {"B": B}},
        {"allOf": [{"$ref": "#/$defs/AB"}], "$defs": {"AB": {"allOf": [{"$ref": "#/$defs/A"}, B]}, "A": A}},
        {"properties": {"b": B["properties"]["b"]}, "required": ["b"], "allOf": [A], "additionalProperties": False},
        {"properties": {"b": B["properties"]["b"]}, "required": ["b"], "$ref": "#/$defs/A", "$defs": {"A": A}},
    ]
)  # yapf: disable
def test_21_line_4_objects_of_parts_have_what_all_parts_name(schema: Any) -> None:
  read, told = of_tool(schema)
  assert not told and set(read["properties"]) == {"a", "b"} and read["additionalProperties"] is False
  jsonschema.validate({"a": 1, "b": "x"}, read)
  for wrong in ({"a": 1}, {"a": 1, "b": "z"}, {"a": 1, "b": "x", "c": 1}):
    with pytest.raises(jsonschema.ValidationError):
      jsonschema.validate(wrong, read)


def test_21_line_4_references_that_lead_round_in_circles() -> None:
  node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}, "value": TEXT}}
  schema, told = of_tool({"properties": {"list": {"$ref": "#/$defs/node"}}, "$defs": {"node": node}})
  assert not told and schema["$defs"]["node"]["additionalProperties"] is False
  tree = {"type": "object", "allOf": [{"properties": {"more": {"$ref": "#"}}}, {"$ref": "#/$defs/other"}]}
  assert not of_tool(tree | {"$defs": {"other": {"properties": {"x": TEXT}}}})[1]
  assert of_tool({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}})[1]
  # each names the next one twice
  doubling = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)} | {"d40": A}
  assert of_tool({"allOf": [{"$ref": "#/$defs/d0"}], "$defs": doubling})[1] == ["tools.f (all of it)"]


def test_21_line_4_answers_are_only_relaxed_where_the_request_is_not_strict() -> None:
  schema = field({"type": "array", "items": TEXT, "uniqueItems": True})
  with pytest.raises(InvalidRequestError, match=r"response_format.p uniqueItems: leave it out, or send strict: false"):
    held_schema(schema, "response_format", findings, strict=True, closing=False)
  with pytest.raises(InvalidRequestError, match=r"response_format.p pattern \(.*look-around"):
    held_schema(field(TEXT | {"pattern": "(?=a)"}), "response_format", findings, strict=True, closing=False)
  held = held_schema(schema, "response_format", findings, strict=False, closing=False)
  assert [str(item) for item in held.relaxed] == ["response_format.p uniqueItems"]
  record = {
      "type": "object", "propertyNames": TEXT | {"pattern": "^[a-z]+$"}, "additionalProperties": {"type": "integer"}
  }
  taken = seen(held_schema(record, "response_format", findings, strict=True, closing=False))
  jsonschema.validate({"ab": 1}, taken)
  with pytest.raises(jsonschema.ValidationError):
    jsonschema.validate({"AB": 1}, taken)


@pytest.fixture(scope="module")
def node(model_home: Path) -> Iterator[NodeProcess]:
  with ring(model_home, 1, "--inference-engine", "onnx") as started:
    yield started[0]


def post(node: NodeProcess, path: str = CHAT, **fields: Any) -> tuple[int, dict[str, str], Any]:
  body = {"messages": HELLO, "max_tokens": 40, "temperature": 0} | fields
  return call(node, "POST", path, json.dumps(body).encode(), JSON)


def test_21_line_4_a_tool_that_cannot_be_held_is_named_in_a_header(node: NodeProcess) -> None:
  good = {"name": "good", "parameters": A}
  odd = {"name": "f", "parameters": {"type": "object"} | field(TEXT | {"pattern": r"^(?!\.)[a-z]+$"})}
  tools = [{"type": "function", "function": function} for function in (good, odd, {"name": "bare"})]
  status, headers, _ = post(node, tools=tools, max_tokens=4)
  assert status == 200 and headers["x-exo-relaxed"] == "tools.f.p pattern"
  status, headers, _ = post(node, tools=tools[:1], max_tokens=4)
  assert status == 200 and "x-exo-relaxed" not in headers
  odd["strict"] = True
  error = assert_error(*post(node, tools=tools, max_tokens=4)[::2], 400)
  assert error["param"] == "tools" and "tools.f.p pattern" in error["message"]


def test_21_line_4_requirement_26_a_forced_call_of_an_object_of_parts(node: NodeProcess) -> None:
  tools = [{"type": "function", "function": {"name": "f", "parameters": {"allOf": [A, B]}}}]
  status, _, answer = post(node, tools=tools, tool_choice="required", parallel_tool_calls=False)
  assert status == 200, answer
  arguments = json.loads(answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"])
  assert set(arguments) == {"a", "b"}


def test_21_line_4_requirement_24_an_answer_that_is_not_strict_is_relaxed(node: NodeProcess) -> None:
  inner = {"name": "x", "schema": A | {"not": {"required": ["c"]}}}
  error = assert_error(*post(node, response_format={"type": "json_schema", "json_schema": inner})[::2], 400)
  assert error["param"] == "response_format" and "not" in error["message"] and "strict: false" in error["message"]
  inner["strict"] = False
  status, headers, answer = post(node, response_format={"type": "json_schema", "json_schema": inner})
  assert status == 200 and headers["x-exo-relaxed"] == "response_format not"
  jsonschema.validate(json.loads(answer["choices"][0]["message"]["content"]), A)
