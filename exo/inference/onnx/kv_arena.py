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

from exo.errors import EngineError

Floats = npt.NDArray[np.float32]
_FIRST_ROOM = 1024
_MADV_POPULATE_WRITE = 23  # <asm-generic/mman-common.h>, Linux 5.14; not in Python's mmap


@dataclass(slots=True)
class _Held:
  row: int
  length: int


class KvArena:
  """Rows are an internal matter: callers speak of sequences. Not thread-safe.

  Rows begin with room for `_FIRST_ROOM` tokens and double when a sequence needs more, up to `context`: the attention
  operator's scratch memory grows with the room, whatever is used of it. `generation` counts these moves.
  """
  def __init__(self, layers: int, rows: int, kv_heads: int, context: int, head_dim: int) -> None:
    self.context, self.rows = context, rows
    self._layers, self._kv_heads, self._head_dim = layers, kv_heads, head_dim
    self._held: dict[int, _Held] = {}
    self._owner: list[int | None] = [None] * rows
    self._window: tuple[list[int], int] = ([], 0)  # the last one, valid while no sequence moves
    self.generation = 0
    self.arrays: list[tuple[Floats, Floats]] = []
    self._reserve(min(context, _FIRST_ROOM))

  def _reserve(self, room: int) -> None:
    self.room = room
    self.row_bytes = self._kv_heads * room * self._head_dim * 4
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    size = 2 * self._layers * self.rows * self.row_bytes
    try:
      self._memory = mmap.mmap(-1, size, flags=flags)
    except (OSError, ValueError, OverflowError) as error:
      raise EngineError(f"cannot reserve {size // 2**20} MB of addresses for the KV cache: {error}") from error
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # a huge page would make two tokens of one head take 2 MB
      self._memory.madvise(mmap.MADV_NOHUGEPAGE)
    shape = (2 * self._layers, self.rows, self._kv_heads, room, self._head_dim)
    numbers = np.frombuffer(self._memory, np.float32).reshape(shape)
    self.arrays = [(numbers[2 * i], numbers[2 * i + 1]) for i in range(self._layers)]

  def ensure_room(self, length: int) -> None:
    """Move everything to longer rows when `length` tokens do not fit. Views of the old arrays become worthless."""
    if length <= self.room:
      return
    old, room = self.arrays, self.room
    while room < length:
      room *= 2
    self._reserve(min(room, self.context))
    for old_pair, new_pair in zip(old, self.arrays, strict=True):
      for source, target in zip(old_pair, new_pair, strict=True):
        for held in self._held.values():
          target[held.row, :, :held.length] = source[held.row, :, :held.length]
    self.generation += 1

  def length(self, sequence: int) -> int:
    held = self._held.get(sequence)
    return held.length if held else 0

  def extend(self, sequence: int, count: int) -> None:
    """Note that `count` tokens were written."""
    self._held[sequence].length += count

  def open(self, sequence: int) -> None:
    """Give a new sequence a row, next to those in use where one is free."""
    if sequence in self._held:
      return
    row = next((row for row, owner in enumerate(self._owner) if owner is None), None)
    if row is None:
      raise EngineError(f"all {self.rows} rows of the KV cache are taken")
    self._owner[row] = sequence
    self._held[sequence] = _Held(row, 0)

  def row(self, sequence: int) -> int:
    return self._held[sequence].row

  def drop(self, sequence: int) -> None:
    held = self._held.pop(sequence, None)
    if held is not None:
      self._window = ([], 0)
      self._owner[held.row] = None
      self._release(held.row, held.length)

  def truncate(self, sequence: int, length: int) -> None:
    held = self._held.get(sequence)
    if held is not None:
      held.length = min(held.length, length)

  def copy(self, source: int, target: int, length: int) -> None:
    self.open(target)
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
    for pair in self.arrays:
      for array in pair:
        kept = array[a, :, :length_a].copy()
        array[a, :, :length_b] = array[b, :, :length_b]
        array[b, :, :length_a] = kept
    self._owner[a], self._owner[b] = owner_b, owner_a
    for row in (a, b):
      owner = self._owner[row]
      if owner is not None:
        self._held[owner].row = row
    if owner_a is None:
      self._release(b, length_b)

  def _copy_rows(self, source: int, target: int, length: int) -> None:
    self._populate(target, length)
    for pair in self.arrays:
      for array in pair:
        array[target, :, :length] = array[source, :, :length]

  def _populate(self, row: int, length: int) -> None:
    """Have the system give the pages of a row's first tokens all at once, not one by one as they are written."""
    head_bytes, used = self.row_bytes // self._kv_heads, length * self._head_dim * 4
    if sys.platform != "linux" or used < 4 * mmap.PAGESIZE:
      return
    for i in range(2 * self._layers):
      for head in range(self._kv_heads):
        at = (i * self.rows + row) * self.row_bytes + head * head_bytes
        start = at // mmap.PAGESIZE * mmap.PAGESIZE
        try:
          self._memory.madvise(_MADV_POPULATE_WRITE, start, at + used - start)
        except OSError:  # an older kernel
          return

  def _release(self, row: int, length: int) -> None:
    """Give a row's pages back to the system, where that is worth the calls."""
    if length * self.row_bytes // self.room < 2 * mmap.PAGESIZE:
      return
    array_bytes = self.rows * self.row_bytes
    for i in range(2 * len(self.arrays)):
      base = i * array_bytes
      start = -(-(base + row * self.row_bytes) // mmap.PAGESIZE) * mmap.PAGESIZE
      end = (base + (row + 1) * self.row_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
      if end > start:
        self._memory.madvise(mmap.MADV_DONTNEED, start, end - start)

  def close(self) -> None:
    self._held.clear()
    self.arrays.clear()
