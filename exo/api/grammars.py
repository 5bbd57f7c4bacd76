"""What a request allows its answer to be, as a grammar in llguidance's notation (a dialect of Lark)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from exo.api.chat_request import Tool
from exo.api.formats.tool_format import ToolFormat
from exo.api.thinking import Thinking
from exo.inference.tokenizer import Tokenizer

MAX_CALLS = 8
# one line break and some indentation: a small model otherwise writes spaces without end
_WHITESPACE = r"\n?[ ]{0,12}"


def _json_rule(schema: Mapping[str, Any], lenient: bool) -> str:
  options = {"whitespace_pattern": _WHITESPACE, "lenient": lenient}
  return "%json " + json.dumps(dict(schema) | {"x-guidance": options})


def _closed(schema: Any) -> Any:
  """A tool's schema in which objects have the properties that are named and no others, unless it says otherwise."""
  if isinstance(schema, list):
    return [_closed(item) for item in schema]
  if not isinstance(schema, dict):
    return schema
  closed = {key: value if key in ("enum", "const", "default") else _closed(value) for key, value in schema.items()}
  if schema.get("type") == "object" and isinstance(schema.get("properties"), dict):
    closed.setdefault("additionalProperties", False)
  return closed


class _Writer:
  """Texts as grammar terms: names of special tokens become those tokens."""
  def __init__(self, tokenizer: Tokenizer) -> None:
    self._tokenizer = tokenizer

  def text(self, text: str) -> str:
    """A term for exactly this text; "" for none."""
    names = sorted((name for name in self._tokenizer.special_names if name in text), key=len, reverse=True)
    if not names:
      return json.dumps(text) if text else ""
    pieces = re.split("(" + "|".join(map(re.escape, names)) + ")", text)
    return " ".join(self._term(piece) for piece in pieces if piece)

  def _term(self, piece: str) -> str:
    special = self._tokenizer.special_names.get(piece)
    return json.dumps(piece) if special is None else f"<[{special}]>"

  def through(self, rule: str, marker: str) -> str:
    """A rule for any text up to and including `marker`."""
    if (special := self._tokenizer.special_id(marker)) is not None:
      return f"{rule}: TEXT <[{special}]>"
    return f"{rule}[lazy]: TEXT {json.dumps(marker)}"


def answer_grammar(
    tokenizer: Tokenizer,
    *,
    schema: Mapping[str, Any] | None,
    tools: Sequence[Tool],
    form: ToolFormat | None,
    must_call: bool,
    one_call: bool,
    thinking: Thinking | None,
    lenient: bool,
    before_answer: str = ""
) -> str:
  """The grammar of an answer; "" where everything is allowed.

  `schema`: the answer is JSON of it, after the text `before_answer`. `must_call`: the answer is a call. Otherwise text in
  which every call, once it has begun, is one of the tools' with arguments that its schema allows.
  """
  write = _Writer(tokenizer)
  rules = [r"TEXT: /(.|\n)*/"]
  calls = ""
  if form is not None and form.can_force:
    most = 1 if one_call or form.single else MAX_CALLS
    calls = _calls(write, rules, tools, form, lenient, most, free=not must_call and schema is None)
  if must_call:
    body = calls
  elif schema is not None:
    rules.append("json_answer: " + _json_rule(schema, lenient=False))
    answer = f"{write.text(before_answer)} json_answer".strip()
    body = f"{answer} | {calls}" if calls else answer
  elif calls and form is not None and not form.bare and form.guided:
    body = f"{calls} TEXT"
  else:
    return ""
  if thinking is not None and thinking.open_already:
    rules.append(write.through("thoughts", thinking.end))
    body = f"thoughts ({body})"
  elif thinking is not None and not must_call and schema is None and tokenizer.special_id(thinking.begin) is not None:
    return ""  # free text would forbid the thinking's tokens
  return "\n".join([f"start: {body}", *rules])


def _calls(
    write: _Writer, rules: list[str], tools: Sequence[Tool], form: ToolFormat, lenient: bool, most: int, *, free: bool
) -> str:
  """Add rules for calls; returns the term for them. `free`: text may stand before each."""
  begin = "" if form.bare else form.begins[0]
  before, after, end = form.before_name, form.after_arguments, form.end
  if form.listed:
    before, after = before.removeprefix("["), after.removesuffix("]")
  elif not form.sections:
    after, end = after + end, ""
  names = []
  for i, tool in enumerate(tools):
    tool_lenient = lenient and not tool.function.strict
    rules.append(f"arguments_{i}: " + _json_rule(_closed(tool.function.schema), tool_lenient))
    head = write.text(before + tool.function.name + form.before_arguments)
    rules.append(f"call_{i}: {head} arguments_{i} {write.text(after)}")
    names.append(f"call_{i}")
  rules.append("call: " + " | ".join(names))
  if form.listed or form.sections:
    more = ('("," call)' if form.listed else "(call)") + f"{{0,{most - 1}}}" if most > 1 else ""
    body = " ".join(('"["' if form.listed else "", "call", more, write.text("]" * form.listed + end))).strip()
    if free:
      rules.append(write.through("call_begin", begin))
      return f"(call_begin {body})?"
    return f"{write.text(begin)} {body}"
  if free:
    rules.append(write.through("call_begin", begin))
    return f"(call_begin call){{0,{most}}}"
  separator = '"; " ' if form.bare else ""
  first = f"{write.text(begin)} call" if begin else "call"
  return f"{first} ({separator}{first}){{0,{most - 1}}}" if most > 1 else first
