"""How large a model is, in its files and in an engine's memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

# A plan is only made where every stage can also keep this many tokens of KV cache beside its weights, unless more are asked for.
MIN_KV_TOKENS = 1024


@dataclass(frozen=True)
class ModelSize:
  """Bytes that a model's parts have in its files, and how many numbers those are; `kv_bytes_per_token` is one layer's,
  `shared_bytes` are held by every stage.
  """
  layer_bytes: tuple[int, ...]
  embedding_bytes: int
  head_bytes: int
  kv_bytes_per_token: int
  tied: bool = False
  n_weights: int = 0
  shared_bytes: int = 0

  @property
  def n_layers(self) -> int:
    return len(self.layer_bytes)

  @cached_property
  def _sums(self) -> tuple[int, ...]:
    """Bytes of the first 0, 1, 2, … layers: placement asks for many stages of one model."""
    return (0, *accumulate(self.layer_bytes))

  def stage_bytes(self, start: int, end: int) -> int:
    """Of layers [start, end), embedding and head counted where they live."""
    total = self._sums[end] - self._sums[start]
    if start < end:
      total += self.shared_bytes
    first, last = start == 0, end == self.n_layers
    if first:
      total += self.embedding_bytes
    if last and not (first and self.tied):
      total += self.head_bytes
    return total


@dataclass(frozen=True, slots=True)
class WeightMemory:
  """Bytes of memory in which an engine holds one weight: `plain` those that are floats in the file, `packed` those that
  are quantized there. 0: as many as in the file.
  """
  plain: float = 0.0
  packed: float = 0.0

  def scale(self, size: ModelSize) -> float:
    """Bytes in memory per byte of the model's files."""
    in_files = size.stage_bytes(0, size.n_layers)
    if not size.n_weights or not in_files:
      return 1.0
    # the narrowest floats have two bytes; a few float norms among packed matrices change nothing
    held = self.plain if in_files / size.n_weights > 1.9 else self.packed
    return held * size.n_weights / in_files if held else 1.0

  def whole_bytes(self, size: ModelSize) -> int:
    """What the model takes in this engine's memory, with a cache of `MIN_KV_TOKENS` tokens."""
    return self.stage_bytes(size, 0, size.n_layers)

  def stage_bytes(self, size: ModelSize, start: int, end: int, kv_tokens: int = MIN_KV_TOKENS) -> int:
    """What a stage of layers [start, end) takes in this engine's memory, with a cache of so many tokens; 0 where it is empty.
    """
    if start == end:
      return 0
    cache = (end - start) * size.kv_bytes_per_token * kv_tokens
    return math.ceil(size.stage_bytes(start, end) * self.scale(size)) + cache
