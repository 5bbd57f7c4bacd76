"""Arguments between tags, turned into JSON as they come: each text in pieces, every other value when it is whole."""

from __future__ import annotations

import json
from typing import Any

from exo.api.chat_parts import overlap
from exo.api.formats.tool_format import Tagged
from exo.api.formats.values import is_text, typed

LONGEST_TAG = 400  # characters after which what looked like the beginning of a call or an argument is text
_TEXT, _JSON = frozenset({"true", "string"}), frozenset({"false", "number", "boolean", "object", "array", "null"})


class TaggedArguments:
  """Of one call to a tool with this schema. `end` closes the call too, where its own end was forgotten."""
  def __init__(self, tagged: Tagged, schema: dict[str, Any], end: str) -> None:
    self._tags, self._end = tagged, end
    properties = schema.get("properties")
    self._properties: dict[str, Any] = properties if isinstance(properties, dict) else {}
    self._first = True
    self._within = False  # a value
    self._begun = False  # to give it
    self._schema: Any = None
    self.done = False
    self.cut = False  # within a value

  def read(self, buffer: str, final: bool) -> tuple[str, str]:
    """(JSON that is certain by now, what is left of the buffer). Once it is `done`, that is what follows the call."""
    written = ""
    while not self.done:
      before = (len(buffer), self._within)
      text, buffer = self._value(buffer, final) if self._within else self._between(buffer, final)
      written += text
      if before == (len(buffer), self._within):
        break
    return written, buffer

  def _between(self, buffer: str, final: bool) -> tuple[str, str]:
    match = self._tags.key.match(buffer, 0, LONGEST_TAG)
    if match is not None:
      name = match["key"].strip()
      kind = match.groupdict().get("type")
      schema = self._properties.get(name)
      self._schema = {"type": "string"} if kind in _TEXT else None if kind in _JSON else schema
      written = ("{" if self._first else ", ") + json.dumps(name, ensure_ascii=False) + ": "
      self._first, self._within, self._begun = False, True, False
      return written + ('"' if is_text(self._schema) else ""), buffer[match.end():]
    rest = buffer.lstrip()
    for literal in (self._tags.done, self._end):
      if literal and rest.startswith(literal):
        # the end of all calls is the parser's
        return self._close(), rest if literal == self._end else rest[len(literal):]
    if final or (rest and not rest.startswith("<")) or len(buffer) >= LONGEST_TAG:
      return self._close(), buffer
    return "", buffer

  def _close(self) -> str:
    self.done = True
    return "{}" if self._first else "}"

  def _value(self, buffer: str, final: bool) -> tuple[str, str]:
    at = buffer.find(self._tags.close)
    if is_text(self._schema):
      return self._text(buffer, at, final)
    if at >= 0:
      self._within = False
      return json.dumps(typed(self._bare(buffer[:at]), self._schema),
                        ensure_ascii=False), buffer[at + len(self._tags.close):]
    if not final:
      return "", buffer
    self.done = self.cut = True  # JSON as far as it goes
    return self._bare(buffer), ""

  def _text(self, buffer: str, at: int, final: bool) -> tuple[str, str]:
    found = at >= 0
    if not found:
      at = len(buffer) - (0 if final else overlap(buffer, (self._tags.close, )))
      if self._tags.lines and not final and buffer[:at].endswith("\n"):
        at -= 1  # the value's own end, perhaps
    text = buffer[:at]
    if self._tags.lines and found:
      text = text.removesuffix("\n")
    if self._tags.lines and not self._begun:
      text = text.removeprefix("\n")
    self._begun = self._begun or at > 0
    written = json.dumps(text, ensure_ascii=False)[1:-1]
    if found:
      self._within = False
      return written + '"', buffer[at + len(self._tags.close):]
    self.done = self.cut = final
    return written, buffer[at:]

  def _bare(self, text: str) -> str:
    return text.removeprefix("\n").removesuffix("\n") if self._tags.lines else text
