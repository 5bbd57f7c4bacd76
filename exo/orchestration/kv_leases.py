"""How many tokens the caches of plans may hold now, where several models share a worker's memory.

A plan that is loaded for what fits may fill all that others leave. When another model is loaded, or needs more for a request, those
that were used longest ago give up what no running sequence needs; and what was given up comes back by the same way. So weights and
caches of all models together never exceed what a worker offers. A plan's first stage knows what its sequences need, so it is asked
before a stage's worker takes anything; and it asks all of its stages before it lets caches hold more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from exo.errors import ExoError, ModelInUseError, ProtocolError
from exo.log import log
from exo.networking.messages import GrowLease, Lease, ShrinkLease
from exo.orchestration.opened_plan import OpenedPlan, RunningStage
from exo.orchestration.plan_start import Call
from exo.orchestration.residents import Residents
from exo.tasks import TaskOwner
from exo.topology.ring_plan import RingPlan
from exo.worker.worker import Worker

_ASK_S, _POLL_S = 5.0, 0.005
_ASK_AGAIN_S, _ASK_FOR_SPARE_S = 1.0, 10.0


class KvLeases:
  """Of one node. `opened` are its plans as they are at any moment, by id."""
  def __init__(
      self, node_id: str, opened: Mapping[str, OpenedPlan], residents: Residents, call: Call, tasks: TaskOwner
  ) -> None:
    self._node_id, self._opened, self._residents = node_id, opened, residents
    self._call, self._tasks = call, tasks
    self._bounds: dict[str, int] = {}  # by plan that has not begun yet
    self._growing: dict[tuple[str, bool],
                        float] = {}  # by plan, and as `grow`: from when on its stages may be asked again

  # a worker's side: memory for a new model, or for the caches of one that is there

  async def free(self, worker: Worker, wanted_bytes: int, wanted_by: str = "") -> bool:
    """See to it that so many bytes of a worker's offer are free, for this plan: caches of others give up what nobody needs. False where
    that is not enough."""
    before = worker.free - 1
    while before < worker.free < wanted_bytes:  # again: what was given up may have gone to somebody else meanwhile
      before = worker.free
      for opened in sorted(self._opened.values(), key=lambda opened: opened.used_at):
        if worker.free >= wanted_bytes:
          break
        stage = None if opened.plan.plan_id == wanted_by else opened.on(worker)
        if stage is not None:
          await self._shrink(opened.plan, worker, stage, wanted_bytes, wanted_by)
    return worker.free >= wanted_bytes

  async def _shrink(
      self, plan: RingPlan, worker: Worker, stage: RunningStage, wanted_bytes: int, wanted_by: str
  ) -> None:
    """Once what was given up is not in memory any more."""
    model = stage.loaded.model
    held, least = worker.lease(model), worker.least_lease(model)
    tokens = max(least, held - -(-(wanted_bytes - worker.free) // model.memory.kv_bytes_per_token))
    if tokens >= held:
      return
    try:
      told = await self._call(plan.first.node_id, ShrinkLease(plan.plan_id, tokens, wanted_by), _ASK_S)
      if not isinstance(told, Lease):
        raise ProtocolError(f"{plan.first.node_id} answered a ShrinkLease with {type(told).__name__}")
    except ExoError as error:
      log(2, "%s keeps its caches: %s", plan, error)
      return
    if await self._has_passed(stage, told.step):
      worker.shrink_lease(model, told.tokens)

  async def _has_passed(self, stage: RunningStage, step: int) -> bool:
    """Wait until a stage has forgotten what this step says; False where that takes too long."""
    deadline = time.monotonic() + _ASK_S
    while max(
        0, stage.runner.changed_step
    ) < step and stage.runner.plan.plan_id in self._opened:  # the first is number 1
      if time.monotonic() > deadline:
        return False
      await asyncio.sleep(_POLL_S)
    return True

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
      while not await self.free(worker, wanted_bytes, message.plan_id):
        if worker.free + self._residents.idle_bytes(worker, opened.plan) < wanted_bytes:
          break
        if not await self._residents.give_way(worker, opened.plan, None):
          break
    most = worker.most_lease(model, self._residents.kept_bytes(worker, opened.plan))
    return Lease(message.plan_id, worker.grow_lease(model, message.tokens), most=most)

  # the first stage's side

  async def on_shrink(self, sender: str, message: ShrinkLease) -> Lease:
    """A worker with a stage of a plan needs memory of its caches. Raises `ModelInUseError` while steps cannot tell of it."""
    plan_id, opened = message.plan_id, self._opened.get(message.plan_id)
    plan = self._residents.plan_of(plan_id)
    if plan is None:
      return Lease(plan_id, 0)  # it is closed, and that will be heard
    if not plan.has(sender):
      raise ProtocolError(f"{sender} has no stage in plan {plan_id}")
    if opened is None or opened.driver is None:  # it begins with no more than this
      self._bounds[plan_id] = min(message.tokens, self._bounds.get(plan_id, message.tokens))
      return Lease(plan_id, message.tokens)
    driver = opened.driver
    held = driver.shrink_lease(message.tokens, message.wanted_by)
    if (step := await driver.told(_ASK_S / 2)) is None:
      raise ModelInUseError(f"a step of plan {plan_id} takes too long")
    return Lease(plan_id, held, step)

  def first_lease(self, plan_id: str, tokens: int) -> int:
    """How many of these tokens the caches of a plan may hold that begins now: it may have been asked for some before."""
    bounds = self._bounds
    self._bounds = {known: bound for known, bound in bounds.items() if self._residents.plan_of(known) is not None}
    return min(tokens, self._bounds.pop(plan_id, tokens))

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
      told = await asyncio.gather(
          *(self._ask(stage.node_id, GrowLease(plan_id, i, tokens, spare)) for i, stage in stages)
      )
      granted = min(lease.tokens for lease in told)
      if driver.times_shrunk != shrunk or granted < tokens:
        again_at = time.monotonic() + pause_s
      if driver.times_shrunk == shrunk:  # else what was granted may be somebody else's by now
        driver.grow_lease(granted, tokens, min(lease.most for lease in told))
    except ExoError as error:
      again_at = time.monotonic() + pause_s
      log(2, "caches of plan %s hold no more than before: %s", plan_id, error)
    finally:
      self._growing[plan_id, spare] = again_at

  async def _ask(self, node_id: str, message: GrowLease) -> Lease:
    told = await self._call(node_id, message, _ASK_S)
    if not isinstance(told, Lease):
      raise ProtocolError(f"{node_id} answered a GrowLease with {type(told).__name__}")
    return told
