"""A stage in the process that computes: llama.cpp's model, and the caches of its sequences."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import astuple, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from exo.inference.engine import BatchEntry, LogitsOf
from exo.inference.exactness import CAREFUL
from exo.inference.kv_type import KvType
from exo.inference.llama_cpp.buffer_sizes import BufferSizes
from exo.inference.llama_cpp.cache_plan import CacheRoom, plan_caches
from exo.inference.llama_cpp.context_costs import ContextCosts
from exo.inference.llama_cpp.kv_pool import Classes, KvPool, Place
from exo.inference.llama_cpp.llama_model import Floats, LastWords, LlamaContext, LlamaModel, Row
from exo.inference.llama_cpp.opening import Opening, read_cut
from exo.inference.llama_cpp.signals import Signals
from exo.inference.shard import Shard

STEP_ROWS = 512  # of one call
_SCORED_BYTES = 32 << 20  # of logits of one call, which there are twice
_SCORED_ROWS = 8  # or a multiple


@dataclass(frozen=True, slots=True)
class _Single:
  """An entry of one token: what goes in, (1, width) or (1,), and where to put what comes of it, of 0 rows or 1."""
  entry: BatchEntry
  given: npt.NDArray[Any]
  out: Floats


class ChildStage:
  """Knows nothing of other nodes: it is told what to compute, and its parent sees to it that that fits."""
  def __init__(
      self, library: Any, words: LastWords, path: Path, shard: Shard, threads: int, kv: KvType, room: CacheRoom,
      weight_bytes: int, opening: Opening, signals: Signals
  ) -> None:
    """`room` is what is left beside `weight_bytes`. Raises `ModelFilesError`, `UnsupportedModelError`, `OutOfMemoryError`."""
    self._is_last = shard.is_last
    header, self._cut = read_cut(path, shard)
    n_words = header.tensors["token_embd.weight"].shape[0]
    #: of an entry that wants logits of several rows, how many go into one call
    self.scored_rows = max(1, min(STEP_ROWS, _SCORED_BYTES // (4 * n_words) // _SCORED_ROWS * _SCORED_ROWS))
    outputs = self.scored_rows if shard.is_last else 0

    def context(model: LlamaModel, length: int, count: int) -> LlamaContext:
      of = self._cut
      return LlamaContext(
          model, length, count, STEP_ROWS, threads, kv, of.out, of.feed, signals.abort_callback, outputs
      )

    with ExitStack() as stack:
      file = stack.enter_context(closing(opening.open(path, header, self._cut)))
      sized = stack.enter_context(
          closing(LlamaModel(library, words, file.file, lambda _: None, plain=opening.plain, sized_only=True))
      )
      costs = ContextCosts(lambda length, count: context(sized, length, count))
      # layers of zeros may stand in a stage, which the model does not have
      self.plan = plan = plan_caches(costs, room.without(max(0, file.n_bytes - weight_bytes)))
      self._model = model = stack.enter_context(
          closing(LlamaModel(library, words, file.file, partial(setattr, signals, "progress"), plain=opening.plain))
      )
      file.let_go()
      self._held = stack.pop_all()
    self.exactness = CAREFUL
    classes = Classes(plan.shortest, plan.longest, room.near, plan.at_once)
    self._pool = KvPool(lambda length, count: context(model, length, count), costs.whole, plan.pool_bytes, classes)

  @property
  def buffers(self) -> BufferSizes:
    """What the library has really taken, as it says."""
    each = [self._model.buffers, *(context.buffers for context in self._pool.contexts)]
    return BufferSizes(*(sum(astuple(one)[i] for one in each) for i in range(len(fields(BufferSizes)))))

  @property
  def weight_bytes(self) -> int:
    return self._model.buffers.weights

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

  def expect(self, tokens: Mapping[int, int]) -> None:
    """What sequences of the next call will hold, as far as that is known, so that they need not move while they grow."""
    self._pool.expected = tokens

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
      a = 0
      while a < entry.n_tokens:
        n = self._piece(entry.position + a, entry.n_tokens - a, self.scored_rows)
        place = self._pool.place(entry.sequence, entry.position + a + n, entry.far, entry.exact)
        rows = [Row(place.number, entry.position + a + i) for i in range(n)]
        part = slice(start + a, start + a + n)
        out[part] = place.context.final_hidden(rows, given[part], self._cut.positions)
        self._look_at(entry.sequence, out[part])
        a += n
      start += entry.n_tokens

  def _prompt(self, entry: BatchEntry, given: npt.NDArray[Any], out: Floats) -> None:
    done = a = 0
    scores = self._is_last and entry.logits not in (LogitsOf.NONE, LogitsOf.LAST)
    while a < entry.n_tokens:
      left = entry.n_tokens - a
      b = a + self._piece(entry.position + a, left, self.scored_rows if scores else STEP_ROWS)
      # of the marked rows, which are the last ones of an entry, those in this part
      first_wanted = entry.n_tokens - entry.logit_rows
      place = self._pool.place(entry.sequence, entry.position + b, entry.far, entry.exact)
      rows = [Row(place.number, entry.position + i, i >= first_wanted) for i in range(a, b)]
      found = place.context.compute(rows, given[a:b], self._cut.positions)
      out[done:done + len(found)] = found
      done += len(found)
      self._look_at(entry.sequence, found)
      a = b

  def _piece(self, position: int, left: int, most: int) -> int:
    """How many tokens of a prompt make the next call. Where all their results are wanted, and these are too large for a piece that must be
    whole, calls are cut at the same places each time."""
    return self.exactness.piece(position, left, most) or min(left, most - position % most)

  def _decode(self, singles: Sequence[_Single], most: int) -> None:
    """At most so many of them in a call, 0: any number."""
    for one in singles:  # whoever grows moves others, so that all are where they stay before any is computed
      self._place(one)
    self._pool.bring_together({one.entry.sequence for one in singles})
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
    self._held.close()
