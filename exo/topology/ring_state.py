"""What all nodes of a ring know of one another, in the same way, and from which each of them makes the same plan."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from exo.errors import EngineUnavailableError, PeerUnreachableError
from exo.inference.shard import Shard
from exo.model_file import ModelFile
from exo.topology.model_size import MIN_KV_TOKENS, ModelSize
from exo.topology.ring_plan import RingPlan, Stage, WorkerId, names_of
from exo.topology.weight_memory import StageBytes, WeightMemory

_MOST_NAMED = 8  # workers in one error


@dataclass(frozen=True, slots=True)
class ModelNeeds:
  """What a strategy is told of the model that it places. `kv_tokens` is how many tokens of KV cache every stage must have room
  for beside its weights, `file` what the plan is to run.
  """
  model_id: str
  size: ModelSize
  kv_tokens: int = MIN_KV_TOKENS
  file: ModelFile = field(default_factory=ModelFile)

  @property
  def n_layers(self) -> int:
    return self.size.n_layers


@dataclass(frozen=True, slots=True)
class WorkerState:
  """A device of a node, for one model. `worker` names it among the devices of its node.

  `offered_bytes` is what layers are divided by, `usable_bytes` what of it the worker can really use now: free, or taken by
  what it has loaded, and `pinned_bytes` what of that other models hold that never give way. `cannot` is why the worker can run nothing of this model; None where it can. `whole_only`: it can run
  the model, but no part of it.
  """
  node_id: str
  worker: str
  incarnation: int
  offered_bytes: int
  usable_bytes: int
  weights: WeightMemory = field(default_factory=WeightMemory)
  cannot: str | None = None
  whole_only: bool = False
  pinned_bytes: int = 0

  @property
  def room_bytes(self) -> int:
    """The most that a stage of this worker may take."""
    return max(0, min(self.offered_bytes, self.usable_bytes) - self.pinned_bytes)

  def stage(self, model: ModelNeeds, start: int, end: int) -> StageBytes:
    """What layers [start, end) would take here, while they are loaded and afterwards with their KV cache."""
    return self.weights.stage(model.size, start, end, model.kv_tokens)

  def stage_bytes(self, model: ModelNeeds, start: int, end: int) -> int:
    """The most of both."""
    return self.stage(model, start, end).most

  def runs(self, model: ModelNeeds, start: int, end: int) -> bool:
    """Whether layers [start, end) are a stage that it can run, or none; room is another question."""
    return start == end or (self.cannot is None and (not self.whole_only or end - start == model.n_layers))

  @property
  def by(self) -> WorkerId:
    return WorkerId(self.node_id, self.worker)


@dataclass(frozen=True)
class RingState:
  """The workers of a ring for one model, by node and name, in whatever order they were told.

  Raises `ValueError` where a worker is told twice.
  """
  workers: tuple[WorkerState, ...]

  def __post_init__(self) -> None:
    # sorted here, so that no strategy can give another answer on a node that has met the others in another order
    object.__setattr__(self, "workers", tuple(sorted(self.workers, key=lambda w: w.by)))
    if len({w.by for w in self.workers}) != len(self.workers):
      raise ValueError(f"a worker is twice in a ring: {named(w.by for w in self.workers)}")

  @property
  def able(self) -> tuple[WorkerState, ...]:
    """Those that can run the model."""
    return tuple(w for w in self.workers if w.cannot is None)

  def able_for(self, model: ModelNeeds) -> tuple[WorkerState, ...]:
    """As `able`, at least one.

    Raises `PeerUnreachableError` where no worker is there, `EngineUnavailableError` with the reasons where none can.
    """
    if not self.workers:
      raise PeerUnreachableError(f"no node is there to run {model.model_id}")
    if not self.able:
      raise EngineUnavailableError(f"no worker of this ring can run {model.model_id}: {self.why_not()}")
    return self.able

  def why_not(self) -> str:
    """The workers that cannot run the model, each with its reason; empty where all can."""
    return named(f"{self.name_of(w)}: {w.cannot}" for w in self.workers if w.cannot is not None)

  def name_of(self, worker: WorkerState) -> str:
    """Of one of them, for people."""
    return self._names[worker.by]

  @cached_property
  def _names(self) -> dict[WorkerId, str]:
    return names_of(worker.by for worker in self.workers)

  @property
  def epoch(self) -> str:
    """The version of this membership: another one when a worker that can run the model comes, goes, starts anew or offers
    other memory, in whatever order they were told.
    """
    text = "\n".join(f"{w.node_id} {w.worker} {w.incarnation} {w.offered_bytes}" for w in self.able)
    return hashlib.sha256(text.encode()).hexdigest()[:12]

  def plan(self, model: ModelNeeds, layers: Iterable[tuple[WorkerState, int]]) -> RingPlan:
    """The plan in which these workers, in this order, get so many layers each; one that gets none has no stage.

    Raises `ValueError` where that is not every layer exactly once.
    """
    stages, start = [], 0
    for worker, count in layers:
      if count:
        shard = Shard(model.model_id, start, start + count - 1, model.n_layers)
        stages.append(Stage(worker.node_id, shard, worker.worker, worker.stage(model, start, start + count)))
        start += count
    return RingPlan(model.model_id, self.epoch, tuple(stages), model.file)

  def check(self, model: ModelNeeds, plan: RingPlan) -> None:
    """Raises `ValueError` for a plan that is not of this ring, or that gives a worker what it cannot hold or run."""
    able = {w.by: w for w in self.able}
    for stage in plan.stages:
      worker, start, end = able.get(stage.by), stage.shard.start_layer, stage.shard.end_layer + 1
      if worker is None or not worker.runs(model, start, end):
        raise ValueError(f"{plan}: {stage.by} cannot run its part of {model.model_id}")
      if worker.stage_bytes(model, start, end) > worker.room_bytes:
        raise ValueError(f"{plan}: {self.name_of(worker)} has no room for its layers")
    made_for = (plan.model_id, plan.file, plan.epoch, plan.first.shard.n_layers)
    if made_for != (model.model_id, model.file, self.epoch, model.n_layers):
      raise ValueError(f"{plan} is not of this model and this ring")


def named(things: Iterable[object]) -> str:
  """A list for an error, which stays readable in a large ring."""
  texts = [str(thing) for thing in things]
  more = [f"and {len(texts) - _MOST_NAMED} more"] if len(texts) > _MOST_NAMED else []
  return "; ".join([*texts[:_MOST_NAMED], *more])
