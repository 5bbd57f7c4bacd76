"""Gemma: `call:NAME{key:VALUE,…}` with bare keys and strings between marks, between tokens of FunctionGemma and of Gemma 4."""

from __future__ import annotations

import re
from typing import Any

from exo.api.formats.tool_format import NAME, Call, Parse, Schemas, ToolFormat
from exo.api.formats.values import typed, types_of

_DEEPEST = 32
_CALL = re.compile(rf"\s*,?\s*call:({NAME})\s*(?=\{{)")
_KEY = re.compile(r"\s*,?\s*([\w.$-]+)\s*:")
_BARE = re.compile(r"[^,{}\[\]]*")


class _Reader:
  """Reads values from a text, each from where the last one ended. Raises `ValueError` for what is none."""
  def __init__(self, text: str, quote: str) -> None:
    self._text, self._quote = text, quote
    self.at = 0

  def match(self, pattern: re.Pattern[str]) -> str | None:
    found = pattern.match(self._text, self.at)
    if found is None:
      return None
    self.at = found.end()
    return found[1] if found.re.groups else found[0]

  def value(self, schema: Any, depth: int = 0) -> Any:
    if depth > _DEEPEST:
      raise ValueError("too deep")
    self._spaces()
    if self._take(self._quote):
      return self._until_quote()
    if self._take("{"):
      return self._object(schema, depth)
    if self._take("["):
      return self._list(schema, depth)
    bare = (self.match(_BARE) or "").strip()
    if not bare:
      raise ValueError("no value")
    if bare.startswith('"') and bare.endswith('"') and len(bare) > 1:
      return bare[1:-1]
    return typed(bare, schema)

  def _object(self, schema: Any, depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    properties = schema.get("properties", {}) if isinstance(schema, dict) else {}
    while not self._take("}"):
      self._take(",")
      self._spaces()
      key = self._quoted_key() if self._take(self._quote) else self.match(_KEY)
      if key is None:
        raise ValueError("no key")
      found[key] = self.value(properties.get(key) if isinstance(properties, dict) else None, depth + 1)
      self._spaces()
    return found

  def _list(self, schema: Any, depth: int) -> list[Any]:
    found: list[Any] = []
    items = schema.get("items") if isinstance(schema, dict) and "array" in types_of(schema) else None
    self._spaces()
    while not self._take("]"):
      self._take(",")
      found.append(self.value(items, depth + 1))
      self._spaces()
    return found

  def _quoted_key(self) -> str:
    key = self._until_quote()
    self._spaces()
    if not self._take(":"):
      raise ValueError("no value of a key")
    return key

  def _until_quote(self) -> str:
    end = self._text.find(self._quote, self.at)
    if end < 0:
      raise ValueError("a string without an end")
    found, self.at = self._text[self.at:end], end + len(self._quote)
    return found

  def _take(self, text: str) -> bool:
    if not self._text.startswith(text, self.at):
      return False
    self.at += len(text)
    return True

  def _spaces(self) -> None:
    while self.at < len(self._text) and self._text[self.at].isspace():
      self.at += 1


def gemma_calls(quote: str) -> Parse:
  def parse(text: str, schemas: Schemas) -> list[Call]:
    calls, reader = list[Call](), _Reader(text, quote)
    try:
      while (name := reader.match(_CALL)) is not None:
        calls.append((name, reader.value(schemas.get(name, {}))))
    except ValueError:
      return []
    return calls if not text[reader.at:].strip() else []

  return parse


FUNCTION_GEMMA = ToolFormat(
    "function-gemma", ("<start_function_call>", ),
    "<end_function_call>",
    gemma_calls("<escape>"),
    others=("<escape>", )
)
GEMMA = ToolFormat("gemma", ("<|tool_call>", ), "<tool_call|>", gemma_calls('<|"|>'), others=('<|"|>', ))
