"""Keeps one entry's fault from its neighbours: a step that raises is run again entry by entry, and numbers that are not finite
are found where they leave a stage and where they arrive.

Runs on the device thread.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from exo.errors import (
    BadNumbersError,
    CacheLostError,
    CancelledRequestError,
    EngineEndedError,
    EngineError,
    ExoError,
    OutOfMemoryError,
    StageSickError,
    StepAbortedError,
    in_words,
    stage_sick,
)
from exo.inference.engine import Activation, Batch, BatchEntry, LogitsOf, StageModel
from exo.log import log
from exo.topology.ring_plan import RingPlan

CHECK_SEQUENCE = 0  # schedulers count from 1
LARGEST = 1e18  # its square still is a float32, so a norm of anything up to it is finite
_LARGEST_BITS = {
    np.dtype(np.float16): int(np.array(65504, np.float16).view(np.uint16)),
    np.dtype(ml_dtypes.bfloat16): int(np.array(LARGEST, ml_dtypes.bfloat16).view(np.uint16)),
}
Rows = npt.NDArray[Any]
Compute = Callable[[Batch], Rows]


@dataclass(slots=True)
class Guarded:
  """What came of a step. `batch` are the entries that were computed, `rows` what the engine gave for them.

  `failures` has the error of every other entry, `doubtful` the sequences for which this stage made bad numbers twice.
  `broken` is why the stage can compute nothing at all any more, None while it can: it is sick, or its engine's process has ended.
  """
  batch: Batch
  rows: Rows | None
  failures: dict[int, ExoError] = field(default_factory=dict)
  doubtful: set[int] = field(default_factory=set)
  broken: StageSickError | EngineEndedError | None = None


class StepGuard:
  """For stage number `index` of a plan.

  `prompt_tokens` has the length of each open sequence's prompt, `cancelled` those because of whom a step is aborted; both are the caller's,
  who goes on changing them.
  """
  def __init__(
      self, model: StageModel, plan: RingPlan, index: int, prompt_tokens: Mapping[int, int], cancelled: Container[int]
  ) -> None:
    self._model, self._plan, self._index = model, plan, index
    self._prompt_tokens, self._cancelled = prompt_tokens, cancelled
    self._name = plan.name_of(index)

  def run(self, batch: Batch, compute: Compute) -> Guarded:
    """Compute what can be. `compute` is the engine's `step` or `hidden_states`."""
    out = Guarded(batch, None)
    if batch.hidden is not None and not are_numbers(batch.hidden):
      self._refuse_arrived(out)
    while out.batch.entries and out.rows is None:
      try:
        out.rows = compute(out.batch)
      except StepAbortedError:
        self._take_back(out)
      except EngineEndedError as error:
        out.broken, out.failures = error, out.failures | {entry.sequence: error for entry in out.batch.entries}
        out.batch = out.batch.only(lambda _: False)
      except BaseException as error:  # noqa: BLE001 - an engine may raise anything, SystemExit too
        log(0, "a step of %d entries failed, each is tried alone: %s", len(out.batch.entries), in_words(error))
        self._restore(out, out.batch.entries)
        self._alone(out, compute, error)
        return out
    if out.rows is not None and out.rows.size and not are_numbers(out.rows):
      self._again(out, compute)
    return out

  def _take_back(self, out: Guarded) -> None:
    """A step was ended, since nobody wants some of its entries any more: what is left are the others, as before it."""
    self._restore(out, out.batch.entries)
    for entry in out.batch.entries:
      if entry.sequence in self._cancelled:
        out.failures[entry.sequence] = CancelledRequestError("nobody wants it any more")
    for sequence in out.failures:
      self._forget(sequence)
    out.batch = out.batch.only(lambda entry: entry.sequence not in out.failures)

  def _refuse_arrived(self, out: Guarded) -> None:
    assert out.batch.hidden is not None and self._index > 0
    bad = _bad_entries(out.batch, out.batch.hidden)
    sender, (node_id, worker) = self._plan.name_of(self._index - 1), self._plan.stages[self._index - 1].by
    for entry in bad:
      out.failures[
          entry.sequence
      ] = BadNumbersError(f"the numbers that {sender} sent are not finite", node=node_id, worker=worker, recomputed=0)
    out.batch = out.batch.only(lambda entry: entry not in bad)

  def _again(self, out: Guarded, compute: Compute) -> None:
    """Bad numbers came of some entries: those are computed once more, alone."""
    assert out.rows is not None
    bad = _bad_entries(out.batch, out.rows)
    log(
        0, "%s computed numbers that are not finite for %d of %d entries; trying again", self._name, len(bad),
        len(out.batch.entries)
    )
    parts = {e.sequence: rows for e, rows in _parts(out.batch, np.array(out.rows))}
    self._restore(out, bad)
    for entry in bad:
      del parts[entry.sequence]
      if entry.sequence in out.failures:  # it is computed anew as a whole, and the next time is the second
        out.failures[entry.sequence] = self._bad_numbers(recomputed=0)
      else:
        self._try_alone(out, entry, compute, parts)
    self._join(out, parts)

  def _alone(self, out: Guarded, compute: Compute, error: BaseException) -> None:
    """The caches are as before the step: find out whose fault it was."""
    parts: dict[int, Rows] = {}
    out.broken = self._broken(out.batch)
    for entry in out.batch.entries:
      if entry.sequence in out.failures:
        continue
      if out.broken is not None:
        # what this stage has computed before is not what broke it; a prompt may break the next stage, too
        out.failures[entry.sequence] = _engine_error(error) if self._in_prompt(entry) else out.broken
      else:
        self._try_alone(out, entry, compute, parts)
    self._join(out, parts)

  def _try_alone(self, out: Guarded, entry: BatchEntry, compute: Compute, parts: dict[int, Rows]) -> None:
    """Its rows into `parts`, or its error into `out.failures`."""
    try:
      rows = np.array(compute(out.batch.only(lambda other: other is entry)))
    except StepAbortedError:
      out.failures[entry.sequence] = CacheLostError(f"{self._name} lost the cache of this request")
      return
    except BaseException as error:  # noqa: BLE001 - as in `run`
      out.failures[entry.sequence] = _engine_error(error)
      out.broken = error if isinstance(error, EngineEndedError) else self._broken(out.batch)
      return
    if are_numbers(rows):
      parts[entry.sequence] = rows
      return
    out.doubtful.add(entry.sequence)
    out.failures[entry.sequence] = self._bad_numbers(recomputed=1)

  def _bad_numbers(self, recomputed: int) -> BadNumbersError:
    node_id, worker = self._plan.stages[self._index].by
    text = f"{self._name} computes numbers that are not finite"
    return BadNumbersError(text, node=node_id, worker=worker, recomputed=recomputed)

  def _join(self, out: Guarded, parts: dict[int, Rows]) -> None:
    for sequence in out.failures:
      self._forget(sequence)
    out.batch = out.batch.only(lambda entry: entry.sequence in parts)
    out.rows = np.concatenate([parts[e.sequence] for e in out.batch.entries]) if parts else None

  def _restore(self, out: Guarded, entries: tuple[BatchEntry, ...] | list[BatchEntry]) -> None:
    """Bring caches back to where they were before the step; one that cannot be brought back is given up."""
    for entry in entries:
      try:
        if entry.position == 0:
          self._model.drop(entry.sequence)
        else:
          self._model.truncate(entry.sequence, entry.position)
      except Exception as error:  # noqa: BLE001 - of an engine in an unknown state
        log(1, "the cache of sequence %d is given up: %s", entry.sequence, in_words(error))
        out.failures[entry.sequence] = CacheLostError(f"{self._name} lost the cache of this request")

  def _forget(self, sequence: int) -> None:
    try:
      self._model.drop(sequence)
    except Exception as error:  # noqa: BLE001 - of an engine in an unknown state; the plan's end frees it
      log(1, "the cache of sequence %d could not be dropped: %s", sequence, in_words(error))

  def _in_prompt(self, entry: BatchEntry) -> bool:
    return entry.position + entry.n_tokens <= self._prompt_tokens[entry.sequence]

  def _broken(self, like: Batch) -> StageSickError | EngineEndedError | None:
    try:
      check_step(self._model, None if like.hidden is None else like.hidden.shape[1])
    except OutOfMemoryError:  # all its room is taken by others, whom it computes for
      return None
    except EngineEndedError as error:
      return error
    except BaseException as error:  # noqa: BLE001 - as in `run`
      return stage_sick(self._name, *self._plan.stages[self._index].by, self._plan.model_id, _engine_error(error))
    return None


def check_step(model: StageModel, hidden_size: int | None) -> None:
  """Two tokens of a sequence that no request has, computed and forgotten; `hidden_size` None on a first stage.

  Raises what the engine raises, and `BadNumbersError`.
  """
  hidden: Activation | None = None
  if hidden_size is not None:
    hidden = np.resize(np.arange(-3, 4, dtype=np.float32) / 64, (2, hidden_size))
  try:
    rows = model.step(Batch((BatchEntry(CHECK_SEQUENCE, 0, 2, LogitsOf.LAST), ), np.zeros(2, np.int32), hidden))
    if not are_numbers(rows):
      raise BadNumbersError("its numbers are not finite")
  finally:
    model.drop(CHECK_SEQUENCE)


def are_numbers(rows: Rows) -> bool:
  """Whether all of it is finite and of a size that a model may compute with. Part of every step."""
  if not rows.size:
    return True
  if (largest := _LARGEST_BITS.get(rows.dtype)) is not None:
    # magnitudes of 16 bits order as whole numbers do, infinity and what is no number last; numpy's floats of 16 bits are slow
    return bool((rows.view(np.uint16) & 0x7FFF).max() <= largest)
  return bool(float(rows.max()) <= LARGEST and float(rows.min()) >= -LARGEST)  # false where one is not a number


def _parts(batch: Batch, rows: Rows) -> list[tuple[BatchEntry, Rows]]:
  """Each entry with its rows: of hidden states one a token, of logits as many as it wants."""
  by_token = len(rows) == batch.n_tokens
  out, start = [], 0
  for entry in batch.entries:
    count = entry.n_tokens if by_token else entry.logit_rows
    out.append((entry, rows[start:start + count]))
    start += count
  return out


def _bad_entries(batch: Batch, rows: Rows) -> list[BatchEntry]:
  return [entry for entry, part in _parts(batch, rows) if not are_numbers(part)]


def _engine_error(error: BaseException) -> ExoError:
  return error if isinstance(error, ExoError) else EngineError(in_words(error))
