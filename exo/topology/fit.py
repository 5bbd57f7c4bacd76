"""Whether a ring as it is now can run a model: on one node alone, on several together, or not at all."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from exo.errors import EngineUnavailableError, ModelTooLargeError, PeerUnreachableError
from exo.topology.placements import Strategy
from exo.topology.ring_plan import RingPlan
from exo.topology.ring_state import ModelNeeds, RingState, WorkerState

_MB = 2**20


class Where(StrEnum):
  """`HERE`: this node alone can. `RING`: it takes other nodes. `UNKNOWN`: nobody has looked at the model yet."""
  HERE = "here"
  RING = "ring"
  NOWHERE = "nowhere"
  UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Fit:
  """`missing_mb` is what this node lacks to run the model alone, and where the model runs nowhere, what the ring lacks; 0
  where it is not memory that is lacking. `reason` is why it does not run here, "" where there is nothing to say. `max_context` is how
  many tokens of one sequence there is room for where it runs.
  """
  where: Where
  missing_mb: int = 0
  reason: str = ""
  max_context: int = 0

  @property
  def runs(self) -> bool:
    return self.where in (Where.HERE, Where.RING)

  def __str__(self) -> str:
    match self.where:
      case Where.HERE:
        return "here"
      case Where.RING:
        return f"with other nodes: {f'{self.missing_mb} MB are missing here' if self.missing_mb else self.reason}"
      case Where.NOWHERE:
        return f"no: {self.reason}"
      case Where.UNKNOWN:
        return f"unknown: {self.reason}"


def fit(model: ModelNeeds, ring: RingState, here: str, place: Strategy) -> Fit:
  """What `place` would make of this model for the node `here` of this ring, and what it would lack."""
  own = RingState(tuple(worker for worker in ring.workers if worker.node_id == here))
  alone = _lacks(model, own, place) if own.workers else _Lack(0, f"no device of {here} can compute now")
  if isinstance(alone, RingPlan):
    return Fit(Where.HERE, max_context=_room_tokens(model, own.able, alone))
  if len(own.workers) == len(ring.workers):
    return Fit(Where.NOWHERE, alone.missing_mb, alone.reason)
  together = _lacks(model, ring, place)
  if isinstance(together, RingPlan):
    return Fit(Where.RING, alone.missing_mb, alone.reason, _room_tokens(model, ring.able, together))
  return Fit(Where.NOWHERE, together.missing_mb, together.reason)


@dataclass(frozen=True, slots=True)
class _Lack:
  missing_mb: int
  reason: str


def _lacks(model: ModelNeeds, ring: RingState, place: Strategy) -> RingPlan | _Lack:
  """The plan, or why there is none."""
  if (lack := _plainly_lacks(model, ring.able)) is not None:
    return lack
  try:
    return place(model, ring)
  except ModelTooLargeError as error:
    missing_mb = error.details.get("missing_mb")
    return _Lack(missing_mb if isinstance(missing_mb, int) else 0, error.message)
  except (EngineUnavailableError, PeerUnreachableError) as error:
    reasons = dict.fromkeys(worker.cannot for worker in ring.workers)
    return _Lack(0, (next(iter(reasons)) if len(reasons) == 1 else ring.why_not()) or error.message)


def _plainly_lacks(model: ModelNeeds, able: Iterable[WorkerState]) -> _Lack | None:
  """That even one stage in all the memory together would not do: most catalogues have many such models, and a strategy
  that tries every division of their layers takes its time.
  """
  workers = tuple(able)
  if not workers:
    return None
  needed = min(worker.stage_bytes(model, 0, model.n_layers) for worker in workers)
  room, kept = sum(worker.room_bytes for worker in workers), sum(worker.pinned_bytes for worker in workers)
  if needed <= room:
    return None
  missing_mb = math.ceil((needed - room) / _MB)
  return _Lack(
      missing_mb, f"it needs about {math.ceil(needed / _MB)} MB, and {room // _MB} MB can be used"
      f"{f' beside {kept // _MB} MB of models that are kept' if kept else ''}: {missing_mb} MB are missing"
  )


def _room_tokens(model: ModelNeeds, workers: Iterable[WorkerState], plan: RingPlan) -> int:
  """Tokens of KV for which every stage has room."""
  by_id = {worker.by: worker for worker in workers}
  tokens = []
  for stage in plan.stages:
    worker, start, end = by_id[stage.by], stage.shard.start_layer, stage.shard.end_layer + 1
    spare = worker.room_bytes - worker.stage(model, start, end).held
    a_token = (end - start) * model.size.kv_bytes_per_token
    if a_token:
      tokens.append(model.kv_tokens + spare // a_token)
  return min(tokens, default=0)
