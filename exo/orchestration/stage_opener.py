"""Brings stages of plans into a worker: fetched side by side, loaded one after the other, with room made for each."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exo.errors import ExoError, ModelTooLargeError, NoRoomError, PeerLostError, PlanClosedError
from exo.inference.engine import StageModel
from exo.inference.grammar import GrammarCompiler
from exo.inference.shard import Shard
from exo.inference.weights.checkpoint import Checkpoint
from exo.model_file import ModelFile
from exo.networking.messages import OpenPlan
from exo.orchestration.frame_check import FrameBounds
from exo.orchestration.stage_files import StageFiles
from exo.topology.loaded_for import WHAT_FITS, LoadedFor
from exo.topology.ring_plan import RingPlan
from exo.worker.step_guard import check_step
from exo.worker.studies import Studies
from exo.worker.worker import Worker

if TYPE_CHECKING:
  from exo.orchestration.kv_leases import KvLeases
  from exo.orchestration.residents import Residents

_MB = 2**20
_SPARE = 1.5
_ROOM_POLL_S, _LONGEST_POLL_S = 0.05, 0.5
_RETRY_S = 10


@dataclass(frozen=True, slots=True)
class OpenedStage:
  """A stage that is ready. `grammars` on the last one."""
  model: StageModel
  bounds: FrameBounds
  grammars: GrammarCompiler | None


class StageOpener:
  """For one worker; `residents` are what its node has loaded, `leases` what their caches may hold, and `studies` what is known of such stages."""
  def __init__(
      self, worker: Worker, files: StageFiles, residents: Residents, leases: KvLeases, studies: Studies
  ) -> None:
    self._worker, self._files, self._residents, self._leases = worker, files, residents, leases
    self._studies = studies
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
    another of its model cannot, or beside models that are kept; `NoRoomError` where models in use left none for too long.
    """
    plan = message.plan
    shard = plan.stages[message.stage].shard
    self._opening.add(plan.plan_id)
    try:
      await self._files.fetch(shard, message.file)  # what is on disk already does not wait for it
      give_up, pause_s = time.monotonic() + message.room_s, _ROOM_POLL_S
      with self._worker.claiming() as claim:
        while True:
          async with self._memory:
            claim(0)
            checkpoint = await self._files.checkpoint(shard, message.file)
            needed = self._worker.loader.needed_bytes(shard, checkpoint, plan.loaded_for)
            in_use = await self._in_the_way(message, needed)
            if not in_use:
              return await self._load(shard, message.file, checkpoint, plan.loaded_for, plan.plan_id)
            claim(needed)
          if time.monotonic() >= give_up:
            raise NoRoomError(
                f"{self._worker.label} has no room for {plan.model_id} while {', '.join(in_use)} "
                f"{'is' if len(in_use) == 1 else 'are'} in use",
                retry_after_s=_RETRY_S
            )
          await asyncio.sleep(pause_s)
          pause_s = min(2 * pause_s, _LONGEST_POLL_S)
    finally:
      self._opening.discard(plan.plan_id)
      self._lost.pop(plan.plan_id, None)

  async def try_out(self, shard: Shard, file: ModelFile, lacked_memory: bool) -> None:
    """Load a shard and let go of it again. Raises as `open` does.

    Where other models leave no room for that, to have its files is enough, unless memory is what it lacked.
    """
    await self._files.fetch(shard, file)
    async with self._memory:
      checkpoint = await self._files.checkpoint(shard, file)
      needed = self._worker.loader.needed_bytes(shard, checkpoint, WHAT_FITS)
      enough = self._worker.free >= needed
      if not enough and lacked_memory and self._worker.room >= needed:
        enough = await self._leases.free(self._worker, needed)
      if not enough:
        if not lacked_memory:
          return
        raise ModelTooLargeError(f"there is no room to try {shard} beside what runs", missing_mb=1)
      stage = await self._load(shard, file, checkpoint, WHAT_FITS)
      await self._worker.unload(stage.model)

  async def _in_the_way(self, message: OpenPlan, needed: int) -> tuple[str, ...]:
    """The models that have to drain before the new stage has room, which is made by what others' caches give up and by closing what
    nobody uses; none once there is some, or where none is in its way: then the engine itself says what is missing.
    """
    plan, beside = message.plan, message.beside
    if beside and not plan.loaded_for.is_bounded:
      # with room to spare, since what is left after the weights is all that its cache will ever get
      needed = int(needed * _SPARE)
    self._check_pinned(plan.model_id, needed)
    but_model = plan.model_id if beside else None
    while (lost := self._lost.get(plan.plan_id)) is None and not await self._has_room(plan, needed):
      if await self._residents.give_way(self._worker, plan, but_model):
        continue
      busy = self._worker.room >= needed  # of caches alone, which are given up as soon as requests have ended
      if beside:
        why = f"{self._worker.label} has no room for {plan} beside what it runs"
        raise NoRoomError(why, retry_after_s=_RETRY_S) if busy else ModelTooLargeError(why, missing_mb=1)
      in_the_way = self._residents.in_use(self._worker, plan, but_model)
      return in_the_way or (self._residents.holders(self._worker, plan) if busy else ())
    if lost is not None:
      raise lost
    return ()

  async def _has_room(self, plan: RingPlan, needed: int) -> bool:
    """Whether so many bytes are free, once others' caches have given up half of what is left beside, so that the new ones begin with
    the other half, or as much as they can; for a plan whose caches are bounded, only what it needs."""
    if self._worker.room < needed:
      return False
    is_bounded = plan.loaded_for.is_bounded or self._worker.options.kv_memory_bytes is not None
    half = 0 if is_bounded else (self._worker.room - needed) // 2
    await self._leases.free(self._worker, needed + half, plan.plan_id)
    return self._worker.free >= needed

  def _check_pinned(self, model_id: str, needed: int) -> None:
    """Raises `ModelTooLargeError` where models that never give way leave no room for another one."""
    pinned = {name: mb for name, mb in self._residents.pinned_mb(self._worker) if name != model_id}
    missing_mb = math.ceil((needed + sum(pinned.values()) * _MB - self._worker.offered_bytes) / _MB)
    if pinned and missing_mb > 0:
      raise ModelTooLargeError(
          f"{self._worker.label} keeps {', '.join(pinned)} (--keep) and has no room for {model_id} beside: "
          f"{missing_mb} MB are missing",
          missing_mb=missing_mb
      )

  async def _load(
      self, shard: Shard, file: ModelFile, checkpoint: Checkpoint, wanted: LoadedFor, plan_id: str = ""
  ) -> OpenedStage:
    model = await self._worker.load(shard, checkpoint, wanted)
    try:
      self._check_cache(model, 2 if wanted == WHAT_FITS else wanted.kv_tokens(checkpoint.config.max_context))
      bounds = await self._files.frame_bounds(shard, file, model.memory)
      grammars = await self._files.grammars(shard, file) if shard.is_last else None
      await self._worker.thread.run(check_step, model, None if shard.is_first else bounds.hidden_size)
      await self._studies.recall(self._worker, model)
      if (lost := self._lost.get(plan_id)) is not None:  # last, since it may be lost during all of that
        raise lost
    except BaseException:
      await self._worker.unload(model)
      raise
    return OpenedStage(model, bounds, grammars)

  def _check_cache(self, model: StageModel, least: int) -> None:
    """Raises `ModelTooLargeError` for one that has no room for so many tokens of KV."""
    tokens = model.memory.max_kv_tokens
    if tokens >= least:
      return
    missing_mb = math.ceil((least - tokens) * model.memory.kv_bytes_per_token / _MB)
    bounded = " (--kv-cache-memory)" if self._worker.options.kv_memory_bytes is not None else ""
    raise ModelTooLargeError(
        f"{model.shard} leaves no memory for its KV cache on {self._worker.label}: there is room for {tokens} tokens{bounded}, "
        f"{least} are wanted, {missing_mb} MB are missing",
        missing_mb=missing_mb
    )
