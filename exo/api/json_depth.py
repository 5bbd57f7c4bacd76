"""What a JSON text is made of, found without building it: how deep it nests, and how many values it has."""

from __future__ import annotations

import numpy as np

_SLICE = 256 * 1024  # bytes looked at in one go: about a millisecond
_QUOTE, _COMMA = ord('"'), ord(",")
_STEP = np.zeros(256, np.int8)
_STEP[[ord("["), ord("{")]] = 1
_STEP[[ord("]"), ord("}")]] = -1


def deeper_than(data: bytes, limit: int) -> bool:
  """Whether arrays and objects nest deeper than `limit` levels. Right for valid JSON; never fails for other bytes."""
  return _Shape(data, limit, None, None).too_deep


def too_many_values(data: bytes, most: int, most_items: int) -> str | None:
  """What there is too much of: more than `most` texts, arrays and objects, or more than `most_items` commas.

  As for `deeper_than`. Texts, arrays and objects are what takes time and memory to build; numbers take little.
  """
  shape = _Shape(data, None, most, most_items)
  if shape.values > most:
    return f"more than {most} texts, lists and objects"
  return f"more than {most_items} items" if shape.items > most_items else None


class _Shape:
  """Looks through `data` in slices until one of the bounds is passed; None is no bound."""
  def __init__(self, data: bytes, depth: int | None, values: int | None, items: int | None) -> None:
    self.too_deep, self.values, self.items = False, 0, 0
    opens = data.count(b"[") + data.count(b"{")
    depth_is_fine = depth is None or opens <= depth
    few = values is None or items is None or (opens + data.count(b'"') // 2 <= values and data.count(b",") <= items)
    if depth_is_fine and few:
      return
    level, inside, position = 0, 0, 0
    while position < len(data):
      piece = _slice(data, position)
      position += len(piece)
      # escaped characters stand for themselves, and backslashes stand in texts only
      codes = np.frombuffer(piece.replace(b"\\\\", b"  ").replace(b'\\"', b"  "), np.uint8)
      quotes = codes == _QUOTE
      within = (np.cumsum(quotes, dtype=np.uint8) + np.uint8(inside)) & 1  # after each byte
      steps = _STEP[codes]
      steps[within == 1] = 0
      levels = level + np.cumsum(steps, dtype=np.int64)
      self.values += int(np.count_nonzero(steps == 1)) + int(np.count_nonzero(quotes)) // 2
      self.items += int(np.count_nonzero((codes == _COMMA) & (within == 0)))
      self.too_deep = self.too_deep or (depth is not None and int(levels.max()) > depth)
      level, inside = int(levels[-1]), int(within[-1])
      if self.too_deep or (values is not None and self.values > values) or (items is not None and self.items > items):
        return


def _slice(data: bytes, start: int) -> bytes:
  """The next bytes, not ending between a backslash and what it escapes."""
  piece = data[start:start + _SLICE]
  backslashes = len(piece) - len(piece.rstrip(b"\\"))
  return data[start:start + _SLICE + 1] if backslashes % 2 else piece
