"""Calls that are written as JSON objects with a name and arguments."""

from __future__ import annotations

import json
import re
from typing import Any

from exo.api.formats.tool_format import NAME, Call, Schemas

_ARGUMENTS = ("arguments", "parameters", "args")

OBJECT_HEADER = re.compile(rf'\s*\{{\s*"name"\s*:\s*"({NAME})"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{{)')
# the object may be the first of a list
LIST_HEADER = re.compile(rf'\s*\[?\s*\{{\s*"name"\s*:\s*"({NAME})"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{{)')

# what may stand around objects
_BETWEEN = re.compile(r"[\s,;\]]*(?:```(?:json)?)?[\s,;\]]*")


def objects(text: str) -> list[dict[str, Any]]:
  """The JSON objects of a text, one after another or in lists; none where one of them is broken or something else is there."""
  decoder, found, at = json.JSONDecoder(), list[dict[str, Any]](), 0
  while (at := _BETWEEN.match(text, at).end()) < len(text):  # type: ignore[union-attr]  # it matches anything
    try:
      value, at = decoder.raw_decode(text, at)
    except (ValueError, RecursionError):
      return []
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(one, dict) for one in values):
      return []
    found += values
  return found


def json_calls(text: str, _: Schemas) -> list[Call]:
  """`{"name": …, "arguments" or "parameters": {…} or a string of it}`, in any order, also within `function`."""
  calls: list[Call] = []
  for found in objects(text):
    within = found.get("function")
    value: dict[str, Any] = within if isinstance(within, dict) else found
    name = value.get("name", value.get("tool_name"))
    arguments: Any = next((value[key] for key in _ARGUMENTS if key in value), {})
    if isinstance(arguments, str):
      try:
        arguments = json.loads(arguments)
      except (ValueError, RecursionError):
        return []
    if not isinstance(name, str) or not isinstance(arguments, dict):
      return []
    calls.append((name, arguments))
  return calls


def no_calls(_text: str, _schemas: Schemas) -> list[Call]:
  """Of a format whose header covers every call that there can be."""
  return []
