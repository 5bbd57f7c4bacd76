"""What a value is that a model wrote as bare text: the tool's schema says it."""

from __future__ import annotations

import ast
import json
import math
import warnings
from typing import Any

_MOST_LITERAL = 64 * 1024  # characters of a Python literal; its parser takes much memory for each
_TYPES_OF = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}


def types_of(schema: Any) -> frozenset[str]:
  """The JSON types that a schema allows; none where it does not tell."""
  if not isinstance(schema, dict):
    return frozenset()
  declared = schema.get("type")
  found = {declared} if isinstance(declared, str) else set()
  if isinstance(declared, list):
    found.update(one for one in declared if isinstance(one, str))
  if not found and isinstance(schema.get("enum"), list):
    found.update("null" if one is None else _TYPES_OF.get(type(one), "") for one in schema["enum"])
  if not found and "const" in schema:
    found.add("null" if schema["const"] is None else _TYPES_OF.get(type(schema["const"]), ""))
  for union in ("anyOf", "oneOf"):
    for choice in schema[union] if isinstance(schema.get(union), list) else ():
      found |= types_of(choice)
  if schema.get("nullable") is True and found:
    found.add("null")
  return frozenset(found)


def is_text(schema: Any) -> bool:
  """Whatever is written is the text itself."""
  return types_of(schema) == {"string"}


def typed(text: str, schema: Any) -> Any:
  """A value that was written without quotes: of a type that the schema allows, if it can be read as one; else the text.

  Where the schema allows texts beside other types, only what can be nothing else is read as one of these; where it says
  nothing, whatever is JSON is that.
  """
  types, bare = types_of(schema), text.strip()
  if not types:
    value = _json(bare)
    return text if value is _NOTHING else value
  if "null" in types and bare in ("null", "None"):
    return None
  if "boolean" in types and bare.lower() in ("true", "false"):
    return bare.lower() == "true"
  value = _json(bare)
  if isinstance(value, bool) or value is None:
    return text
  if isinstance(value, float) and value.is_integer() and "integer" in types and "number" not in types:
    return int(value)
  if isinstance(value, int | float) and types & ({"number"} if isinstance(value, float) else {"integer", "number"}):
    return value
  if types & {"array", "object"}:
    if value is _NOTHING:
      value = python_literal(bare)
    if (isinstance(value, list) and "array" in types) or (isinstance(value, dict) and "object" in types):
      return value
  return text


_NOTHING = object()


def _json(text: str) -> Any:
  try:
    return json.loads(text, parse_constant=_refuse, parse_float=_finite)
  except (ValueError, RecursionError):
    return _NOTHING


def _refuse(name: str) -> Any:
  raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
  number = float(text)
  return number if math.isfinite(number) else float(_refuse(text))


def python_literal(text: str) -> Any:
  """What a model that thinks in Python writes for a list or an object; None for what is none."""
  if len(text) > _MOST_LITERAL:
    return None
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # of escapes that Python does not like
      value = ast.literal_eval(text)
    json.dumps(value, allow_nan=False)
  except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
    return None
  return value
