"""From the layers that each worker should get to those that it can hold."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from exo.errors import ModelTooLargeError
from exo.topology.ring_state import ModelNeeds, RingState, WorkerState, named
from exo.topology.weight_memory import WeightMemory

_MB = 2**20
_Table = npt.NDArray[np.float64]


def fit_layers(model: ModelNeeds, ring: RingState, workers: Sequence[WorkerState],
               wanted: Sequence[int]) -> tuple[int, ...]:
  """How many layers each of these workers gets, in their order: as many as `wanted` where they can hold and run them, else
  as near to that as they can. All of them can run the model, and get no part of it where they only run the whole.

  Raises `ModelTooLargeError` where no division fits them in this order, with the bytes that are missing in the one that
  comes nearest.
  """
  start, as_wanted = 0, True
  for worker, count in zip(workers, wanted, strict=True):
    end = start + count
    as_wanted = as_wanted and worker.runs(model, start, end) and not _missing(model, worker, start, end)
    start = end
  if as_wanted:
    return tuple(wanted)
  missing, counts = _nearest(model, workers, wanted)
  if missing:
    raise _too_large(model, ring, workers, missing, counts)
  return counts


def _missing(model: ModelNeeds, worker: WorkerState, start: int, end: int) -> int:
  return max(0, worker.stage_bytes(model, start, end) - worker.room_bytes)


def _nearest(model: ModelNeeds, workers: Sequence[WorkerState], wanted: Sequence[int]) -> tuple[int, tuple[int, ...]]:
  """The division that misses the fewest bytes, then the fewest wanted layers, then that with fewer layers for the first."""
  n = model.n_layers
  starts, ends = np.arange(n + 1)[:, None], np.arange(n + 1)
  needs: dict[tuple[WeightMemory, bool], _Table] = {}  # workers of one kind need the same
  # by start: what is missing, and how far from what is wanted, where the workers that come later hold all layers from there
  missing, deviation = np.where(ends == n, 0.0, np.inf), np.zeros(n + 1)
  choices = []
  for worker, want in reversed(list(zip(workers, wanted, strict=True))):
    kind = worker.weights, worker.whole_only
    if kind not in needs:
      needs[kind] = _needs(model, worker)
    # by start and end of this worker's stage
    all_missing = np.maximum(needs[kind] - worker.room_bytes, 0) + missing
    missing = all_missing.min(axis=1)
    deviations = np.where(all_missing == missing[:, None], deviation + abs(ends - starts - want), np.inf)
    choices.append(deviations.argmin(axis=1))  # the first of several
    deviation = deviations.min(axis=1)
  counts, start = [], 0
  for choice in reversed(choices):
    counts.append(int(choice[start]) - start)
    start = int(choice[start])
  return int(missing[0]), tuple(counts)


def _needs(model: ModelNeeds, worker: WorkerState) -> _Table:
  """The bytes that a stage takes on such a worker, by its start and end; infinite where it cannot run it."""
  counts = np.arange(model.n_layers + 1) - np.arange(model.n_layers + 1)[:, None]
  runs = (counts == 0) | (counts == model.n_layers) if worker.whole_only else counts >= 0
  return np.where(runs, worker.weights.table(model.size, model.kv_tokens), np.inf)


def _too_large(
    model: ModelNeeds, ring: RingState, workers: Sequence[WorkerState], missing: int, counts: Sequence[int]
) -> ModelTooLargeError:
  needed, start = 0, 0
  each: list[tuple[int, int, str]] = []  # those that lack most come first
  for worker, count in zip(workers, counts, strict=True):
    end = start + count
    needed += worker.stage_bytes(model, start, end)
    of = f", layers {start} to {end - 1} need {math.ceil(worker.stage_bytes(model, start, end) / _MB)} MB" if count else ""
    kept = f" beside {worker.pinned_bytes // _MB} MB of models that it keeps" if worker.pinned_bytes else ""
    text = f"{ring.name_of(worker)} can use {worker.room_bytes // _MB} MB{kept}{of}"
    each.append((-_missing(model, worker, start, end), len(each), text))
    start = end
  missing_mb = math.ceil(missing / _MB)
  usable = sum(worker.room_bytes for worker in workers)
  others = f" No part is taken by {why_not}." if (why_not := ring.why_not()) else ""
  return ModelTooLargeError(
      f"{model.model_id} needs about {math.ceil(needed / _MB)} MB, this ring can use {usable // _MB} MB: {missing_mb} MB "
      f"are missing ({named(text for *_, text in sorted(each))}).{others} Add a node, raise --max-memory, or choose a smaller model.",
      missing_mb=missing_mb,
  )
