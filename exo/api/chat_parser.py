"""Splits the text of a chat model into thoughts, content and tool calls, as it comes."""

from __future__ import annotations

import json
from collections.abc import Iterator

from exo.api.bracket_scan import BracketScan
from exo.api.chat_parts import CallArguments, CallBegin, Content, Part, Reasoning, overlap
from exo.api.formats.tool_format import Call, Schemas, ToolFormat
from exo.api.mode_parser import ModeParser
from exo.api.tagged_arguments import LONGEST_TAG, TaggedArguments
from exo.api.thinking import Thinking


class ChatParser(ModeParser):
  """An `AnswerParser` of thoughts at the beginning and calls of one format. Calls of tools without a schema in `schemas` are
  text, unless there are no schemas at all. `continued`: the text goes on with content that there is already.
  """
  def __init__(
      self,
      thinking: Thinking | None = None,
      form: ToolFormat | None = None,
      schemas: Schemas | None = None,
      *,
      continued: bool = False
  ) -> None:
    super().__init__()
    self._thinking, self._form, self._schemas = thinking, form, schemas or {}
    self._fresh = not continued  # no content yet: its leading whitespace is dropped, thoughts and bare calls may begin
    self._strip = False
    self._wrapped = False  # the content stands between markers of its own
    self._raw = ""  # what was taken since calls seemed to begin: text, if none does
    self._bare = False  # they began without a marker
    self._searched = 0  # up to where a call's end was looked for
    self._scan = BracketScan()
    self._arguments: TaggedArguments | None = None
    self._mode = self._thoughts if thinking is not None and thinking.open_already else self._content

  @property
  def thinking(self) -> bool:
    return self._mode == self._thoughts

  # modes

  def _thoughts(self) -> Iterator[Part]:
    assert self._thinking is not None
    calls = self._form.begins if self._form is not None and self._form.ends_thoughts else ()
    text, found = self._take_until((self._thinking.end, *calls))
    if text:
      yield Reasoning(text)
    if found == self._thinking.end:
      self._mode, self._strip = self._content, True
    elif found is not None:
      self._begin_calls(found)

  def _content(self) -> Iterator[Part]:
    if self._strip or (self._fresh and (self._form or self._thinking)):
      self._buffer = self._buffer.lstrip()
      if not self._buffer:
        return
    if self._fresh and self._waits_for_wrap():
      return
    if self._fresh and self._form is not None and self._form.bare and self._buffer.startswith(self._form.bare):
      self._begin_calls("", bare=True)
      return
    begins = self._form.begins if self._form is not None else ()
    thoughts = self._thinking_begins()
    wrap = (self._thinking.wrap[1], ) if self._thinking is not None and self._wrapped else ()
    text, found = self._take_until((*begins, *thoughts, *wrap), hold_space=bool(begins or wrap))
    if found is not None and found in thoughts and text.strip():
      text, found = text + found, None  # thoughts stand at the beginning only
    space = ""
    if found is not None:
      text, space = text.rstrip(), text[len(text.rstrip()):]
    if text:
      self._fresh = self._strip = False
      yield Content(text)
    if found is None:
      return
    if found in thoughts:
      self._mode = self._thoughts
    elif found in wrap:
      self._wrapped, self._strip = False, True
    else:
      self._begin_calls(found, space)

  def _thinking_begins(self) -> tuple[str, ...]:
    return (self._thinking.begin, ) if self._thinking is not None and self._fresh and not self._calls else ()

  def _waits_for_wrap(self) -> bool:
    """Take the marker before the content, where there is one; whether it may still become one."""
    begin = self._thinking.wrap[0] if self._thinking is not None else ""
    if not begin or self._wrapped:
      return False
    if self._buffer.startswith(begin):
      self._buffer, self._wrapped, self._strip = self._buffer[len(begin):].lstrip(), True, True
    return not self._buffer or (not self._final and begin.startswith(self._buffer))

  def _begin_calls(self, marker: str, space: str = "", *, bare: bool = False) -> None:
    self._raw, self._bare = space + marker, bare
    self._mode, self._searched = self._call, 0
    self._scan = BracketScan(quotes="\"'" if self._form is not None and self._form.bare == "[" else '"')

  def _call(self) -> Iterator[Part]:
    """After what opens a call, up to its arguments."""
    form = self._form
    assert form is not None
    end = self._end_of_calls()
    match = form.header.match(self._buffer, 0, LONGEST_TAG) if form.header is not None else None
    if match is not None and (end < 0 or match.end() <= end):
      name = next(group for group in match.groups() if group)
      if self._known(name):
        self._buffer, self._raw = self._buffer[match.end():], ""
        yield CallBegin(self._calls, name)
        self._begin_arguments(name)
        return
    if end >= 0:
      yield from self._whole(self._buffer[:end], form.end)
    elif self._final:
      yield from self._whole(self._buffer, "")
    elif not form.end or self._bare:
      yield from self._whole_value(refused=match is not None)

  def _end_of_calls(self) -> int:
    """Where the marker stands that closes them; -1 where it has not come yet or there is none."""
    assert self._form is not None
    if not self._form.end or self._bare:
      return -1
    found = self._buffer.find(self._form.end, max(0, self._searched - len(self._form.end)))
    self._searched = len(self._buffer)
    return found

  def _whole_value(self, refused: bool) -> Iterator[Part]:
    """Calls that nothing closes end where their brackets do; what is in none will not become a call any more once it is long."""
    begun = self._buffer.lstrip()
    if begun.startswith(("{", "[")):
      if not self._searched:
        self._searched = len(self._buffer) - len(begun)
      self._searched += self._scan.take(self._buffer[self._searched:])
      if self._scan.done:
        yield from self._whole(self._buffer[:self._searched], "")
    elif refused or len(self._buffer) >= LONGEST_TAG:
      yield from self._whole("", "")

  def _whole(self, body: str, end: str) -> Iterator[Part]:
    """Calls that are read at once, or text that only looked like them."""
    form = self._form
    assert form is not None
    calls: list[Call] = form.parse(body, self._schemas) if body.strip() else []
    rest = self._buffer[len(body) + len(end):]
    if calls and all(self._known(name) for name, _ in calls):
      self._buffer, self._raw = rest, ""
      self._mode, self._strip = self._content if end else self._after_call, True
      for name, arguments in calls:
        yield CallBegin(self._calls, name)
        yield CallArguments(self._calls, json.dumps(arguments, ensure_ascii=False))
        self._calls += 1
      return
    # another one may begin in it
    again = min((i for begin in form.begins if (i := body.find(begin)) >= 0), default=-1)
    text = self._raw + (body[:again] if again >= 0 else body + end)
    self._buffer = body[again:] + end + rest if again >= 0 else rest
    self._mode, self._raw, self._fresh, self._strip = self._content, "", False, False
    if text:
      yield Content(text)

  def _known(self, name: str) -> bool:
    return not self._schemas or name in self._schemas

  def _begin_arguments(self, name: str) -> None:
    assert self._form is not None
    if self._form.tagged is not None:
      self._arguments = TaggedArguments(self._form.tagged, self._schemas.get(name, {}), self._form.end)
      self._mode = self._tagged_arguments
    else:
      self._scan = BracketScan()
      self._mode = self._json_arguments

  def _tagged_arguments(self) -> Iterator[Part]:
    assert self._arguments is not None
    text, self._buffer = self._arguments.read(self._buffer, self._final)
    if text:
      yield CallArguments(self._calls, text)
    if self._arguments.done:
      self._calls += not self._arguments.cut
      self._mode = self._after_call

  def _json_arguments(self) -> Iterator[Part]:
    assert self._form is not None
    taken = self._scan.take(self._buffer)
    text, self._buffer = self._buffer[:taken], self._buffer[taken:]
    if text:
      yield CallArguments(self._calls, text)
    if self._scan.done:
      self._calls += 1
      self._scan, self._searched = BracketScan(depth=1), 0
      self._mode = self._rest_of_object if self._form.in_object else self._after_call

  def _rest_of_object(self) -> Iterator[Part]:
    """Members after the arguments, which nobody asked for, and the bracket."""
    yield from ()
    rest = self._buffer.lstrip()
    if not self._searched and rest and not rest.startswith((",", "}")):
      self._mode = self._after_call
      return
    self._searched = 1 if rest else self._searched
    self._buffer = self._buffer[self._scan.take(self._buffer):]
    if self._scan.done or self._final:
      self._mode = self._after_call

  def _after_call(self) -> Iterator[Part]:
    """What closes a call or all of them; then another one, or text."""
    form = self._form
    assert form is not None
    yield from ()
    rest = self._buffer.lstrip()
    for literal in (form.end, *form.closers):
      if literal and rest.startswith(literal):
        self._buffer, self._strip = rest[len(literal):], True
        self._mode = self._content if literal == form.end else self._after_call
        return
    if form.again and rest.startswith(form.again):
      self._buffer = rest
      self._begin_calls("")
    elif not any(marker.startswith(rest) for marker in (form.end, form.again, *form.closers, " ")):
      self._buffer, self._mode, self._strip, self._fresh = rest, self._content, True, False
    elif self._final:
      self._buffer = ""  # space, or the beginning of a marker: there is no text in it

  def _take_until(self, markers: tuple[str, ...], hold_space: bool = False) -> tuple[str, str | None]:
    """(text before the first marker, the marker), without what may be the beginning of one."""
    at, found = min(((i, m) for m in markers if (i := self._buffer.find(m)) >= 0), default=(-1, ""))
    if at >= 0:
      text, self._buffer = self._buffer[:at], self._buffer[at + len(found):]
      return text, found
    keep = 0
    if not self._final:
      keep = overlap(self._buffer, markers)
      if hold_space:
        body = self._buffer[:len(self._buffer) - keep]
        keep += len(body) - len(body.rstrip())
    text, self._buffer = self._buffer[:len(self._buffer) - keep], self._buffer[len(self._buffer) - keep:]
    return text, None
