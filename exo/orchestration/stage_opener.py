"""Brings stages of plans into a worker: fetched side by side, loaded one after the other, with room made for each."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Protocol

from exo.errors import DeadlineError, ExoError, ModelTooLargeError, PeerLostError, PlanClosedError
from exo.inference.engine import StageModel
from exo.inference.grammar import GrammarCompiler
from exo.inference.shard import Shard
from exo.model_file import ModelFile
from exo.networking.messages import OpenPlan
from exo.orchestration.frame_check import FrameBounds
from exo.orchestration.stage_files import StageFiles
from exo.topology.ring_plan import RingPlan
from exo.worker.step_guard import check_step
from exo.worker.worker import Worker

_SPARE = 1.5
_ROOM_POLL_S = 0.05
_ROOM_TIMEOUT_S = 3600.0


class Residents(Protocol):
  """What is loaded already."""
  async def give_way(self, worker: Worker, plan: RingPlan, but_model: str | None) -> bool | None:
    """Close the plan on this worker that nobody has used for longest, of other models than `but_model`; False where all are in
    use, None where there is none."""


@dataclass(frozen=True, slots=True)
class OpenedStage:
  """A stage that is ready. `grammars` on the last one."""
  model: StageModel
  bounds: FrameBounds
  grammars: GrammarCompiler | None


class StageOpener:
  """For one worker; `residents` are what it has loaded."""
  def __init__(self, worker: Worker, files: StageFiles, residents: Residents) -> None:
    self._worker, self._files, self._residents = worker, files, residents
    self._memory = asyncio.Lock()
    self._lost: dict[str, ExoError] = {}
    self._opening: set[str] = set()

  def lose(self, plan_id: str, error: ExoError) -> None:
    """Nobody wants a plan any more that may be opening here: it ends with `error`, which is not this node's."""
    if plan_id in self._opening:
      self._lost[plan_id] = error if isinstance(error, PeerLostError) else PlanClosedError(error.message)

  def lose_all(self, error: ExoError) -> None:
    """The worker cannot compute any more."""
    for plan_id in self._opening:
      self.lose(plan_id, error)

  async def open(self, message: OpenPlan) -> OpenedStage:
    """Fetch and load this worker's stage, and see that it computes.

    Raises whatever is wrong with model, files, memory or engine; `ModelTooLargeError` where a plan that should stand beside
    another of its model cannot.
    """
    plan = message.plan
    shard = plan.stages[message.stage].shard
    self._opening.add(plan.plan_id)
    try:
      await self._files.fetch(shard, message.file)  # what is on disk already does not wait for it
      give_up = time.monotonic() + _ROOM_TIMEOUT_S
      while time.monotonic() < give_up:
        async with self._memory:
          if await self._has_room(message, shard):
            return await self._load(shard, message.file, plan.plan_id)
        await asyncio.sleep(_ROOM_POLL_S)
      raise DeadlineError(f"{self._worker.label} had no room for {shard} in {_ROOM_TIMEOUT_S:g} s")
    finally:
      self._opening.discard(plan.plan_id)
      self._lost.pop(plan.plan_id, None)

  async def try_out(self, shard: Shard, file: ModelFile, lacked_memory: bool) -> None:
    """Load a shard and let go of it again. Raises as `open` does.

    Where other models leave no room for that, to have its files is enough, unless memory is what it lacked.
    """
    await self._files.fetch(shard, file)
    async with self._memory:
      if self._worker.room < await self._needed_bytes(shard, file):
        if not lacked_memory:
          return
        raise ModelTooLargeError(f"there is no room to try {shard} beside what runs", missing_mb=1)
      stage = await self._load(shard, file, "")
      await self._worker.unload(stage.model)

  async def _needed_bytes(self, shard: Shard, file: ModelFile) -> int:
    return self._worker.loader.needed_bytes(shard, await self._files.checkpoint(shard, file))

  async def _has_room(self, message: OpenPlan, shard: Shard) -> bool:
    """With what nobody uses closed where the new stage would not fit; False while what is used has to drain."""
    plan, beside = message.plan, message.beside
    needed = await self._needed_bytes(shard, message.file)
    if beside:  # with room to spare, since what is left after the weights is all that its cache will ever get
      needed = int(needed * _SPARE)
    while (lost := self._lost.get(plan.plan_id)) is None and self._worker.room < needed:
      closed = await self._residents.give_way(self._worker, plan, plan.model_id if beside else None)
      if not closed and beside:
        raise ModelTooLargeError(f"{self._worker.label} has no room for {plan} beside what it runs", missing_mb=1)
      if closed is None:
        return True  # the engine itself says what is missing
      if not closed:
        return False
    if lost is not None:
      raise lost
    return True

  async def _load(self, shard: Shard, file: ModelFile, plan_id: str) -> OpenedStage:
    model = await self._worker.load(shard, await self._files.checkpoint(shard, file))
    try:
      if model.memory.max_kv_tokens < 2:
        raise ModelTooLargeError(f"{shard} leaves no memory for its KV cache on {self._worker.label}", missing_mb=1)
      bounds = await self._files.frame_bounds(shard, file, model.memory)
      grammars = await self._files.grammars(shard, file) if shard.is_last else None
      await self._worker.thread.run(check_step, model, None if shard.is_first else bounds.hidden_size)
      if (lost := self._lost.get(plan_id)) is not None:  # last, since it may be lost during all of that
        raise lost
    except BaseException:
      await self._worker.unload(model)
      raise
    return OpenedStage(model, bounds, grammars)
