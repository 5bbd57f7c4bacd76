"""How many tokens the caches of plans may hold now, where several models share a worker's memory.

A plan that is loaded for what fits may fill all that others leave. When another model is loaded, or needs more for a request, those
that were used longest ago give up what no running sequence needs; and what was given up comes back by the same way. So weights and
caches of all models together never exceed what a worker offers. A plan's first stage knows what its sequences need, so it is asked
before a stage's worker takes anything; and it asks all of its stages before it lets caches hold more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

from exo.errors import ExoError, ModelInUseError, ProtocolError
from exo.log import log
from exo.networking.messages import GrowLease, Lease, ShrinkLease
from exo.orchestration.opened_plan import OpenedPlan, RunningStage
from exo.orchestration.plan_start import Call
from exo.tasks import TaskOwner
from exo.topology.ring_plan import RingPlan
from exo.worker.worker import Worker

_ASK_S = 5.0
_ASK_AGAIN_S, _ASK_FOR_SPARE_S = 1.0, 10.0


class KvLeases:
  """Of one node. `opened` are its plans as they are at any moment, by id; `is_opening` says whether one is still being loaded, and
  `give_way` closes one that serves nobody on a worker, if there is one, for the sake of a plan.
  """
  def __init__(
      self, node_id: str, opened: Mapping[str, OpenedPlan], is_opening: Callable[[str], bool],
      give_way: Callable[[Worker, RingPlan], Awaitable[bool]], call: Call, tasks: TaskOwner
  ) -> None:
    self._node_id, self._opened, self._is_opening, self._give_way = node_id, opened, is_opening, give_way
    self._call, self._tasks = call, tasks
    self._growing: dict[tuple[str, bool],
                        float] = {}  # by plan, and as `grow`: from when on its stages may be asked again

  # a worker's side: memory for a new model, or for the caches of one that is there

  async def free(self, worker: Worker, wanted_bytes: int, but: str = "") -> bool:
    """See to it that so many bytes of a worker's offer are free: caches of plans but this one give up what nobody needs. False where
    that is not enough."""
    for opened in sorted(self._opened.values(), key=lambda opened: opened.used_at):
      if worker.free >= wanted_bytes:
        break
      stage = None if opened.plan.plan_id == but else opened.on(worker)
      if stage is not None:
        await self._shrink(opened.plan, worker, stage, wanted_bytes)
    return worker.free >= wanted_bytes

  async def _shrink(self, plan: RingPlan, worker: Worker, stage: RunningStage, wanted_bytes: int) -> None:
    model = stage.loaded.model
    held, least = worker.lease(model), worker.least_lease(model)
    tokens = max(least, held - -(-(wanted_bytes - worker.free) // model.memory.kv_bytes_per_token))
    if tokens >= held:
      return
    try:
      told = await self._call(plan.first.node_id, ShrinkLease(plan.plan_id, tokens), _ASK_S)
    except ExoError as error:
      log(2, "%s keeps its caches: %s", plan, error)
      return
    if not isinstance(told, Lease):
      raise ProtocolError(f"{plan.first.node_id} answered a ShrinkLease with {type(told).__name__}")
    worker.shrink_lease(model, told.tokens)

  async def on_grow(self, sender: str, message: GrowLease) -> Lease:
    """The first stage of a plan wants its caches to hold more tokens. Raises `ProtocolError`."""
    opened = self._opened.get(message.plan_id)
    stage = None if opened is None else opened.stages.get(message.stage)
    if opened is None or stage is None or opened.plan.first.node_id != sender:
      raise ProtocolError(f"{sender} has no plan {message.plan_id} with a stage {message.stage} on {self._node_id}")
    worker, model = stage.worker, stage.loaded.model
    more = min(message.tokens, model.memory.max_kv_tokens) - worker.lease(model)
    wanted_bytes = more * model.memory.kv_bytes_per_token
    if not message.spare:
      while not await self.free(worker, wanted_bytes, message.plan_id) and await self._give_way(worker, opened.plan):
        pass
    return Lease(message.plan_id, worker.grow_lease(model, message.tokens))

  # the first stage's side

  def on_shrink(self, sender: str, message: ShrinkLease) -> Lease:
    """A worker with a stage of a plan needs memory of its caches. Raises `ModelInUseError` while that plan is not open yet."""
    opened = self._opened.get(message.plan_id)
    if opened is None or opened.driver is None:
      if opened is not None or self._is_opening(message.plan_id):
        raise ModelInUseError(f"plan {message.plan_id} is not open yet")
      return Lease(message.plan_id, 0)  # it is closed, and that will be heard
    if not opened.plan.has(sender):
      raise ProtocolError(f"{sender} has no stage in plan {message.plan_id}")
    return Lease(message.plan_id, opened.driver.shrink_lease(message.tokens))

  def grow(self, plan_id: str, tokens: int, spare: bool) -> None:
    """Ask the stages of a plan that begins here to let its caches hold so many tokens, of `spare` memory or of what others give up; its
    driver hears what comes of it."""
    if time.monotonic() >= self._growing.get((plan_id, spare), 0.0):
      self._growing = {known: at for known, at in self._growing.items() if known[0] in self._opened}
      self._growing[plan_id, spare] = float("inf")
      self._tasks.spawn(self._grow(plan_id, tokens, spare), f"grow caches of {plan_id}")

  async def _grow(self, plan_id: str, tokens: int, spare: bool) -> None:
    opened, again_at, pause_s = self._opened.get(plan_id), 0.0, _ASK_FOR_SPARE_S if spare else _ASK_AGAIN_S
    try:
      if opened is None or (driver := opened.driver) is None:
        return
      shrunk = driver.times_shrunk
      stages = enumerate(opened.plan.stages)
      granted = min(
          await
          asyncio.gather(*(self._ask(stage.node_id, GrowLease(plan_id, i, tokens, spare)) for i, stage in stages))
      )
      if driver.times_shrunk != shrunk or granted < tokens:
        again_at = time.monotonic() + pause_s
      if driver.times_shrunk == shrunk:  # else what was granted may be somebody else's by now
        driver.grow_lease(granted)
    except ExoError as error:
      again_at = time.monotonic() + pause_s
      log(2, "caches of plan %s hold no more than before: %s", plan_id, error)
    finally:
      self._growing[plan_id, spare] = again_at

  async def _ask(self, node_id: str, message: GrowLease) -> int:
    told = await self._call(node_id, message, _ASK_S)
    if not isinstance(told, Lease):
      raise ProtocolError(f"{node_id} answered a GrowLease with {type(told).__name__}")
    return told.tokens
