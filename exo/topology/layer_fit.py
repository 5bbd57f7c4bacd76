"""From the layers that each worker should get to those that it can hold."""

from __future__ import annotations

import math
from collections.abc import Sequence

from exo.errors import ModelTooLargeError
from exo.topology.ring_state import ModelNeeds, RingState, WorkerState, named

_MB = 2**20
# how far the layers so far are from fitting (bytes), how far from what was wanted (layers), and how many each worker has
_Division = tuple[int, int, tuple[int, ...]]


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
  division = _nearest(model, workers, wanted, within=True)
  if division is None:
    division = _nearest(model, workers, wanted, within=False)
    assert division is not None
    raise _too_large(model, ring, workers, division)
  return division[2]


def _missing(model: ModelNeeds, worker: WorkerState, start: int, end: int) -> int:
  return max(0, worker.stage_bytes(model, start, end) - worker.room_bytes)


def _nearest(
    model: ModelNeeds, workers: Sequence[WorkerState], wanted: Sequence[int], within: bool
) -> _Division | None:
  """The division that misses the fewest bytes, then the fewest wanted layers; with `within` one that misses no byte."""
  best: dict[int, _Division] = {0: (0, 0, ())}  # by how many layers the workers so far hold
  for worker, want in zip(workers, wanted, strict=True):
    step: dict[int, _Division] = {}
    for done, (missing, deviation, counts) in best.items():
      for end in range(done, model.n_layers + 1):
        over = _missing(model, worker, done, end)
        if over and within:
          break
        if not worker.runs(model, done, end):
          continue
        candidate = (missing + over, deviation + abs(end - done - want), (*counts, end - done))
        if end not in step or candidate < step[end]:
          step[end] = candidate
    best = step
  return best.get(model.n_layers)


def _too_large(
    model: ModelNeeds, ring: RingState, workers: Sequence[WorkerState], division: _Division
) -> ModelTooLargeError:
  needed, start = 0, 0
  each: list[tuple[int, int, str]] = []  # those that lack most come first
  for worker, count in zip(workers, division[2], strict=True):
    end = start + count
    needed += worker.stage_bytes(model, start, end)
    of = f", layers {start} to {end - 1} need {math.ceil(worker.stage_bytes(model, start, end) / _MB)} MB" if count else ""
    text = f"{worker} can use {worker.room_bytes // _MB} MB{of}"
    each.append((-_missing(model, worker, start, end), len(each), text))
    start = end
  missing_mb = math.ceil(division[0] / _MB)
  usable = sum(worker.room_bytes for worker in workers)
  others = f" No part is taken by {why_not}." if (why_not := ring.why_not()) else ""
  return ModelTooLargeError(
      f"{model.model_id} needs about {math.ceil(needed / _MB)} MB, this ring can use {usable // _MB} MB: {missing_mb} MB "
      f"are missing ({named(text for *_, text in sorted(each))}).{others} Add a node, raise --max-memory, or choose a smaller model.",
      missing_mb=missing_mb,
  )
