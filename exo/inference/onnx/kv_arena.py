"""Keys and values of all sequences in one reserved range of addresses, of which only what is written takes memory.

Each layer has two arrays of shape (rows, KV heads, room, head dim); a sequence owns a row in all of them. The
attention operator wants the rows of a batch side by side, so `window` moves rows until they are.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from exo.errors import OutOfMemoryError
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
    self.rows, self.room, self.row_bytes = rows, room, kv_heads * room * head_dim * 4
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
  operator's scratch memory grows with the room, whatever is used of it. Addresses for `rows` of them are reserved where
  the system allows it, else for fewer, down to those that are wanted. `generation` counts the moves to another memory.
  """
  def __init__(self, layers: int, rows: int, kv_heads: int, context: int, head_dim: int) -> None:
    self.context, self._most_rows = context, rows
    self._layers, self._kv_heads, self._head_dim = layers, kv_heads, head_dim
    self._held: dict[int, _Held] = {}
    self.generation = 0
    self._enter(self._reserve(1, 1))

  @property
  def rows(self) -> int:
    return self._memory.rows

  @property
  def room(self) -> int:
    return self._memory.room

  @property
  def arrays(self) -> list[tuple[Floats, Floats]]:
    return self._memory.arrays

  def _reserve(self, rows: int, length: int) -> _Memory:
    """For at least so many rows of at least so many tokens. Raises `OutOfMemoryError`."""
    room = _FIRST_ROOM
    while room < length:
      room *= 2
    room, wanted = min(room, self.context), self._most_rows
    while True:
      try:
        return _Memory(self._layers, wanted, self._kv_heads, room, self._head_dim)
      except OutOfMemoryError:
        if wanted <= rows:
          raise
        wanted = max(rows, wanted // 2)

  def _enter(self, memory: _Memory) -> None:
    """Let a memory be the one in use that holds, in its first rows, what `_held` says."""
    self._memory = memory
    self._owner: list[int | None] = [None] * memory.rows
    self._written = [0] * memory.rows  # tokens of each row whose pages may be in memory
    self._window: tuple[list[int], int] = ([], 0)  # the last one, valid while no sequence moves
    for row, (sequence, held) in enumerate(self._held.items()):
      held.row, self._owner[row], self._written[row] = row, sequence, held.length

  def make_room(self, lengths: Mapping[int, int]) -> None:
    """Give these sequences, new or not, rows with room for so many tokens each.

    New ones come next to those in use where a row is free there. Views of the arrays become worthless when everything
    moves, as `generation` says. Raises `OutOfMemoryError`.
    """
    fresh = [sequence for sequence in lengths if sequence not in self._held]
    rows, longest = len(self._held) + len(fresh), max(lengths.values())
    if rows > self._most_rows:
      raise OutOfMemoryError(f"all {self._most_rows} rows of the KV cache are taken")
    if rows > self.rows or longest > self.room:
      self._move(self._reserve(rows, max(longest, *(held.length for held in self._held.values()), 1)))
    for sequence in fresh:
      row = self._owner.index(None)
      self._owner[row], self._held[sequence] = sequence, _Held(row, 0)
    for sequence, length in lengths.items():
      row = self._held[sequence].row
      self._written[row] = max(self._written[row], length)

  def _move(self, new: _Memory) -> None:
    old, i = self._memory, 0
    for old_pair, new_pair in zip(old.arrays, new.arrays, strict=True):
      for source, target in zip(old_pair, new_pair, strict=True):
        for row, held in enumerate(self._held.values()):
          target[row, :, :held.length] = source[held.row, :, :held.length]
        old.release(i * old.array_bytes, (i + 1) * old.array_bytes)  # at no time is all of it there twice
        i += 1
    self._enter(new)
    self.generation += 1

  def length(self, sequence: int) -> int:
    held = self._held.get(sequence)
    return held.length if held else 0

  def extend(self, sequence: int, count: int) -> None:
    """Note that `count` tokens were written."""
    self._held[sequence].length += count

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
    """`source` holds at least `length` tokens. Raises `OutOfMemoryError`."""
    self.make_room({target: length})
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
    """Give the memory back now, whoever still refers to this object."""
    self._held.clear()
    self._memory.release(0, 2 * self._layers * self._memory.array_bytes)
    del self._memory
