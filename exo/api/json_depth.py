"""How deeply a JSON text nests, found without building it."""

from __future__ import annotations

import re

_STRUCTURE = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[\]{}]', re.DOTALL)


def deeper_than(data: bytes, limit: int) -> bool:
  """Whether arrays and objects nest deeper than `limit` levels. Right for valid JSON; never fails for other bytes."""
  if data.count(b"[") + data.count(b"{") <= limit:
    return False
  depth = 0
  for match in _STRUCTURE.finditer(data):
    first = match[0][:1]
    if first in b"[{":
      depth += 1
      if depth > limit:
        return True
    elif first in b"]}":
      depth -= 1
  return False
