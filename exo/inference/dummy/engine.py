"""Deterministic numbers in place of a model: for tests of everything else.

A hidden state is a vector of whole numbers that depends on every token before it, through the cache of each layer, so
that a lost, doubled or mixed-up cache entry changes the text. All arithmetic is exact in float32, hence any split, batch
or chunking gives the same bits.

Some tokens of a prompt make it fail (`FAULTS`) or take its time (`SLOW`), so that tests can do so from outside.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from exo.errors import EngineError
from exo.inference.dummy.checkpoint import BOS, EOS, VOCAB_SIZE
from exo.inference.engine import Batch, InferenceEngine, LoadOptions, StageMemory, StageModel, gather_logit_rows
from exo.inference.exactness import Exactness
from exo.inference.kv_budget import KvBudget
from exo.inference.shard import Shard
from exo.inference.stage_base import StageBase

if TYPE_CHECKING:
  from exo.inference.weights.checkpoint import Checkpoint

_PRIME = 4093  # products of two residues stay below 2**24, the largest range of exact integers in float32
_HIDDEN = 8
_CONTEXT = 8192
_KV_BYTES = 8
# by token: 1 raises on the first stage, 2 on the last; 3 breaks the last one's engine until it is made anew; 4 ends its thread
RAISE_FIRST, RAISE_LAST, BREAK_LAST, END_THREAD = FAULTS = (1, 2, 3, 4)
SLOW, _SLOW_S = 5, 0.004  # one step, on the last stage


class DummyStage(StageBase):
  library = "dummy"

  def __init__(self, shard: Shard, vocab_size: int, options: LoadOptions, faulty: set[int]) -> None:
    self._faulty, self._vocab_size = faulty, vocab_size
    self._slow: set[int] = set()
    self._cache: dict[int, npt.NDArray[np.int64]] = {}  # sequence: (tokens, layers), what each layer remembers
    budget = KvBudget(options, shard.layer_count * _KV_BYTES, options.max_context or _CONTEXT)
    memory = StageMemory(
        shard.layer_count, budget.token_bytes, budget.tokens(0), options.max_sequences, budget.max_context
    )
    super().__init__(shard, memory, _HIDDEN, vocab_size)

  @property
  def exactness(self) -> Exactness:
    return Exactness()

  def step(self, batch: Batch) -> npt.NDArray[Any]:
    hidden = self._computed(batch, self._hidden)
    if not self.shard.is_last:
      return hidden.astype(np.float32)
    rows = hidden[gather_logit_rows(batch.entries)]
    vocabulary = np.arange(self._vocab_size)
    logits = -((rows[:, :1] * 17 + rows[:, 1:2] * 29 + vocabulary * 613) % _PRIME).astype(np.float32) / 64
    if self._vocab_size == VOCAB_SIZE:  # the dummy model speaks printable ASCII and stops now and then
      logits[:, [*range(32), *range(127, EOS), BOS]] -= 1000
    return logits.astype(np.float32)

  def hidden_states(self, batch: Batch) -> npt.NDArray[np.float32]:
    return self._computed(batch, self._hidden).astype(np.float32)

  def length(self, sequence: int) -> int:
    cache = self._cache.get(sequence)
    return 0 if cache is None else len(cache)

  def _hidden(self, batch: Batch) -> npt.NDArray[np.int64]:
    self._fail_if_asked(batch)
    self._slow |= {e.sequence for e in batch.entries} if SLOW in batch.token_ids else set()
    if self.shard.is_last and self._slow & {e.sequence for e in batch.entries}:
      time.sleep(_SLOW_S)
    if batch.hidden is None:
      hidden = (batch.token_ids[:, None].astype(np.int64) * 31 + np.arange(1, _HIDDEN + 1) * 7) % _PRIME
    else:
      hidden = batch.hidden.astype(np.int64)
    hidden = hidden.copy()
    start = 0
    for entry in batch.entries:
      span = slice(start, start + entry.n_tokens)
      hidden[span] = self._layers(entry.sequence, hidden[span])
      start += entry.n_tokens
    return hidden

  def _fail_if_asked(self, batch: Batch) -> None:
    asked = {int(token) for token in batch.token_ids} & set(FAULTS)
    if (asked & {RAISE_FIRST} and self.shard.is_first) or (asked & {RAISE_LAST} and self.shard.is_last):
      raise EngineError("a token of this prompt makes the dummy engine fail")
    if asked & {END_THREAD} and self.shard.is_last:
      raise SystemExit
    if asked & {BREAK_LAST} and self.shard.is_last:
      self._faulty.add(BREAK_LAST)
    if self._faulty:
      raise EngineError("the dummy engine is broken")

  def _layers(self, sequence: int, hidden: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    cache = self._cache.get(sequence, np.zeros((0, self.shard.layer_count), np.int64))
    new = np.zeros((len(hidden), self.shard.layer_count), np.int64)
    for k, layer in enumerate(self.shard.layers):
      new[:, k] = hidden.sum(axis=1) % _PRIME
      past = cache[:, k].sum() + np.concatenate(([0], new[:-1, k])).cumsum()
      hidden = (hidden * 3 + (past % _PRIME)[:, None] * 5 + layer + 1) % _PRIME
    self._cache[sequence] = np.concatenate([cache, new])
    return hidden

  def drop(self, sequence: int) -> None:
    self._cache.pop(sequence, None)
    self._slow.discard(sequence)

  def truncate(self, sequence: int, length: int) -> None:
    if sequence in self._cache:
      self._cache[sequence] = self._cache[sequence][:length]

  def _copy(self, source: int, target: int, length: int) -> None:
    self._cache[target] = self._cache[source][:length].copy()

  def close(self) -> None:
    self._cache.clear()


def create() -> InferenceEngine:
  """What breaks one stage breaks all of this engine's; a new one works."""
  faulty: set[int] = set()

  def load(shard: Shard, checkpoint: Checkpoint, options: LoadOptions, progress: Callable[[float], None]) -> StageModel:
    progress(1.0)
    return DummyStage(shard, checkpoint.config.vocab_size, options, faulty)

  return InferenceEngine("dummy", load, reads_weights=False)
