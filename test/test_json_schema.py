"""Schemas as agents write them: what becomes of each, what is told of it, and that its grammar compiles."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.api.constraints import Wanted
from exo.api.grammars import text_grammar
from exo.api.json_schema import usable_schema
from exo.errors import InvalidRequestError
from exo.inference.dummy.checkpoint import DummyCheckpoint
from exo.inference.grammar import GrammarCompiler, unusable_keywords

STRING, INTEGER = {"type": "string"}, {"type": "integer"}


def usable(schema: Any, *, closed: bool = True) -> tuple[Any, list[str]]:
  return usable_schema(schema, "f", closed=closed, ask=lambda texts: unusable_keywords(tuple(texts)))


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
  return GrammarCompiler(DummyCheckpoint().tokenizer())


def written(compiler: GrammarCompiler, schema: Any, seed: int = 1) -> Any:
  """What random tokens make of it."""
  grammar = text_grammar(Wanted("schema", schema, lenient=True))
  constraint, rng, said = compiler.start(grammar, 400), np.random.default_rng(seed), b""
  tokenizer = compiler._tokenizer
  while True:
    logits = rng.normal(size=tokenizer.vocab_size).astype(np.float32)
    constraint.apply(logits)
    token = int(logits.argmax())
    token = token if constraint.fits(token) else constraint.way_out
    constraint.accept(token)
    if token in tokenizer.eos_ids:
      return json.loads(said)
    said += tokenizer.token_bytes(token)


# as it is written, what it becomes, and what is told of it
CASES: dict[str, tuple[Any, Any, list[str]]] = {
    "words for readers": ({"type": "string", "title": "A", "default": "x", "x-foo": 1}, STRING, []),
    "a lookahead": ({"type": "string", "pattern": r"^(?!\.)[a-z]+$", "minLength": 2}, STRING | {"minLength": 2},
                    ["f pattern"]),
    "a word boundary": ({"type": "string", "pattern": r"\bfoo\b"}, STRING, ["f pattern"]),
    "a backreference": ({"type": "string", "pattern": r"(a)\1"}, STRING, ["f pattern"]),
    "a format that nobody knows": ({"type": "string", "format": "uint32"}, STRING, ["f format"]),
    "a pattern and a format that contradict": (
        {"type": "string", "pattern": "^a+$", "format": "date"}, STRING | {"format": "date"}, ["f pattern"]),
    "not": ({"type": "string", "not": {"const": "a"}}, STRING, ["f not"]),
    "if": ({"type": "string", "if": {"const": "a"}, "then": {}, "else": {}}, STRING, ["f if"]),
    "unique items": ({"type": "array", "items": STRING, "uniqueItems": True}, {"type": "array", "items": STRING},
                     ["f uniqueItems"]),
    "unique items that need not be": ({"type": "array", "uniqueItems": False}, {"type": "array"}, []),
    "contains": ({"type": "array", "contains": STRING}, {"type": "array"}, ["f contains"]),
    "names": ({"type": "object", "propertyNames": {"pattern": "^a"}}, {"type": "object"}, ["f propertyNames"]),
    "dependent": ({"type": "object", "dependentRequired": {"a": ["b"]}}, {"type": "object"}, ["f dependentRequired"]),
    "unevaluated": ({"type": "object", "properties": {"a": STRING}, "unevaluatedProperties": False},
                    {"type": "object", "properties": {"a": STRING}, "additionalProperties": False}, []),
    "few properties": ({"type": "object", "minProperties": 1}, {"type": "object", "minProperties": 1}, []),
    "patterns of names": ({"type": "object", "patternProperties": {"^x": STRING, "^(?!y)": INTEGER}},
                          {"type": "object", "patternProperties": {"^x": STRING}, "additionalProperties": True},
                          ["f patternProperties"]),
    "Gemini's types": ({"type": "OBJECT", "properties": {"a": {"type": "STRING"}}},
                       {"type": "object", "properties": {"a": STRING}, "additionalProperties": False}, []),
    "a type that is none": ({"type": "any"}, {}, ["f type"]),
    "an empty enum": ({"type": "string", "enum": []}, STRING, ["f enum"]),
    "a reference to nothing": ({"$ref": "#/$defs/A"}, {}, ["f $ref"]),
    "a reference to another site": ({"$ref": "https://example.com/a.json"}, {}, ["f $ref"]),
    "a circle": ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, {},
                 ["f $ref"]),
    "a chain": ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/definitions/b"}}, "definitions": {"b": STRING}},
                {"$ref": "#/$defs/0", "$defs": {"0": STRING}}, []),
    "objects of allOf": (
        {"allOf": [{"type": "object", "properties": {"a": STRING}, "required": ["a"]},
                   {"type": "object", "properties": {"b": INTEGER}, "required": ["b"]}]},
        {"type": "object", "properties": {"a": STRING, "b": INTEGER}, "required": ["a", "b"],
         "additionalProperties": False}, []),
    "closed objects of allOf": (
        {"allOf": [{"type": "object", "properties": {"a": STRING}, "additionalProperties": False},
                   {"type": "object", "properties": {"b": INTEGER}, "additionalProperties": False}]},
        {"type": "object", "properties": {"a": STRING, "b": INTEGER}, "additionalProperties": False},
        ["f additionalProperties"]),
    "a base and more": (
        {"$defs": {"Base": {"type": "object", "properties": {"a": STRING}, "required": ["a"]}},
         "allOf": [{"$ref": "#/$defs/Base"}], "properties": {"b": {"allOf": [INTEGER, {"minimum": 3}]}}},
        {"type": "object", "properties": {"a": STRING, "b": INTEGER | {"minimum": 3}}, "required": ["a"],
         "additionalProperties": False}, []),
    "one of which is asked for": (
        {"type": "object", "properties": {"a": STRING, "b": STRING}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        {"type": "object", "properties": {"a": STRING, "b": STRING}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
         "additionalProperties": False}, []),
}  # yapf: disable


@pytest.mark.parametrize("name", CASES)
def test_21_line_4_a_schema_is_made_usable(name: str, compiler: GrammarCompiler) -> None:
  schema, expected, told = CASES[name]
  made, relaxed = usable(schema)
  assert (made, relaxed) == (expected, told)
  compiler.check(text_grammar(Wanted("schema", made, lenient=True)))


_SCALARS = st.sampled_from([
    None, True, False, 0, -1, 1.5, 10**30, "", "string", "object", "integer", "^a", "date", "#/$defs/a"
])
_KEYWORDS = st.sampled_from([
    "$defs", "$ref", "additionalItems", "additionalProperties", "allOf", "anyOf", "const", "contains", "default",
    "definitions", "dependentRequired", "description", "else", "enum", "exclusiveMaximum", "format", "if", "items",
    "maxItems", "maxLength", "maximum", "minItems", "minLength", "minProperties", "minimum", "multipleOf", "not",
    "oneOf", "pattern", "patternProperties", "prefixItems", "properties", "propertyNames", "required", "then", "type",
    "unevaluatedProperties", "uniqueItems", "a"
])
_ANYTHING = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYWORDS, inner, max_size=4), max_leaves=12
)


@settings(max_examples=15000, deadline=None)
@given(st.dictionaries(_KEYWORDS, _ANYTHING, max_size=5), st.booleans())
def test_21_line_4_whatever_a_schema_holds_it_is_used_or_refused_in_words(schema: dict[str, Any], closed: bool) -> None:
  """Schemathesis found the first that was neither: a type that is an object."""
  with contextlib.suppress(InvalidRequestError):
    made, relaxed = usable(schema, closed=closed)
    json.dumps(made)
    assert all(isinstance(told, str) for told in relaxed)


def test_21_line_4_recursion_is_kept(compiler: GrammarCompiler) -> None:
  node = {
      "type": "object", "properties": {"name": {"const": "n"}, "next": {"$ref": "#/$defs/node"}}, "required": ["name"]
  }
  schema = {
      "type": "object", "properties": {"list": {"$ref": "#/$defs/node"}, "again": {"$ref": "#"}},
      "$defs": {"node": node}
  }
  made, relaxed = usable(schema)
  assert not relaxed
  for seed in range(3):
    jsonschema.validate(written(compiler, made, seed), schema)


def test_21_line_4_merged_objects_are_written(compiler: GrammarCompiler) -> None:
  schema = CASES["objects of allOf"][0]
  value = written(compiler, usable(schema)[0])
  jsonschema.validate(value, schema)
  assert value.keys() == {"a", "b"}


def test_21_line_4_where_it_must_be_exact_a_closed_branch_forbids_the_others_properties(
    compiler: GrammarCompiler
) -> None:
  schema = CASES["closed objects of allOf"][0]
  made, relaxed = usable(schema, closed=False)
  assert not relaxed
  jsonschema.validate(written(compiler, made), schema)


def test_21_line_4_a_schema_that_grows_is_refused() -> None:
  definitions = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)} | {"d40": STRING}
  with pytest.raises(InvalidRequestError, match="too large"):
    usable({"$ref": "#/$defs/d0", "$defs": definitions})


def test_21_line_4_a_base_that_holds_itself_ends() -> None:
  made, relaxed = usable({"$defs": {"A": {"allOf": [{"$ref": "#/$defs/A"}, STRING]}}, "$ref": "#/$defs/A"})
  assert relaxed == ["f $ref"] and made["$defs"]["0"] == STRING
