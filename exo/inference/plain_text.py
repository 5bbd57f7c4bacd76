"""Texts of clients in which the names of special tokens are letters, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

from exo.errors import InvalidRequestError

# Unicode promises that these are no characters of any text that is exchanged.
_MARKS = tuple(map(chr, range(0xFDD0, 0xFDF0)))


class PlainText:
  """A name becomes letters by being cut behind its first one: tokenized apart, neither part is that token."""
  def __init__(self, names: Iterable[str]) -> None:
    self._names = frozenset(name for name in names if len(name) > 1)
    self._lengths = sorted({len(name) for name in self._names})
    first = "".join(sorted({re.escape(name[0]) for name in self._names}))
    self._first = re.compile(f"[{first}]") if first else None

  def pieces(self, text: str) -> list[str]:
    """`text`, cut so that each piece can be tokenized for itself."""
    cuts = [0, *self._cuts(text), len(text)]
    return [text[start:end] for start, end in pairwise(cuts) if end > start]

  def marked(self, *values: Any) -> tuple[tuple[Any, ...], str]:
    """(the same JSON values with a mark at every cut of their texts, that mark); "" where there is nothing to cut.

    The mark stands in none of the values, so that a text into which they were put can be split by it. Raises `InvalidRequestError`
    for values in which every possible mark stands.
    """
    texts = list(_texts(values))
    if not any(next(self._cuts(text), None) for text in texts):
      return values, ""
    free = (mark for mark in _MARKS if not any(mark in text or _escaped(mark) in text for text in texts))
    mark = next(free, None)
    if mark is None:
      raise InvalidRequestError("messages: there are too many characters that Unicode does not know", "messages")
    return tuple(self._with(value, mark) for value in values), mark

  def _cuts(self, text: str) -> Iterator[int]:
    """Behind the first letter of every name in it."""
    for found in self._first.finditer(text) if self._first is not None else ():
      start = found.start()
      if any(text[start:start + length] in self._names for length in self._lengths):
        yield start + 1

  def _with(self, value: Any, mark: str) -> Any:
    if isinstance(value, str):
      return mark.join(self.pieces(value))
    if isinstance(value, dict):
      return {self._with(key, mark): self._with(inner, mark) for key, inner in value.items()}
    return [self._with(inner, mark) for inner in value] if isinstance(value, list) else value


def split_at(text: str, mark: str) -> list[str]:
  """What `text` is to be tokenized by; all of it where `mark` is empty. In JSON of a template the mark may be escaped."""
  return text.replace(_escaped(mark), mark).split(mark) if mark else [text]


def _escaped(mark: str) -> str:
  return json.dumps(mark)[1:-1]


def _texts(value: Any) -> Iterator[str]:
  if isinstance(value, str):
    yield value
  elif isinstance(value, dict):
    for key, inner in value.items():
      yield from _texts(key)
      yield from _texts(inner)
  elif isinstance(value, list | tuple):
    for inner in value:
      yield from _texts(inner)
