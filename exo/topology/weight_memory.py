"""What a model takes in an engine's memory: while a stage of it is loaded, and afterwards."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from exo.topology.model_size import MIN_KV_TOKENS, ModelSize, PackedWeights

STEP_ROWS = 256  # tokens of a step, for which memory between operators is reckoned
# of an embedding that stays in its file, this much may be in memory at a time (`inference/embedding_table.py`)
EMBEDDING_PAGES = 64 << 20
STATES = 3  # of a sequence, for which memory is reckoned: its own, and two while it moves
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})

_Table = npt.NDArray[np.float64]


class StageBytes(NamedTuple):
  """The most that a stage takes while it is loaded, and what it holds afterwards, its caches included."""
  loading: int
  held: int

  @property
  def most(self) -> int:
    return max(self)


@dataclass(frozen=True, slots=True)
class WeightMemory:
  """How an engine holds weights. Bytes for each: `plain` those that are floats in the file, `packed` those that are quantized there,
  `each` by encoding where that is known better; 0: as many as in the file.

  `beside`: while it loads, what it is given is there beside what it makes of it, in parts of the latter. `copies`: how often the
  largest matrix is there beside, then. `embedding_in_file`: rows of the embedding are read where they lie. `fixed_bytes` are the
  library's own, `rows` and `cache` how much it takes for what lies between operators and for keys and values, as parts of
  `ModelSize.row_bytes` and `kv_bytes_per_token`. `weightless`: it holds no weights at all.
  """
  plain: float = 0.0
  packed: float = 0.0
  each: tuple[tuple[str, float], ...] = ()
  beside: float = 0.0
  copies: float = 0.0
  embedding_in_file: bool = False
  fixed_bytes: int = 0
  rows: float = 0.0
  cache: float = 1.0
  weightless: bool = False

  def whole_bytes(self, size: ModelSize) -> int:
    """The most that the model takes in this engine's memory, with a cache of `MIN_KV_TOKENS` tokens."""
    return self.stage_bytes(size, 0, size.n_layers)

  def stage_bytes(self, size: ModelSize, start: int, end: int, kv_tokens: int = MIN_KV_TOKENS) -> int:
    """The most that a stage of layers [start, end) ever takes, with a cache of so many tokens; 0 where it is empty."""
    return self.stage(size, start, end, kv_tokens).most

  def stage(self, size: ModelSize, start: int, end: int, kv_tokens: int = MIN_KV_TOKENS) -> StageBytes:
    """Both figures of such a stage."""
    return _stage(self, size, start, end, kv_tokens)

  def table(self, size: ModelSize, kv_tokens: int = MIN_KV_TOKENS) -> _Table:
    """`stage_bytes` of all stages at once, by start and end, (n_layers + 1, n_layers + 1); what has no layers takes nothing."""
    every = np.arange(size.n_layers + 1)
    return np.maximum(*self.figures(size, every[:, None], every[None, :], kv_tokens))

  def overhead(self, size: ModelSize) -> int:
    """Bytes of a stage that are neither weights nor caches."""
    return self.fixed_bytes + math.ceil(self.rows * size.row_bytes * STEP_ROWS)

  def figures(self, size: ModelSize, starts: npt.NDArray[np.int_], ends: npt.NDArray[np.int_],
              kv_tokens: int) -> tuple[_Table, _Table]:
    """(while loading, afterwards), in bytes, of stages of layers [start, end): two arrays of the shape that `starts` and `ends`
    have together."""
    sums = np.zeros(size.n_layers + 1)
    embedding = head = shared = largest = 0.0
    for weights, rate in () if self.weightless else self._parts(size):
      sums[1:] += np.cumsum(weights.layers, dtype=np.float64) * rate
      embedding, head = embedding + weights.embedding * rate, head + weights.head * rate
      shared, largest = shared + weights.shared * rate, max(largest, weights.largest * rate)
    first, last = starts == 0, ends == size.n_layers
    in_file = float(min(size.embedding_bytes, EMBEDDING_PAGES)) if self.embedding_in_file else 0.0
    embedding = 0.0 if self.embedding_in_file else embedding
    own_head = last & ~(first & size.tied & (not self.embedding_in_file))
    made = sums[ends] - sums[starts] + shared + np.where(first, embedding, 0) + np.where(own_head, head, 0)
    widest = np.maximum(np.maximum(largest, np.where(first, embedding, 0)), np.where(last, head, 0))
    weights_bytes = made + np.where(first, in_file, 0)
    loading = weights_bytes + self.beside * made + self.copies * widest + self.fixed_bytes
    caches = (ends - starts) * (size.kv_bytes_per_token * kv_tokens * self.cache + STATES * size.state_bytes)
    held = weights_bytes + caches + self.overhead(size)
    empty = starts >= ends
    return np.ceil(np.where(empty, 0, loading)), np.ceil(np.where(empty, 0, held))

  def _parts(self, size: ModelSize) -> Iterator[tuple[PackedWeights, float]]:
    """All weights by how they are packed, with the bytes of memory for one of them."""
    if size.packed:
      yield from ((weights, self._held(weights.encoding) or weights.file_bytes) for weights in size.packed)
      return
    # only bytes are known, and maybe how many weights those are
    in_files = size.stage_bytes(0, size.n_layers)
    per_weight = in_files / size.n_weights if size.n_weights and in_files else 0.0
    # the narrowest floats have two bytes; a few float norms among packed matrices change nothing
    held = self._held("F16" if per_weight > 1.9 else "") if per_weight else 0.0
    everything = PackedWeights("", 1.0, size.layer_bytes, size.embedding_bytes, size.head_bytes, size.shared_bytes)
    yield everything, held / per_weight if held else 1.0

  def _held(self, encoding: str) -> float:
    known = dict(self.each).get(encoding)
    return known if known is not None else self.plain if encoding in _FLOATS else self.packed


@lru_cache(maxsize=512)  # every request asks for the same few, and each takes as long as all stages at once
def _stage(memory: WeightMemory, size: ModelSize, start: int, end: int, kv_tokens: int) -> StageBytes:
  loading, held = memory.figures(size, np.array([start]), np.array([end]), kv_tokens)
  return StageBytes(int(loading[0]), int(held[0]))
