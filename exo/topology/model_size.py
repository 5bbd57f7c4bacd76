"""How large a model is, in its files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

# A plan is only made where every stage can also keep this many tokens of KV cache beside its weights, unless more are asked for.
MIN_KV_TOKENS = 1024


@dataclass(frozen=True)
class PackedWeights:
  """Those weights of a model that are packed in one way, as `encoding` names it: how many of them each part has, and the largest
  matrix of a layer. `file_bytes` is what one of them takes in the files.
  """
  encoding: str
  file_bytes: float
  layers: tuple[int, ...]
  embedding: int = 0
  head: int = 0
  shared: int = 0
  largest: int = 0


@dataclass(frozen=True)
class ModelSize:
  """Bytes that a model's parts have in its files, and how many numbers those are; `kv_bytes_per_token` is one layer's, as is
  `state_bytes`, which is kept of a sequence however long it is. `shared_bytes` are held by every stage.

  `packed` are the same weights by how they are packed, empty where nobody has looked at the files, and `row_bytes` what lies between
  a layer's operators for one token of a step, as float32; 0 where that is not known.
  """
  layer_bytes: tuple[int, ...]
  embedding_bytes: int
  head_bytes: int
  kv_bytes_per_token: int
  tied: bool = False
  n_weights: int = 0
  shared_bytes: int = 0
  packed: tuple[PackedWeights, ...] = ()
  row_bytes: int = 0
  state_bytes: int = 0

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
