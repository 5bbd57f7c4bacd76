"""A stage in the process that computes: llama.cpp's model, and the caches of its sequences."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from exo.inference.engine import BatchEntry
from exo.inference.exactness import CAREFUL
from exo.inference.kv_type import KvType
from exo.inference.llama_cpp.kv_pool import KvPool, Place
from exo.inference.llama_cpp.llama_model import Floats, LastWords, LlamaContext, Row
from exo.inference.llama_cpp.signals import Signals
from exo.inference.llama_cpp.stage_model import open_stage
from exo.inference.shard import Shard

STEP_ROWS = 512  # of one call
_EMBEDDED_ROWS = 64  # of one for embeddings, in which llama.cpp makes logits of all rows, too


@dataclass(frozen=True, slots=True)
class _Single:
  """An entry of one token: what goes in, (1, width) or (1,), and where to put what comes of it, of 0 rows or 1."""
  entry: BatchEntry
  given: npt.NDArray[Any]
  out: Floats


class ChildStage:
  """Knows nothing of other nodes: it is told what to compute, and its parent sees to it that that fits."""
  def __init__(
      self, library: Any, words: LastWords, path: Path, shard: Shard, threads: int, kv: KvType, kv_token_bytes: int,
      kv_bytes: int, most_length: int, near_length: int, signals: Signals
  ) -> None:
    """`near_length` as `StageMemory.near_context`. Raises `ModelFilesError`, `UnsupportedModelError`, `OutOfMemoryError`."""
    self._is_last = shard.is_last
    self._model, self._cut = open_stage(library, words, path, shard, partial(setattr, signals, "progress"))

    def make(length: int, count: int) -> LlamaContext:
      of = self._cut
      return LlamaContext(self._model, length, count, STEP_ROWS, threads, kv, of.out, of.feed, signals.abort_callback)

    self.exactness = CAREFUL
    self._pool = KvPool(make, kv_token_bytes, kv_bytes, most_length, near_length)

  @property
  def width(self) -> int:
    return self._model.width

  @property
  def n_words(self) -> int:
    return self._model.n_words

  @property
  def can_shorten(self) -> bool:
    return self._model.can_shorten

  @property
  def takes_tokens(self) -> bool:
    return self._cut.takes_tokens

  def step(self, entries: Sequence[BatchEntry], given: npt.NDArray[Any], out: Floats) -> None:
    """From embeddings or hidden states (tokens, width), or ids where it `takes_tokens` (tokens,), hidden states or logits (wanted rows,
    words), into `out`.

    Prompts are computed by themselves, decoded tokens as many together as `exactness` allows, where theirs must be exact. Raises
    `EngineError`; sequences may then be longer than they were.
    """
    starts = [0, *itertools.accumulate(entry.n_tokens for entry in entries)]
    wanted = [0, *itertools.accumulate(entry.logit_rows for entry in entries)]
    at = wanted if self._is_last else starts
    singles = [i for i, entry in enumerate(entries) if entry.n_tokens == 1]
    for i, entry in enumerate(entries):
      if entry.n_tokens != 1:
        self._prompt(entry, given[starts[i]:starts[i + 1]], out[at[i]:at[i + 1]])
    if singles:
      ones = [_Single(entries[i], given[starts[i]:starts[i + 1]], out[at[i]:at[i + 1]]) for i in singles]
      for exact in (True, False):
        self._decode([one for one in ones if one.entry.exact == exact], self.exactness.decode_rows if exact else 0)

  def hidden_states(self, entries: Sequence[BatchEntry], given: npt.NDArray[Any], out: Floats) -> None:
    """As `step` on the last stage, but hidden states after the final norm, (tokens, width)."""
    start = 0
    for entry in entries:
      for a in range(0, entry.n_tokens, _EMBEDDED_ROWS):
        n = min(_EMBEDDED_ROWS, entry.n_tokens - a)
        place = self._pool.place(entry.sequence, entry.position + a + n, entry.far, entry.exact)
        rows = [Row(place.number, entry.position + a + i) for i in range(n)]
        part = slice(start + a, start + a + n)
        out[part] = place.context.final_hidden(rows, given[part], self._cut.positions)
        self._look_at(entry.sequence, out[part])
      start += entry.n_tokens

  def _prompt(self, entry: BatchEntry, given: npt.NDArray[Any], out: Floats) -> None:
    done = a = 0
    while a < entry.n_tokens:
      b = a + self.exactness.piece(entry.position + a, entry.n_tokens - a, STEP_ROWS)
      # of the marked rows, which are the last ones of an entry, those in this part
      first_wanted = entry.n_tokens - entry.logit_rows
      place = self._pool.place(entry.sequence, entry.position + b, entry.far, entry.exact)
      rows = [Row(place.number, entry.position + i, i >= first_wanted) for i in range(a, b)]
      found = place.context.compute(rows, given[a:b], self._cut.positions)
      out[done:done + len(found)] = found
      done += len(found)
      self._look_at(entry.sequence, found)
      a = b

  def _decode(self, singles: Sequence[_Single], most: int) -> None:
    """At most so many of them in a call, 0: any number."""
    for one in singles:  # whoever grows moves others, so that all are where they stay before any is computed
      self._place(one)
    placed = [(self._place(one), one) for one in singles]
    placed.sort(key=lambda found: (id(found[0].context), found[0].number))
    while placed:
      context, number = placed[0][0].context, placed[0][0].number
      # only streams without a gap between them are computed together
      run = [p for i, p in enumerate(placed) if p[0].context is context and p[0].number == number + i]
      run = run[:most or len(run)]
      self._together(run)
      del placed[:len(run)]

  def _place(self, one: _Single) -> Place:
    return self._pool.place(one.entry.sequence, one.entry.position + 1, one.entry.far, one.entry.exact)

  def _together(self, placed: Sequence[tuple[Place, _Single]]) -> None:
    rows = [Row(place.number, one.entry.position, one.entry.logit_rows > 0) for place, one in placed]
    given = np.concatenate([one.given for _, one in placed])
    found = placed[0][0].context.compute(rows, given, self._cut.positions)
    row = 0
    for _, one in placed:
      n = len(one.out)
      one.out[:] = found[row:row + n]
      row += n
      self._look_at(one.entry.sequence, one.out)

  def _look_at(self, sequence: int, found: Floats) -> None:
    if not np.isfinite(found).all():
      self._pool.poison(sequence)

  def drop(self, sequence: int) -> None:
    self._pool.drop(sequence)

  def truncate(self, sequence: int, length: int) -> None:
    self._pool.truncate(sequence, length)

  def copy(self, source: int, target: int, length: int, held: int) -> None:
    self._pool.copy(source, target, length, held)

  def close(self) -> None:
    self._pool.close()
    self._model.close()
