"""Calls that are written as Python: `[get_weather(city="Paris", days=3), now()]`."""

from __future__ import annotations

import ast
import json
import warnings
from typing import Any

from exo.api.formats.json_calls import json_calls
from exo.api.formats.tool_format import Call, Schemas, ToolFormat

_MOST = 64 * 1024  # characters; Python's parser takes much memory for each
_CONSTANTS = {"true": True, "false": False, "null": None}


def python_calls(text: str, schemas: Schemas) -> list[Call]:
  """The text is parsed and never run. What is no list of calls with named arguments gives none; JSON calls are read too."""
  source = text.strip()
  if len(source) > _MOST:
    return []
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # of escapes that Python does not like
      tree = ast.parse(source, mode="eval").body
    nodes = tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree]
    calls = [_call(node) for node in nodes]
    json.dumps(calls, allow_nan=False)
    return calls
  except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
    return json_calls(text, schemas)


def _call(node: ast.expr) -> Call:
  if not isinstance(node, ast.Call) or node.args:
    raise ValueError("no call with named arguments")
  return _name(node.func), {_key(keyword): _value(keyword.value) for keyword in node.keywords}


def _name(node: ast.expr) -> str:
  if isinstance(node, ast.Attribute):
    return f"{_name(node.value)}.{node.attr}"
  if isinstance(node, ast.Name):
    return node.id
  raise ValueError("no name")


def _key(keyword: ast.keyword) -> str:
  if keyword.arg is None:
    raise ValueError("`**` is no argument")
  return keyword.arg


def _value(node: ast.expr) -> Any:
  """A literal, in which JSON's words for constants are allowed too."""
  if isinstance(node, ast.Name) and node.id in _CONSTANTS:
    return _CONSTANTS[node.id]
  if isinstance(node, ast.List | ast.Tuple):
    return [_value(item) for item in node.elts]
  if isinstance(node, ast.Dict):
    return {_text(key): _value(value) for key, value in zip(node.keys, node.values, strict=True)}
  value = ast.literal_eval(node)
  if not isinstance(value, str | int | float | bool | None):
    raise ValueError("JSON has no such value")
  return value


def _text(node: ast.expr | None) -> str:
  if isinstance(node, ast.Constant) and isinstance(node.value, str):
    return node.value
  raise ValueError("no key of an object")


# what Llama 3.2 and 4 are asked for by the templates that want Python of them
PYTHONIC = ToolFormat("pythonic", ("<|python_start|>", ), "", python_calls, closers=("<|python_end|>", ), bare="[")
