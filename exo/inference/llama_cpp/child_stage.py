"""A stage in the process that computes: llama.cpp's model, and the caches of its sequences."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from exo.errors import ModelFilesError
from exo.inference.engine import BatchEntry, LogitsOf
from exo.inference.kv_type import KvType
from exo.inference.llama_cpp.buffer_sizes import BufferSizes
from exo.inference.llama_cpp.cache_plan import CacheRoom, plan_caches
from exo.inference.llama_cpp.context_costs import ContextCosts
from exo.inference.llama_cpp.kv_pool import Classes, KvPool, Place
from exo.inference.llama_cpp.llama_model import Floats, LastWords, LlamaContext, LlamaModel, Row
from exo.inference.llama_cpp.opening import Opening
from exo.inference.llama_cpp.shared_calls import SharedCalls
from exo.inference.llama_cpp.stage_cut import cut_of
from exo.inference.shard import Shard
from exo.inference.weights.file_bytes import FileBytes
from exo.inference.weights.gguf_header import parse_gguf_header

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
      weight_bytes: int, opening: Opening, progress: Callable[[float], None]
  ) -> None:
    """`room` is what is left beside `weight_bytes`. Raises `ModelFilesError`, `UnsupportedModelError`, `OutOfMemoryError`."""
    data = FileBytes(path)
    try:
      header = parse_gguf_header(data.head(), data.size)
    finally:
      data.close()
    self._is_last = shard.is_last
    n_words = header.tensors["token_embd.weight"].shape[0]
    try:
      self._cut = cut_of(header.metadata, header.tensors, shard, n_words)
    except (KeyError, IndexError, ValueError, TypeError, ArithmeticError) as error:
      raise ModelFilesError(
          f"{path.name}: what its header says of its layers does not fit together ({error!r})"
      ) from error
    #: of an entry that wants logits of several rows, how many go into one call
    self.scored_rows = max(1, min(STEP_ROWS, _SCORED_BYTES // (4 * n_words) // _SCORED_ROWS * _SCORED_ROWS))
    outputs = self.scored_rows if shard.is_last else 0

    def context(model: LlamaModel, length: int, count: int) -> LlamaContext:
      return LlamaContext(model, length, count, STEP_ROWS, threads, kv, self._cut.out, self._cut.feed, outputs)

    with ExitStack() as stack:
      file = stack.enter_context(closing(opening.open(path, header, self._cut)))
      sized = stack.enter_context(closing(LlamaModel(library, words, file.file, lambda _: None, sized_only=True)))
      costs = ContextCosts(lambda length, count: context(sized, length, count))
      # layers of zeros may stand in a stage, which the model does not have
      self.plan = plan = plan_caches(costs, room.without(max(0, file.n_bytes - weight_bytes)))
      self._model = model = stack.enter_context(closing(LlamaModel(library, words, file.file, progress)))
      file.let_go()
      self._held = stack.pop_all()
    # flash attention on floats divides a lone row's keys among threads, and several rows among them
    self._shared = SharedCalls(model.can_shorten and not (kv.flash and kv.k != "q8_0"))
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

  def step(self, entries: Sequence[BatchEntry], given: npt.NDArray[Any], out: Floats) -> None:
    """From embeddings or hidden states (tokens, width), or ids where it `takes_tokens` (tokens,), hidden states or logits (wanted rows,
    words), into `out`.

    Prompts are computed by themselves, decoded tokens as many together as are then what each is alone (`SharedCalls`). Raises
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
      self._decode(ones)

  def _prompt(self, entry: BatchEntry, given: npt.NDArray[Any], out: Floats) -> None:
    done, piece = 0, STEP_ROWS if entry.logits in (
        LogitsOf.NONE, LogitsOf.LAST
    ) or not self._is_last else self.scored_rows
    for a in range(0, entry.n_tokens, piece):
      b = min(a + piece, entry.n_tokens)
      # of the marked rows, which are the last ones of an entry, those in this part
      first_wanted = entry.n_tokens - entry.logit_rows
      place = self._pool.place(entry.sequence, entry.position + b, entry.far)
      rows = [Row(place.number, entry.position + i, i >= first_wanted) for i in range(a, b)]
      found = place.context.compute(rows, given[a:b], self._cut.positions)
      out[done:done + len(found)] = found
      done += len(found)
      self._look_at(entry.sequence, found)

  def _decode(self, singles: Sequence[_Single]) -> None:
    for one in singles:  # whoever grows moves others, so that all are where they stay before any is computed
      self._pool.place(one.entry.sequence, one.entry.position + 1, one.entry.far)
    placed = [(self._pool.place(one.entry.sequence, one.entry.position + 1, one.entry.far), one) for one in singles]
    placed.sort(key=lambda found: (id(found[0].context), found[0].number))
    while placed:
      context, number = placed[0][0].context, placed[0][0].number
      # only streams without a gap between them are computed together
      run = [p for i, p in enumerate(placed) if p[0].context is context and p[0].number == number + i]
      width = self._shared.to_try(len(run)) if all(one.entry.logit_rows for _, one in run) or not self._is_last else 0
      if width:
        self._try(run[:width])
      else:
        width = min(len(run), self._shared.widest)
        self._together(run[:width])
      del placed[:width]

  def _together(self, placed: Sequence[tuple[Place, _Single]]) -> None:
    found = self._computed(placed)
    row = 0
    for _, one in placed:
      n = len(one.out)
      one.out[:] = found[row:row + n]
      row += n
      self._look_at(one.entry.sequence, one.out)

  def _try(self, placed: Sequence[tuple[Place, _Single]]) -> None:
    together = self._computed(placed).copy()
    for place, one in placed:
      place.context.truncate(place.number, one.entry.position)
    for found in placed:
      self._together([found])
    alone = np.concatenate([one.out for _, one in placed])
    self._shared.tried(len(placed), together.tobytes() == alone.tobytes())

  def _computed(self, placed: Sequence[tuple[Place, _Single]]) -> Floats:
    rows = [Row(place.number, one.entry.position, one.entry.logit_rows > 0) for place, one in placed]
    return placed[0][0].context.compute(rows, np.concatenate([one.given for _, one in placed]), self._cut.positions)

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
