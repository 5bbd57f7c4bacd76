"""Texts that can be written as UTF-8: JSON can hold halves of surrogate pairs, which are no characters."""

from __future__ import annotations


def whole_characters(text: str) -> str:
  """`text` with U+FFFD for halves of surrogate pairs that lack the other half."""
  try:
    text.encode()
  except UnicodeEncodeError:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
  return text
