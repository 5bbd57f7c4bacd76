"""Keys and values: of one sequence, and of several that decode together. Both are what models of mlx-lm expect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from exo.inference.mlx.library import cache_module
from exo.inference.whole_blocks import whole_blocks

_ROOM = 256
_base: Any = cache_module()
_causal_mask: Any = _base.create_causal_mask


def _room(length: int) -> int:
  """Room grows by a quarter, so that a long sequence is seldom copied and little of it stays empty."""
  return whole_blocks(length + length // 4, _ROOM)


class KvCache(_base.KVCache):  # type: ignore[misc]
  """One layer's keys and values of one sequence, (1, heads, room, head dim), all kept whatever the layer's window.

  A layer with a sliding window of `window` tokens is handed the last ones only. So any truncation is exact, which it is
  not with mlx-lm's rotating caches, and a copy shares its arrays until one side writes.
  """
  def __init__(self, window: int | None = None) -> None:
    self.window = window
    self.keys: Any = None
    self.values: Any = None
    self.offset = self._first = 0

  def update_and_fetch(self, keys: Any, values: Any) -> tuple[Any, Any]:
    begin, end = self.offset, self.offset + keys.shape[2]
    if self.keys is None or end > self.keys.shape[2]:
      self.keys, self.values = _grown(self.keys, keys, begin, end), _grown(self.values, values, begin, end)
    self.keys[..., begin:end, :] = keys
    self.values[..., begin:end, :] = values
    self.offset = end
    self._first = 0 if self.window is None else max(0, begin - self.window + 1)
    return self.keys_and_values()

  def keys_and_values(self) -> tuple[Any, Any]:
    """What the layer was handed last: others may share it."""
    return self.keys[..., self._first:self.offset, :], self.values[..., self._first:self.offset, :]

  def make_mask(self, n: int, return_array: bool = False, window_size: int | None = None) -> Any:
    """What `n` new tokens may see of the keys that `update_and_fetch` is about to return."""
    if self.window is None:
      return super().make_mask(n, return_array=return_array, window_size=window_size)
    before = min(self.window - 1, self.offset)
    window = min(self.window, window_size or self.window)
    if n == 1:
      return None if before < window else mx.arange(before + 1) > before - window
    if before + n > window or return_array:
      return _causal_mask(n, before, window_size=window)
    return "causal"

  def truncate(self, length: int) -> None:
    """Forget what follows the first `length` tokens."""
    self.offset = min(length, self.offset)

  def copied(self, length: int) -> KvCache:
    """A cache of its own that begins with the first `length` tokens; nothing is copied before one side writes."""
    twin = KvCache(self.window)
    twin.offset = min(length, self.offset)
    if twin.offset:
      # views, not the same objects: an array that is assigned to changes for all who hold it
      twin.keys, twin.values = (part[..., :twin.offset, :] for part in (self.keys, self.values))
    return twin


def _grown(old: Any, new: Any, begin: int, end: int) -> Any:
  """Room for `end` tokens, the first `begin` of them taken over."""
  batch, heads, _, width = new.shape
  empty = mx.zeros((batch, heads, _room(end) - begin, width), new.dtype)
  return empty if not begin else mx.concatenate([old[..., :begin, :], empty], axis=2)


class DecodeBatch:
  """Several sequences that each add one token a step: their caches side by side, all ending in the same column.

  Shorter sequences begin with empty columns that masks hide. The sequences' own caches are given up while they are in
  here; `split` gives them back.
  """
  def __init__(self, sequences: Sequence[int], caches: Sequence[Sequence[KvCache]], mask_axes: int) -> None:
    self.sequences = tuple(sequences)
    self.lengths = [members[0].offset for members in caches]
    self._mask_axes = mask_axes
    self._masks: dict[int | None, Any] = {}
    self.offsets = mx.array(self.lengths)
    columns = max(self.lengths)
    self._padding = [columns - length for length in self.lengths]
    self.layers = [LayerBatch(self, members, columns) for members in zip(*caches, strict=True)]
    mx.eval([(layer.keys, layer.values) for layer in self.layers])

  @property
  def columns(self) -> int:
    return max(self.lengths)

  def advance(self) -> None:
    """Note that a step is through."""
    self.lengths = [length + 1 for length in self.lengths]
    self.offsets = mx.array(self.lengths)
    self._masks.clear()

  def mask(self, window: int | None) -> Any:
    """True where a row's new token may look, by its window; None when it may everywhere. Layers share it."""
    if window not in self._masks:
      after = self.columns + 1
      seen = after if window is None else min(window, after)
      hidden = [max(0, padding - (after - seen)) for padding in self._padding]
      shape = (len(hidden), *(1, ) * (self._mask_axes - 1))
      self._masks[window] = mx.arange(seen) >= mx.array(hidden).reshape(shape) if any(hidden) else None
    return self._masks[window]

  def split(self) -> list[list[KvCache]]:
    """Each sequence's caches by layer, in the order of `sequences`."""
    apart = [[layer.extract(row, padding, self.columns) for layer in self.layers]
             for row, padding in enumerate(self._padding)]
    mx.eval([(cache.keys, cache.values) for caches in apart for cache in caches])
    return apart


class LayerBatch(_base.KVCache):  # type: ignore[misc]
  """One layer of a `DecodeBatch`."""
  def __init__(self, batch: DecodeBatch, members: Sequence[KvCache], columns: int) -> None:
    self._batch, self.window = batch, members[0].window
    self.keys: Any = _padded([(member.keys, member.offset) for member in members], columns)
    self.values: Any = _padded([(member.values, member.offset) for member in members], columns)

  @property
  def offset(self) -> Any:
    """Each row's position, (rows,)."""
    return self._batch.offsets

  def update_and_fetch(self, keys: Any, values: Any) -> tuple[Any, Any]:
    begin = self._batch.columns
    end = begin + 1
    if end > self.keys.shape[2]:
      self.keys, self.values = _grown(self.keys, keys, begin, end), _grown(self.values, values, begin, end)
    self.keys[..., begin:end, :] = keys
    self.values[..., begin:end, :] = values
    return self.keys_and_values()

  def keys_and_values(self) -> tuple[Any, Any]:
    """With this step's column, once it is there."""
    end = self._batch.columns + 1
    first = 0 if self.window is None else max(0, end - self.window)
    return self.keys[..., first:end, :], self.values[..., first:end, :]

  def make_mask(self, n: int, return_array: bool = False, window_size: int | None = None) -> Any:
    assert n == 1 and (window_size is None or window_size == self.window)
    return self._batch.mask(self.window)

  def extract(self, row: int, padding: int, columns: int) -> KvCache:
    own = KvCache(self.window)
    own.keys, own.values = (mx.contiguous(part[row:row + 1, :, padding:columns]) for part in (self.keys, self.values))
    own.offset = columns - padding
    return own


def _padded(parts: Sequence[tuple[Any, int]], columns: int) -> Any:
  """Arrays of unequal lengths as rows that end in one column, with room behind."""
  heads, width, dtype = parts[0][0].shape[1], parts[0][0].shape[3], parts[0][0].dtype
  room, rows = _room(columns + 1), []
  for array, length in parts:
    before, behind = columns - length, room - columns
    rows.append(mx.pad(array[..., :length, :], [(0, 0), (0, 0), (before, behind), (0, 0)]))
  assert all(row.shape == (1, heads, room, width) and row.dtype == dtype for row in rows)
  return mx.concatenate(rows, axis=0)
