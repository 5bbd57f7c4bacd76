"""A model cut into stages and driven as a ring would drive it, without a ring."""

from __future__ import annotations

import itertools
from collections.abc import Container, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from exo.inference.engine import Batch, BatchEntry, LoadOptions, LogitsOf, StageModel
from exo.inference.engines import load_engine
from exo.inference.shard import Shard
from exo.inference.weights.checkpoint import Checkpoint


class Stages:
  """Stages of one engine, or of several named in the order of the ring."""
  def __init__(
      self,
      engines: str | Sequence[str],
      checkpoint: Checkpoint,
      cuts: Sequence[int] = (),
      quantize: str | None = None,
      max_context: int = 512,
      shard: Shard | None = None,
      kv_type: str | None = None
  ) -> None:
    """`cuts` are the stages' first layers, but for 0; `shard` makes it that stage alone."""
    n = checkpoint.config.n_layers
    bounds = [0, *cuts, n] if shard is None else [shard.start_layer, shard.end_layer + 1]
    names = [engines] * (len(bounds) - 1) if isinstance(engines, str) else engines
    self.models: list[StageModel] = []
    self.near_context = checkpoint.config.near_context
    for engine, (a, b) in zip(names, itertools.pairwise(bounds), strict=True):
      name, _, held = engine.partition(":")
      options = LoadOptions(
          2**33, 1, max_sequences=8, max_context=max_context, quantize=quantize or held or None, kv_type=kv_type
      )
      self.models.append(load_engine(name).load(Shard("m", a, b - 1, n), checkpoint, options, lambda _: None))

  def step(
      self,
      entries: Sequence[tuple[int, int, Sequence[int]]],
      logits: LogitsOf = LogitsOf.ALL,
      far: Container[int] = (),
      exact: bool = True
  ) -> npt.NDArray[Any]:
    """Entries are (sequence, position, tokens); `far` are those sequences that are."""
    batch_entries = tuple(BatchEntry(s, p, len(t), logits, s in far, exact) for s, p, t in entries)
    ids = np.concatenate([np.asarray(t, np.int32) for _, _, t in entries])
    hidden = None
    for model in self.models:
      hidden = model.step(Batch(batch_entries, ids, hidden))
    assert hidden is not None
    return hidden

  def each(self, method: str, *arguments: int) -> None:
    for model in self.models:
      getattr(model, method)(*arguments)

  def mean_nll(self, token_ids: Sequence[int], chunk: int = 256) -> float:
    """Mean negative log likelihood of a text's tokens, the first excepted, in nats."""
    rows = [self.step([(1, at, token_ids[at:at + chunk])]).astype(np.float64) for at in range(0, len(token_ids), chunk)]
    self.each("drop", 1)
    logits = np.concatenate(rows)
    logits -= logits.max(axis=-1, keepdims=True)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return float(-log_probabilities[np.arange(len(token_ids) - 1), list(token_ids[1:])].mean())

  def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
    """The prompt's continuation."""
    far = (1, ) if 0 < self.near_context < len(prompt) + count - 1 else ()
    tokens, row = [], self.step([(1, 0, prompt)], LogitsOf.LAST, far)
    for position in range(len(prompt), len(prompt) + count):
      tokens.append(int(row[-1].argmax()))
      if len(tokens) < count:
        row = self.step([(1, position, tokens[-1:])], LogitsOf.LAST, far)
    self.each("drop", 1)
    return tokens

  def close(self) -> None:
    for model in self.models:
      model.close()
