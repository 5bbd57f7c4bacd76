"""What a request allows its answer to be, as a grammar in llguidance's notation (a dialect of Lark)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from exo.api.chat_request import Tool
from exo.api.constraints import Wanted
from exo.api.formats.tool_format import ToolFormat
from exo.api.thinking import Thinking
from exo.inference.tokenizer import Tokenizer

MAX_CALLS = 8
# one line break and some indentation: a small model otherwise writes spaces without end
_WHITESPACE = r"\n?[ ]{0,12}"
_NAME = "wanted_by_the_client"


def _json_rule(schema: Mapping[str, Any], lenient: bool) -> str:
  options = {"whitespace_pattern": _WHITESPACE, "lenient": lenient}
  return "%json " + json.dumps(dict(schema) | {"x-guidance": options})


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
    wanted: Wanted | None,
    tools: Sequence[Tool],
    form: ToolFormat | None,
    must_call: bool,
    one_call: bool,
    thinking: Thinking | None,
    lenient: bool,
    before_answer: str = ""
) -> str:
  """The grammar of an answer; "" where everything is allowed.

  `wanted`: what the answer is, after the text `before_answer`. `must_call`: the answer is a call. Otherwise text in
  which every call, once it has begun, is one of the tools' with arguments that its schema allows.
  """
  write = _Writer(tokenizer)
  rules = [r"TEXT: /(.|\n)*/"]
  calls = ""
  if form is not None and form.can_force:
    most = 1 if one_call or form.single else MAX_CALLS
    calls = _calls(write, rules, tools, form, lenient, most, free=not must_call and wanted is None)
  if must_call:
    body = calls
  elif wanted is not None:
    if wanted.kind == "grammar" and not (calls or before_answer or (thinking is not None and thinking.open_already)):
      return str(wanted.value)
    rules.append(_wanted_rule(wanted))
    answer = f"{write.text(before_answer)} wanted".strip()
    body = f"{answer} | {calls}" if calls else answer
  elif calls and form is not None and not form.bare and form.guided:
    body = f"{calls} TEXT"
  else:
    return ""
  if thinking is not None and thinking.open_already:
    rules.append(write.through("thoughts", thinking.end))
    body = f"thoughts ({body})"
  elif thinking is not None and not must_call and wanted is None and tokenizer.special_id(thinking.begin) is not None:
    return ""  # free text would forbid the thinking's tokens
  whole = "\n".join([f"start: {body}", *rules])
  if wanted is None or wanted.kind != "grammar" or must_call:
    return whole
  # a grammar of the client's has names of its own
  return json.dumps({"grammars": [{"lark_grammar": whole}, {"name": _NAME, "lark_grammar": wanted.value}]})


def text_grammar(wanted: Wanted | None) -> str:
  """Of a text that is nothing but what is wanted; "" where everything is allowed."""
  if wanted is None:
    return ""
  return str(wanted.value) if wanted.kind == "grammar" else f"start: wanted\n{_wanted_rule(wanted)}"


def _wanted_rule(wanted: Wanted) -> str:
  if wanted.kind == "schema":
    return "wanted: " + _json_rule(wanted.value, wanted.lenient)
  if wanted.kind == "choice":
    return "wanted: " + " | ".join(json.dumps(choice) for choice in dict.fromkeys(wanted.value))
  return f"wanted: @{_NAME}" if wanted.kind == "grammar" else f"wanted: WANTED\nWANTED: {_regex(wanted.value)}"


def _regex(pattern: str) -> str:
  """A regular expression for a whole text as a term."""
  if pattern.startswith("^"):
    pattern = pattern[1:]
  if pattern.endswith("$") and (len(pattern) - len(pattern[:-1].rstrip("\\"))) % 2:
    pattern = pattern[:-1]
  escaped = re.sub(r"(\\.)|/", lambda found: found[1] or r"\/", pattern, flags=re.DOTALL)
  return "/" + escaped.replace("\r", r"\r").replace("\n", r"\n") + "/"


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
    rules.append(f"arguments_{i}: " + _json_rule(tool.function.schema, lenient))
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
