"""Keys and values of all sequences in one reserved range of addresses, of which only what is written takes memory.

Each layer has two arrays of shape (rows, KV heads, room, head dim); a sequence owns a row in all of them. The
attention operator wants the rows of a batch side by side, so `window` moves rows until they are.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from exo.errors import CacheReuseError, OutOfMemoryError
from exo.inference.reservation import reserve

Floats = npt.NDArray[np.float32]
_FIRST_ROOM = 1024
_MADV_POPULATE_WRITE = 23  # <asm-generic/mman-common.h>, Linux 5.14; not in Python's mmap


@dataclass(slots=True)
class _Held:
  row: int
  length: int


class _Memory:
  """One reservation of addresses: by layer two arrays of (rows, KV heads, room, head dim). Raises `OutOfMemoryError`."""
  def __init__(self, layers: int, rows: int, kv_heads: int, room: int, head_dim: int) -> None:
    self.room, self.row_bytes = room, kv_heads * room * head_dim * 4
    self.array_bytes = rows * self.row_bytes
    size = 2 * layers * self.array_bytes
    self._map = reserve(size, f"a KV cache of {room} tokens a row")
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # a huge page would make two tokens of one head take 2 MB
      self.advise(mmap.MADV_NOHUGEPAGE, 0, size)
    numbers = np.frombuffer(self._map, np.float32).reshape(2 * layers, rows, kv_heads, room, head_dim)
    self.arrays = [(numbers[2 * i], numbers[2 * i + 1]) for i in range(layers)]

  def advise(self, advice: int, start: int, end: int) -> bool:
    """Whether the system took the advice, which it may not know."""
    try:
      self._map.madvise(advice, start, end - start)
    except OSError:
      return False
    return True

  def release(self, start: int, end: int) -> None:
    """Give the whole pages within a span of bytes back to the system; they are zeros afterwards."""
    start, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if end > start:
      self.advise(mmap.MADV_DONTNEED, start, end)


class KvArena:
  """Rows are an internal matter: callers speak of sequences. Not thread-safe. What raises has changed nothing.

  Rows begin with room for `_FIRST_ROOM` tokens and double when a sequence needs more, up to `context`: the attention
  operator's scratch memory grows with the room, whatever is used of it. `generation` counts these moves.
  """
  def __init__(self, layers: int, rows: int, kv_heads: int, context: int, head_dim: int) -> None:
    self.context, self.rows = context, rows
    self._layers, self._kv_heads, self._head_dim = layers, kv_heads, head_dim
    self._held: dict[int, _Held] = {}
    self._owner: list[int | None] = [None] * rows
    self._written = [0] * rows  # tokens of each row whose pages may be in memory
    self._window: tuple[list[int], int] = ([], 0)  # the last one, valid while no sequence moves
    self.generation = 0
    self._memory = self._reserve(min(context, _FIRST_ROOM))

  def _reserve(self, room: int) -> _Memory:
    return _Memory(self._layers, self.rows, self._kv_heads, room, self._head_dim)

  @property
  def room(self) -> int:
    return self._memory.room

  @property
  def arrays(self) -> list[tuple[Floats, Floats]]:
    return self._memory.arrays

  def ensure_room(self, length: int) -> None:
    """Move everything to longer rows when `length` tokens do not fit. Views of the old arrays become worthless."""
    if length <= self.room:
      return
    room = self.room
    while room < length:
      room *= 2
    old, new = self._memory, self._reserve(min(room, self.context))
    places = [(old_array, new_array) for old_pair, new_pair in zip(old.arrays, new.arrays, strict=True)
              for old_array, new_array in zip(old_pair, new_pair, strict=True)]
    for i, (source, target) in enumerate(places):
      for held in self._held.values():
        target[held.row, :, :held.length] = source[held.row, :, :held.length]
      old.release(i * old.array_bytes, (i + 1) * old.array_bytes)  # at no time is all of it there twice
    self._memory = new
    self._written = [0 if owner is None else self._held[owner].length for owner in self._owner]
    self.generation += 1

  def length(self, sequence: int) -> int:
    held = self._held.get(sequence)
    return held.length if held else 0

  def extend(self, sequence: int, count: int) -> None:
    """Note that `count` tokens were written."""
    self._held[sequence].length += count

  def open(self, sequence: int, length: int) -> None:
    """Give a new sequence a row, next to those in use where one is free; `length` tokens of it will be written."""
    held = self._held.get(sequence)
    if held is None:
      row = next((row for row, owner in enumerate(self._owner) if owner is None), None)
      if row is None:
        raise OutOfMemoryError(f"all {self.rows} rows of the KV cache are taken")
      self._owner[row] = sequence
      held = self._held[sequence] = _Held(row, 0)
    self._written[held.row] = max(self._written[held.row], length)

  def row(self, sequence: int) -> int:
    return self._held[sequence].row

  def drop(self, sequence: int) -> None:
    held = self._held.pop(sequence, None)
    if held is not None:
      self._window = ([], 0)
      self._owner[held.row] = None
      self._release(held.row)

  def truncate(self, sequence: int, length: int) -> None:
    held = self._held.get(sequence)
    if held is not None:
      held.length = min(held.length, length)

  def copy(self, source: int, target: int, length: int) -> None:
    if self.length(source) < length:
      raise CacheReuseError(f"{self.length(source)} tokens are kept where {length} are wanted")
    self.open(target, length)
    self._copy_rows(self.row(source), self.row(target), length)
    self._held[target].length = length

  def window(self, sequences: Sequence[int]) -> int:
    """Bring the sequences side by side, in any order; returns the first row of their window.

    Of all windows the one that needs the fewest moves is taken.
    """
    size, wanted = len(sequences), set(sequences)
    if size == 1:
      return self.row(sequences[0])
    if sequences == self._window[0]:
      return self._window[1]
    inside = [owner in wanted for owner in self._owner]
    best, best_count, count = 0, -1, sum(inside[:size])
    for start in range(self.rows - size + 1):
      if start:
        count += inside[start + size - 1] - inside[start - 1]
      if count > best_count:
        best, best_count = start, count
    holes = [row for row in range(best, best + size) if not inside[row]]
    outside = [s for s in sequences if not best <= self.row(s) < best + size]
    for hole, sequence in zip(holes, outside, strict=True):
      self._swap(hole, self.row(sequence))
    self._window = (list(sequences), best)
    return best

  def _swap(self, a: int, b: int) -> None:
    self._window = ([], 0)
    owner_a, owner_b = self._owner[a], self._owner[b]
    length_a = self._held[owner_a].length if owner_a is not None else 0
    length_b = self._held[owner_b].length if owner_b is not None else 0
    kept = np.empty((self._kv_heads, length_a, self._head_dim),
                    np.float32)  # before anything moves: it may not be there
    for pair in self.arrays:
      for array in pair:
        kept[:] = array[a, :, :length_a]
        array[a, :, :length_b] = array[b, :, :length_b]
        array[b, :, :length_a] = kept
    self._written[a], self._written[b] = max(self._written[a], length_b), max(self._written[b], length_a)
    self._owner[a], self._owner[b] = owner_b, owner_a
    for row in (a, b):
      owner = self._owner[row]
      if owner is not None:
        self._held[owner].row = row
    if owner_a is None:
      self._release(b)

  def _copy_rows(self, source: int, target: int, length: int) -> None:
    self._populate(target, length)
    for pair in self.arrays:
      for array in pair:
        array[target, :, :length] = array[source, :, :length]

  def _populate(self, row: int, length: int) -> None:
    """Have the system give the pages of a row's first tokens all at once, not one by one as they are written."""
    memory = self._memory
    head_bytes, used = memory.row_bytes // self._kv_heads, length * self._head_dim * 4
    if sys.platform != "linux" or used < 4 * mmap.PAGESIZE:
      return
    for i in range(2 * self._layers):
      for head in range(self._kv_heads):
        at = i * memory.array_bytes + row * memory.row_bytes + head * head_bytes
        start = at // mmap.PAGESIZE * mmap.PAGESIZE
        if not memory.advise(_MADV_POPULATE_WRITE, start, at + used):  # an older kernel
          return

  def _release(self, row: int) -> None:
    """Give a row's pages back to the system, where that is worth the calls."""
    memory, written = self._memory, self._written[row]
    if written * memory.row_bytes // memory.room < 2 * mmap.PAGESIZE:
      return
    self._written[row] = 0
    for i in range(2 * self._layers):
      base = i * memory.array_bytes + row * memory.row_bytes
      memory.release(base, base + memory.row_bytes)

  def close(self) -> None:
    self._held.clear()
    self._memory.arrays.clear()
