"""One text out of a JSON object that comes in pieces."""

from __future__ import annotations

import json
import re

# what stands for whole characters: not the beginning of an escape, nor half of a pair of surrogates
_WHOLE = re.compile(
    r'(?:[^"\\]|\\["\\/bfnrt]|\\u(?![dD][89abAB])[0-9a-fA-F]{4}|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})*'
)


class StringField:
  """The value of the field `name`, where it is the object's first: `push` gives what of it is certain, `end` the rest."""
  def __init__(self, name: str) -> None:
    self._name = name
    self._begin = re.compile(r'\s*\{\s*"' + re.escape(name) + r'"\s*:\s*"')
    self._json = ""
    self._at: int | None = None
    self.value = ""

  def push(self, text: str) -> str:
    self._json += text
    if self._at is None:
      begun = self._begin.match(self._json)
      if begun is None:
        return ""
      self._at = begun.end()
    whole = _WHOLE.match(self._json, self._at)
    if whole is None or not whole.group():
      return ""
    self._at = whole.end()
    return self._add(json.loads(f'"{whole.group()}"', strict=False))

  def end(self) -> str:
    """What has not been given yet. Where the object is whole and the field no text, the value is the object as it came."""
    try:
      read = json.loads(self._json, strict=False)
    except (ValueError, RecursionError):
      return ""  # cut: the value is what there is of it
    value = read.get(self._name) if isinstance(read, dict) else None
    if not isinstance(value, str):
      value = self._json
    value = _writable(value)
    return self._add(value.removeprefix(self.value)) if value.startswith(self.value) else ""

  def _add(self, text: str) -> str:
    text = _writable(text)
    self.value += text
    return text


def _writable(text: str) -> str:
  """Half a surrogate pair is no character that can be sent."""
  return text.encode("utf-8", "replace").decode()
