"""JSON in which a text was cut in the middle of a character, as histories of chats have it, read all the same."""

from __future__ import annotations

import json
import math
import re
from typing import Any

_HALVES = re.compile("[\ud800-\udfff]")
_INSTEAD = "\ufffd"


def mended_json(data: bytes) -> Any:
  """The value, with U+FFFD for bytes that are no UTF-8 and for halves of characters. Raises `ValueError` for what is no JSON."""
  return _whole(json.loads(data.decode("utf-8", "replace"), parse_constant=_refuse))


def _refuse(name: str) -> Any:
  raise ValueError(f"{name} is no JSON")


def _whole(value: Any) -> Any:
  if isinstance(value, str):
    return _HALVES.sub(_INSTEAD, value)
  if isinstance(value, float) and not math.isfinite(value):
    raise ValueError("a number is too large")
  if isinstance(value, list):
    return [_whole(item) for item in value]
  if isinstance(value, dict):
    return {_HALVES.sub(_INSTEAD, key): _whole(item) for key, item in value.items()}
  return value
