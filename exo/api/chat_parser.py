"""Splits the text of a chat model into thoughts, content and tool calls, as it comes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from exo.api.grammars import Thinking
from exo.api.tool_formats import ToolFormat

_LONGEST_HEADER = 400  # characters after which what looked like a call is text


@dataclass(frozen=True, slots=True)
class Content:
  text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
  text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
  """A call to `name`; its arguments follow in pieces."""
  index: int
  name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
  index: int
  text: str


Part = Content | Reasoning | CallBegin | CallArguments


class ChatParser:
  """`push` text as it comes, `finish` at its end; both give what is certain by then."""
  def __init__(
      self,
      thinking: Thinking | None = None,
      form: ToolFormat | None = None,
      schemas: Mapping[str, dict[str, Any]] = {}
  ) -> None:
    self._thinking, self._form, self._schemas = thinking, form, schemas
    self._buffer = ""
    self._final = False
    self._calls = 0
    self._fresh = True  # no content yet: its leading whitespace is dropped, thoughts and bare calls may begin
    self._strip = False
    self._scan = _ArgumentScan()
    self._mode = self._thoughts if thinking is not None and thinking.open_already else self._content

  @property
  def called(self) -> bool:
    return self._calls > 0

  @property
  def thinking(self) -> bool:
    return self._mode == self._thoughts

  def push(self, text: str) -> list[Part]:
    self._buffer += text
    return list(self._run())

  def finish(self) -> list[Part]:
    self._final = True
    return list(self._run())

  def _run(self) -> Iterator[Part]:
    """Let the modes work until none of them can go on."""
    while True:
      before = (len(self._buffer), self._mode)
      yield from self._mode()
      if (len(self._buffer), self._mode) == before or not self._buffer:
        return

  # modes: each takes what it can from the buffer

  def _thoughts(self) -> Iterator[Part]:
    assert self._thinking is not None
    text, found = self._take_until((self._thinking.end, ))
    if text:
      yield Reasoning(text)
    if found is not None:
      self._mode, self._strip = self._content, True

  def _content(self) -> Iterator[Part]:
    if self._strip or (self._fresh and (self._form or self._thinking)):
      self._buffer = self._buffer.lstrip()
      if not self._buffer:
        return
    if self._fresh and self._form is not None and self._form.bare and self._buffer.startswith("{"):
      self._mode = self._call
      return
    begins = self._form.begins if self._form is not None else ()
    thinking = (self._thinking.begin, ) if self._thinking is not None and self._fresh and not self._calls else ()
    text, found = self._take_until((*begins, *thinking), hold_space=bool(begins))
    if found is not None and found in thinking and text.strip():
      text, found = text + found, None  # thoughts stand at the beginning only
    if found is not None:
      text = text.rstrip()
    if text:
      self._fresh = self._strip = False
      yield Content(text)
    if found is not None:
      self._mode = self._thoughts if found in thinking else self._call

  def _call(self) -> Iterator[Part]:
    """After what opens a call, up to its arguments."""
    form = self._form
    assert form is not None
    match = form.header.match(self._buffer) if form.header is not None else None
    end = self._buffer.find(form.end) if form.end else -1
    if match is not None and (end < 0 or match.end() <= end):
      self._buffer = self._buffer[match.end():]
      self._scan = _ArgumentScan()
      self._mode = self._arguments
      yield CallBegin(self._calls, match[1])
      return
    if end >= 0:
      yield from self._whole_call(self._buffer[:end], form.end)
    elif self._final or (form.header is not None and not form.end and self._hopeless()):
      yield from self._whole_call(self._buffer, "")

  def _hopeless(self) -> bool:
    """Without an end marker, what goes on for long or is whole JSON will not become a header any more."""
    if len(self._buffer) > _LONGEST_HEADER:
      return True
    assert self._form is not None
    return bool(self._buffer.endswith(("}", "]")) and self._form.parse(self._buffer, self._schemas))

  def _whole_call(self, body: str, end: str) -> Iterator[Part]:
    """Calls that are read at once, or text that only looked like them."""
    form = self._form
    assert form is not None
    calls = form.parse(body, self._schemas)
    self._buffer = self._buffer[len(body) + len(end):]
    self._mode, self._strip = self._content, bool(calls)
    for name, arguments in calls:
      yield CallBegin(self._calls, name)
      yield CallArguments(self._calls, json.dumps(arguments, ensure_ascii=False))
      self._calls += 1
    if not calls:
      self._fresh = False
      opened = "" if form.bare and body.lstrip().startswith("{") else form.begins[0]
      yield Content(opened + body + end)

  def _arguments(self) -> Iterator[Part]:
    taken = self._scan.take(self._buffer)
    text, self._buffer = self._buffer[:taken], self._buffer[taken:]
    if text:
      yield CallArguments(self._calls, text)
    if self._scan.done:
      self._calls += 1
      self._mode = self._after_call

  def _after_call(self) -> Iterator[Part]:
    """What closes a call; then another one, or text."""
    form = self._form
    assert form is not None
    yield from ()
    self._strip = True
    if form.end:
      if (end := self._buffer.find(form.end)) >= 0:
        self._buffer = self._buffer[end + len(form.end):]
        self._mode = self._content
      elif self._final:
        self._buffer = ""
      return
    rest = self._buffer.lstrip()
    if form.after_arguments.startswith("}"):
      if not rest.startswith("}"):
        self._buffer = rest if rest else self._buffer
        if rest:
          self._mode = self._content
        return
      rest = rest[1:].lstrip()
      if not rest and not self._final:
        return  # a comma may come
    if rest.startswith(("]", ";")):
      self._buffer, self._mode = rest[1:], self._content
      self._fresh = rest.startswith(";")  # a bare call may follow
    elif rest.startswith(",") and form.listed:
      self._buffer, self._mode = rest, self._call
    elif rest or self._final:
      self._buffer, self._mode = rest, self._content
      self._fresh = form.bare and rest.startswith("{")

  def _take_until(self, markers: tuple[str, ...], hold_space: bool = False) -> tuple[str, str | None]:
    """(text before the first marker, the marker), without what may be the beginning of one."""
    at, found = min(((i, m) for m in markers if (i := self._buffer.find(m)) >= 0), default=(-1, ""))
    if at >= 0:
      text, self._buffer = self._buffer[:at], self._buffer[at + len(found):]
      return text, found
    keep = 0
    if not self._final:
      keep = _overlap(self._buffer, markers)
      if hold_space:
        body = self._buffer[:len(self._buffer) - keep]
        keep += len(body) - len(body.rstrip())
    text, self._buffer = self._buffer[:len(self._buffer) - keep], self._buffer[len(self._buffer) - keep:]
    return text, None


def _overlap(text: str, markers: tuple[str, ...]) -> int:
  """How many characters at the end of `text` begin a marker."""
  longest = min(len(text), max((len(m) for m in markers), default=1) - 1)
  return next((n for n in range(longest, 0, -1) if any(m.startswith(text[-n:]) for m in markers)), 0)


class _ArgumentScan:
  """Finds the end of a JSON object that comes in pieces."""
  def __init__(self) -> None:
    self._depth, self._in_string, self._escaped = 0, False, False
    self.done = False

  def take(self, text: str) -> int:
    """How many characters of `text` belong to the object."""
    for i, c in enumerate(text):
      if self._escaped:
        self._escaped = False
      elif self._in_string:
        self._escaped, self._in_string = c == "\\", c != '"'
      elif c == '"':
        self._in_string = True
      elif c in "{[":
        self._depth += 1
      elif c in "}]":
        self._depth -= 1
        if self._depth == 0:
          self.done = True
          return i + 1
    return len(text)
