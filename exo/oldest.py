"""Tables that strangers, or time, would fill without end: what came first gives way."""

from __future__ import annotations

from typing import Any


def forget_oldest(table: dict[Any, Any], most: int) -> None:
  """Leave the `most` entries that were put in last. To put one in anew, take it out first."""
  while len(table) > most:
    del table[next(iter(table))]
