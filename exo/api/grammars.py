"""What a request allows its answer to be, as a grammar in llguidance's notation (a dialect of Lark)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from exo.api.formats.tool_format import ToolFormat
from exo.api.thinking import Thinking
from exo.inference.tokenizer import Tokenizer

MAX_CALLS = 8


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
    answer: str,
    arguments: Mapping[str, str],
    form: ToolFormat | None,
    must_call: bool,
    one_call: bool,
    thinking: Thinking | None,
    before_answer: str = ""
) -> str:
  """The grammar of an answer; "" where everything is allowed.

  `answer`: a term for it, which comes after the text `before_answer`; "" for free text. `arguments`: by tool, a term for
  its arguments. `must_call`: the answer is a call. Otherwise text in which every call, once it has begun, is one of the
  tools' with such arguments.
  """
  write = _Writer(tokenizer)
  rules = [r"TEXT: /(.|\n)*/"]
  calls = ""
  if form is not None and form.can_force:
    most = 1 if one_call or form.single else MAX_CALLS
    calls = _calls(write, rules, arguments, form, most, free=not must_call and not answer)
  if must_call:
    body = calls
  elif answer:
    rules.append(f"held_answer: {answer}")
    body = f"{write.text(before_answer)} held_answer".strip()
    body = f"{body} | {calls}" if calls else body
  elif calls and form is not None and not form.bare and form.guided:
    body = f"{calls} TEXT"
  else:
    return ""
  if thinking is not None and thinking.open_already:
    rules.append(write.through("thoughts", thinking.end))
    body = f"thoughts ({body})"
  elif thinking is not None and not must_call and not answer and tokenizer.special_id(thinking.begin) is not None:
    return ""  # free text would forbid the thinking's tokens
  return "\n".join([f"start: {body}", *rules])


def _calls(
    write: _Writer, rules: list[str], arguments: Mapping[str, str], form: ToolFormat, most: int, *, free: bool
) -> str:
  """Add rules for calls; returns the term for them. `free`: text may stand before each."""
  begin = "" if form.bare else form.begins[0]
  before, after, end = form.before_name, form.after_arguments, form.end
  if form.listed:
    before, after = before.removeprefix("["), after.removesuffix("]")
  elif not form.sections:
    after, end = after + end, ""
  names = []
  for i, (name, rule) in enumerate(arguments.items()):
    rules.append(f"arguments_{i}: {rule}")
    head = write.text(before + name + form.before_arguments)
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
