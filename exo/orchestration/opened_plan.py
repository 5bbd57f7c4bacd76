"""What a node has of a plan: the stages that are loaded, and those that are still being loaded."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from exo.networking.messages import PlanOpened
from exo.orchestration.plan_driver import PlanDriver
from exo.orchestration.stage_opener import OpenedStage
from exo.orchestration.stage_runner import StageRunner
from exo.topology.ring_plan import RingPlan
from exo.worker.worker import Worker


@dataclass(frozen=True, slots=True)
class RunningStage:
  """A stage of an open plan."""
  runner: StageRunner
  loaded: OpenedStage

  @property
  def worker(self) -> Worker:
    return self.runner.worker

  @property
  def limits(self) -> PlanOpened:
    """What it can keep, for the plan's first stage."""
    memory = self.loaded.model.memory
    return PlanOpened(
        self.runner.plan.plan_id, memory.max_kv_tokens, memory.max_sequences, memory.max_context, memory.max_drafting,
        self.worker.lease(self.loaded.model), self.loaded.model.exactness, memory.indivisible
    )


@dataclass
class OpenedPlan:
  """A plan of which this node has `stages`: those that are loaded, by their place in the plan; `studies` find out more about them."""
  plan: RingPlan
  stages: dict[int, RunningStage] = field(default_factory=dict)
  driver: PlanDriver | None = None
  used_at: float = field(default_factory=time.monotonic)
  studies: list[asyncio.Task[None]] = field(default_factory=list)

  @property
  def idle(self) -> bool:
    """No sequence is open on it and no frame on its way, here."""
    return all(stage.runner.idle for stage in self.stages.values())

  @property
  def unused(self) -> bool:
    """As `idle`, and no request waits for its turn here."""
    return self.idle and (self.driver is None or self.driver.idle)

  def on(self, worker: Worker) -> RunningStage | None:
    """Its stage on that worker."""
    return next((stage for stage in self.stages.values() if stage.worker is worker), None)


@dataclass(frozen=True)
class Opening:
  """A plan one of whose stages is being loaded here."""
  plan: RingPlan
  task: asyncio.Task[PlanOpened]
