"""How each family of models writes tool calls, and which family a chat template belongs to.

Most write a name and JSON between fixed texts: they can be read as they come and forced by a grammar. The others are
read when a call is whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Call = tuple[str, dict[str, Any]]  # name, arguments
Parse = Callable[[str, Mapping[str, dict[str, Any]]], list[Call]]  # of the text between the markers, and the schemas
_NAME = r"[A-Za-z0-9_.-]{1,64}"


@dataclass(frozen=True)
class ToolFormat:
  """`begins` may each open a call, the first is what we write; `end` closes it ("" where the JSON's end does).

  A call is written `begins[0] + before_name + NAME + before_arguments + ARGUMENTS + after_arguments + end`. `header`
  matches what stands before the arguments when they can be read as they come. `bare`: a call may begin without a marker.
  """
  name: str
  begins: tuple[str, ...]
  end: str
  before_name: str
  before_arguments: str
  after_arguments: str
  parse: Parse
  header: re.Pattern[str] | None = None
  bare: bool = False
  id_length: int = 0  # of call ids, where templates insist on one; else 0
  can_force: bool = True
  listed: bool = field(default=False)  # one marker, then a JSON list of calls


def _objects(text: str) -> list[dict[str, Any]]:
  """The JSON objects in a text, one after another or in lists."""
  decoder, found, at = json.JSONDecoder(), list[dict[str, Any]](), 0
  while (at := _next_bracket(text, at)) >= 0:
    try:
      value, at = decoder.raw_decode(text, at)
    except (ValueError, RecursionError):
      return []
    found.extend(v for v in (value if isinstance(value, list) else [value]) if isinstance(v, dict))
  return found


def _next_bracket(text: str, at: int) -> int:
  return min((i for c in "{[" if (i := text.find(c, at)) >= 0), default=-1)


def _json_calls(text: str, _: Mapping[str, dict[str, Any]]) -> list[Call]:
  """`{"name": …, "arguments" or "parameters": {…} or a string of it}`, in any order, also within `function`."""
  calls: list[Call] = []
  for found in _objects(text):
    within = found.get("function")
    value: dict[str, Any] = within if isinstance(within, dict) else found
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
      try:
        arguments = json.loads(arguments)
      except ValueError:
        return []
    if not isinstance(value.get("name"), str) or not isinstance(arguments, dict):
      return []
    calls.append((value["name"], arguments))
  return calls


def _named_calls(text: str, schemas: Mapping[str, dict[str, Any]]) -> list[Call]:
  """`NAME[ARGS]{…}`, or a list of JSON calls."""
  calls, at = list[Call](), 0
  while match := re.compile(rf"\s*({_NAME})\s*(?:\[CALL_ID\]\w+)?\s*\[ARGS\]\s*").match(text, at):
    try:
      arguments, at = json.JSONDecoder().raw_decode(text, match.end())
    except (ValueError, RecursionError):
      return []
    calls.append((match[1], arguments))
  return calls or _json_calls(text, schemas)


def _tagged_calls(text: str, _: Mapping[str, dict[str, Any]]) -> list[Call]:
  """`NAME>{…}`."""
  name, _sep, body = text.partition(">")
  objects = _objects(body) if body.strip() else [{}]
  return [(name.strip(), objects[0])] if re.fullmatch(_NAME, name.strip()) and len(objects) == 1 else []


def _xml_calls(text: str, schemas: Mapping[str, dict[str, Any]]) -> list[Call]:
  """Qwen 3 Coder's `<function=NAME><parameter=KEY>VALUE</parameter>…</function>`; plain JSON calls too."""
  if not (match := re.search(rf"<function=({_NAME})>(.*?)(?:</function>|$)", text, re.DOTALL)):
    return _json_calls(text, schemas)
  properties = schemas.get(match[1], {}).get("properties", {})
  arguments = {}
  for key, value in re.findall(r"<parameter=([^>]+)>\n?(.*?)\n?</parameter>", match[2], re.DOTALL):
    arguments[key] = _typed(value, properties.get(key, {}))
  return [(match[1], arguments)]


def _typed(text: str, schema: Any) -> Any:
  """A value that the model wrote without quotes: text where the schema says so, else the JSON that it is."""
  if isinstance(schema, dict) and schema.get("type") == "string":
    return text
  try:
    return json.loads(text)
  except (ValueError, RecursionError):
    return text


def _gemma_calls(quote: str) -> Parse:
  """`call:NAME{key:VALUE,…}` with strings between `quote`s and bare keys."""
  string = re.compile(re.escape(quote) + "(.*?)" + re.escape(quote), re.DOTALL)

  def parse(text: str, _: Mapping[str, dict[str, Any]]) -> list[Call]:
    calls: list[Call] = []
    for part in re.split(r"(?:^|(?<=\}))\s*,?\s*call:", text)[1:]:
      name, _brace, body = part.partition("{")
      strings: list[str] = []

      def keep(match: re.Match[str], strings: list[str] = strings) -> str:
        strings.append(match[1])
        return f'"\0{len(strings) - 1}"'

      written = re.sub(r"([{,]\s*)([\w-]+)\s*:", r'\1"\2":', "{" + string.sub(keep, body))
      try:
        arguments = json.loads(_quote_bare(written), strict=False)
      except (ValueError, RecursionError):
        return []
      calls.append((name.strip(), _restore(arguments, strings)))
    return calls

  return parse


def _quote_bare(text: str) -> str:
  """Words in the place of a value become strings."""
  return re.sub(r"(:\s*)(?!true\b|false\b|null\b)([A-Za-z][^,}\]]*)", lambda m: m[1] + json.dumps(m[2].strip()), text)


def _restore(value: Any, strings: Sequence[str]) -> Any:
  if isinstance(value, str) and value.startswith("\0"):
    return strings[int(value[1:])]
  if isinstance(value, dict):
    return {key: _restore(v, strings) for key, v in value.items()}
  return [_restore(v, strings) for v in value] if isinstance(value, list) else value


_JSON_HEADER = re.compile(rf'\s*\{{\s*"name"\s*:\s*"({_NAME})"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{{)')
_LIST_HEADER = re.compile(rf'\s*[\[,]\s*\{{\s*"name"\s*:\s*"({_NAME})"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{{)')
_NAMED_HEADER = re.compile(rf"\s*({_NAME})\s*(?:\[CALL_ID\]\w+)?\s*\[ARGS\]\s*(?=\{{)")
_TAGGED_HEADER = re.compile(rf"({_NAME})>\s*(?=\{{)")

# Qwen 2.5 and 3, Hermes, and every template of its own that we ask in our own words
HERMES = ToolFormat(
    "hermes", ("<tool_call>", ), "</tool_call>", '\n{"name": "', '", "arguments": ', "}\n", _json_calls, _JSON_HEADER
)
LLAMA3 = ToolFormat(
    "llama3", ("<|python_tag|>", ), "", '{"name": "', '", "parameters": ', "}", _json_calls, _JSON_HEADER, bare=True
)
MISTRAL = ToolFormat(
    "mistral", ("[TOOL_CALLS]", ),
    "",
    '[{"name": "',
    '", "arguments": ',
    "}]",
    _json_calls,
    _LIST_HEADER,
    id_length=9,
    listed=True
)
MISTRAL_NAMED = ToolFormat(
    "mistral-named", ("[TOOL_CALLS]", ), "", "", "[ARGS]", "", _named_calls, _NAMED_HEADER, id_length=9
)
FUNCTIONARY = ToolFormat("functionary", ("<function=", ), "</function>", "", ">", "", _tagged_calls, _TAGGED_HEADER)
QWEN_CODER = ToolFormat("qwen-coder", ("<tool_call>", ), "</tool_call>", "", "", "", _xml_calls, can_force=False)
FUNCTION_GEMMA = ToolFormat(
    "function-gemma", ("<start_function_call>", ),
    "<end_function_call>",
    "",
    "",
    "",
    _gemma_calls("<escape>"),
    can_force=False
)
GEMMA = ToolFormat("gemma", ("<|tool_call>", ), "<tool_call|>", "", "", "", _gemma_calls('<|"|>'), can_force=False)

# the first whose mark the template bears
_MARKS: tuple[tuple[str, ToolFormat], ...] = (
    ("<start_function_call>", FUNCTION_GEMMA),
    ("<|tool_call>", GEMMA),
    ("[ARGS]", MISTRAL_NAMED),
    ("[TOOL_CALLS]", MISTRAL),
    ("<parameter=", QWEN_CODER),
    ("<tool_call>", HERMES),
    ("<function=", FUNCTIONARY),
    ("<|python_tag|>", LLAMA3),
    ('"parameters":', LLAMA3),
)


def tool_format(template: str | None) -> ToolFormat | None:
  """The format of the model with this chat template; None when the template knows nothing of tools."""
  if not template or "tools" not in template:
    return None
  return next((tools for mark, tools in _MARKS if mark in template), HERMES)
