"""Reads gpt-oss: messages with a header each, whose channel says whether they are thoughts, content or a call."""

from __future__ import annotations

import re
from collections.abc import Iterator

from exo.api.bracket_scan import BracketScan
from exo.api.chat_parts import CallArguments, CallBegin, Content, Part, Reasoning, overlap
from exo.api.formats.tool_format import Schemas
from exo.api.mode_parser import ModeParser

_MESSAGE = "<|message|>"
_HEADS = ("<|start|>", "<|channel|>", "<|constrain|>", _MESSAGE, "to=")
_ENDS = ("<|end|>", "<|return|>", "<|call|>")
_NEXT = ("<|start|>", "<|channel|>")  # of a model that forgot to end its message
_LONGEST_HEADER = 400  # characters after which what looked like one is text
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_BETWEEN = "\n\n"  # of messages of the same kind


class HarmonyParser(ModeParser):
  """An `AnswerParser` of an answer that begins in a header, as the prompt ends after `<|start|>assistant`.

  Calls of functions without a schema in `schemas`, and of anything else, are text with their header.
  """
  def __init__(self, schemas: Schemas) -> None:
    self._schemas = schemas
    super().__init__()
    self._kind: type[Content | Reasoning] = Content
    self._said: set[type[Content | Reasoning]] = set()  # the kinds of which there is some
    self._new = False  # nothing of this message has been given yet
    self._header = ""  # of the message that may be a call
    self._name = ""
    self._scan = BracketScan()
    self._mode = self._head

  @property
  def thinking(self) -> bool:
    return self._mode == self._body and self._kind is Reasoning

  # modes

  def _head(self) -> Iterator[Part]:
    yield from ()
    begun = self._buffer.lstrip()
    if not begun or (not self._final and any(head.startswith(begun) for head in _HEADS)):
      return
    if not begun.startswith(_HEADS):
      self._begin(Content)  # without a header
      return
    at = self._buffer.find(_MESSAGE, 0, _LONGEST_HEADER)
    if at >= 0:
      header, self._buffer = self._buffer[:at + len(_MESSAGE)], self._buffer[at + len(_MESSAGE):]
      yield from self._opened(header)
    elif len(self._buffer) >= _LONGEST_HEADER:
      self._begin(Content)
      text, self._buffer = self._buffer[:_LONGEST_HEADER], self._buffer[_LONGEST_HEADER:]
      yield from self._give(text)
    elif self._final and begun.startswith("<"):
      self._buffer = ""  # an answer that was cut in a header: there is no text in it
    elif self._final:
      self._begin(Content)

  def _opened(self, header: str) -> Iterator[Part]:
    recipient, channel = _RECIPIENT.search(header), _CHANNEL.search(header)
    if recipient is None:
      self._begin(Reasoning if channel is not None and channel[1] == "analysis" else Content)
      return
    name = recipient[1].removeprefix("functions.")
    if name in self._schemas and recipient[1].startswith("functions."):
      self._header, self._name, self._mode = header, name, self._call
    elif recipient[1] == "assistant":
      self._begin(Content)
    else:
      self._begin(Content)
      yield from self._give(header)

  def _begin(self, kind: type[Content | Reasoning]) -> None:
    self._kind, self._new, self._mode = kind, True, self._body

  def _give(self, text: str) -> Iterator[Part]:
    if not text:
      return
    if self._new and self._kind in self._said:
      yield self._kind(_BETWEEN)
    self._new = False
    self._said.add(self._kind)
    yield self._kind(text)

  def _body(self) -> Iterator[Part]:
    at, marker = self._next_marker()
    if at < 0:
      at = len(self._buffer) - (0 if self._final else overlap(self._buffer, (*_ENDS, *_NEXT)))
    text, self._buffer = self._buffer[:at], self._buffer[at:]
    yield from self._give(text)
    if marker:
      self._end(marker)

  def _next_marker(self) -> tuple[int, str]:
    return min(((i, m) for m in (*_ENDS, *_NEXT) if (i := self._buffer.find(m)) >= 0), default=(-1, ""))

  def _end(self, marker: str) -> None:
    self._buffer = self._buffer.removeprefix(marker) if marker in _ENDS else self._buffer
    self._mode = self._head

  def _call(self) -> Iterator[Part]:
    """After the header of a call: arguments, none, or text."""
    begun = self._buffer.lstrip()
    if not self._final and (not begun or any(m.startswith(begun) and m != begun for m in _ENDS)):
      return
    if begun.startswith("{"):
      self._buffer, self._scan, self._mode = begun, BracketScan(), self._arguments
      yield CallBegin(self._calls, self._name)
    elif not begun or begun.startswith(_ENDS):
      yield CallBegin(self._calls, self._name)
      yield CallArguments(self._calls, "{}")
      self._calls += 1
      self._begin(Content)
      self._buffer = begun
    else:
      self._begin(Content)
      yield from self._give(self._header)

  def _arguments(self) -> Iterator[Part]:
    taken = self._scan.take(self._buffer)
    text, self._buffer = self._buffer[:taken], self._buffer[taken:]
    if text:
      yield CallArguments(self._calls, text)
    if self._scan.done:
      self._calls += 1
      self._mode = self._after_arguments

  def _after_arguments(self) -> Iterator[Part]:
    yield from ()
    self._buffer = self._buffer.lstrip()
    if self._buffer:
      self._begin(Content)
