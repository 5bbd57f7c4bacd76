"""Finds the end of a value in brackets that comes in pieces."""

from __future__ import annotations


class BracketScan:
  """`depth` brackets are open already; within `quotes` brackets are text."""
  def __init__(self, depth: int = 0, quotes: str = '"') -> None:
    self._depth, self._quotes = depth, quotes
    self._quote, self._escaped = "", False
    self.done = False

  def take(self, text: str) -> int:
    """How many characters of `text` belong to the value."""
    for i, c in enumerate(text):
      if self._escaped:
        self._escaped = False
      elif self._quote:
        if c == "\\":
          self._escaped = True
        elif c == self._quote:
          self._quote = ""
      elif c in self._quotes:
        self._quote = c
      elif c in "{[(":
        self._depth += 1
      elif c in "}])":
        self._depth -= 1
        if self._depth <= 0:
          self.done = True
          return i + 1
    return len(text)
