"""What is loaded on a node beside a plan that wants its room: who gives way, who stays, and who is waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from exo.errors import ExoError, ModelInUseError, PeerLostError, PeerUnreachableError, PlanClosedError, ProtocolError
from exo.log import log
from exo.networking.messages import GiveWay
from exo.orchestration.opened_plan import OpenedPlan, Opening
from exo.orchestration.plan_start import Call
from exo.topology.loaded_for import LoadedFor
from exo.topology.ring_plan import RingPlan
from exo.worker.worker import Worker

_MB = 2**20
_ASK_S = 5.0
_RETIRE_S = 10.0


@dataclass(frozen=True)
class Closing:
  """How plans end, each with a reason: on this node, on all of their nodes (begun, but not waited for), before they are open."""
  here: Callable[[str, ExoError], Awaitable[None]]
  everywhere: Callable[[OpenedPlan, ExoError], Awaitable[None]]
  begin_everywhere: Callable[[OpenedPlan, ExoError], None]
  lose: Callable[[str, ExoError], None]


class Residents:
  """Of one node. `opened` and `opening` are its plans as they are at any moment, the former by id, and `awaited` says of which of
  them, by its id, requests wait until all of its stages are open. Models that are `kept` give way for no other.
  """
  def __init__(
      self, node_id: str, opened: Mapping[str, OpenedPlan], opening: Mapping[tuple[str, int], Opening],
      awaited: Callable[[str], bool], call: Call, closing: Closing
  ) -> None:
    self._node_id, self._opened, self._opening = node_id, opened, opening
    self._awaited, self._call, self._closing = awaited, call, closing
    self.kept: frozenset[str] = frozenset()

  def plan_of(self, plan_id: str) -> RingPlan | None:
    """What is open here under this id, or still being loaded."""
    if (opened := self._opened.get(plan_id)) is not None:
      return opened.plan
    return next((opening.plan for (known, _), opening in self._opening.items() if known == plan_id), None)

  async def give_way(self, worker: Worker, plan: RingPlan, but_model: str | None) -> bool:
    """Close one plan on this worker of those that may give way for another and serve nobody, of other models than `but_model`: the
    one that was used longest ago. False where there is none."""
    error = PlanClosedError(f"its memory was needed for {plan}")
    for other in sorted(self._others(worker, plan, but_model), key=lambda opened: opened.used_at):
      if await self._close_unused(other, plan.plan_id, error):
        return True
    return False

  async def _close_unused(self, opened: OpenedPlan, wanted_by: str, error: ExoError) -> bool:
    """Close a plan everywhere, unless it serves somebody."""
    plan = opened.plan
    if not self._may_go(plan, opened, wanted_by):
      return False
    if plan.first.node_id == self._node_id:
      await self._closing.everywhere(opened, error)
      return True
    try:
      await self._call(plan.first.node_id, GiveWay(plan.plan_id, wanted_by), _ASK_S)
    except (PeerLostError, PeerUnreachableError) as gone:
      log(1, "%s is over here: where it begins cannot be reached (%s)", plan, gone)
    except ExoError as refused:  # it is in use, or its first stage does not answer
      log(2, "%s stays: %s", plan, refused)
      return False
    await self._closing.here(plan.plan_id, error)
    return True

  def used_at(self, model_id: str) -> float | None:
    """When something of a model that is loaded here, or being loaded, was last used; None of others."""
    if any(opening.plan.model_id == model_id for opening in self._opening.values()):
      return time.monotonic()
    return max((o.used_at for o in self._opened.values() if o.plan.model_id == model_id), default=None)

  def replaces(self, plan: RingPlan) -> bool:
    """Whether another plan is open here that is for the same."""
    return any(_purpose(o.plan) == _purpose(plan) for o in self._opened.values() if o.plan.plan_id != plan.plan_id)

  async def retire(self, newest: RingPlan) -> None:
    """Of all plans that are for the same as this one, close all but the one used last, once each has been idle for a while."""
    error = PlanClosedError("another plan has taken its place")
    while True:
      await asyncio.sleep(_RETIRE_S / 4)
      found = (o for o in self._opened.values() if _purpose(o.plan) == _purpose(newest))
      plans = sorted(found, key=lambda opened: opened.used_at)
      for opened in plans[:-1]:
        if time.monotonic() - opened.used_at > _RETIRE_S:
          await self._close_unused(opened, opened.plan.plan_id, error)
      if len(plans) < 2:
        return

  def on_give_way(self, sender: str, message: GiveWay) -> None:
    """Another stage's node wants a plan closed that begins here. Raises `ModelInUseError` while that serves somebody."""
    opened, plan = self._opened.get(message.plan_id), self.plan_of(message.plan_id)
    if plan is None:
      return
    if not plan.has(sender):
      raise ProtocolError(f"{sender} has no stage in plan {message.plan_id}")
    if not self._may_go(plan, opened, message.wanted_by):
      raise ModelInUseError(f"plan {message.plan_id} is in use")
    error = PlanClosedError(f"its memory on {sender} was needed for another plan")
    if opened is None:
      self._closing.lose(message.plan_id, error)
    else:
      self._closing.begin_everywhere(opened, error)

  def _may_go(self, plan: RingPlan, opened: OpenedPlan | None, wanted_by: str) -> bool:
    """Whether a plan serves nobody as far as is known here; `opened` is what is open of it here. Of two whose requests wait until
    they are open, each for the other's room, the one with the greater id gives way."""
    unused = opened is None or opened.unused
    return unused and (wanted_by < plan.plan_id or not self._awaited(plan.plan_id))

  def in_use(self, worker: Worker, plan: RingPlan, but_model: str | None) -> tuple[str, ...]:
    """The models that would give way for a plan if they served nobody."""
    return tuple(dict.fromkeys(opened.plan.model_id for opened in self._others(worker, plan, but_model)))

  def holders(self, worker: Worker, plan: RingPlan) -> tuple[str, ...]:
    """All models on a worker but what it has of this plan, kept ones, too."""
    others = (o for o in self._opened.values() if o.plan.plan_id != plan.plan_id and o.on(worker) is not None)
    return tuple(dict.fromkeys(opened.plan.model_id for opened in others))

  def idle_bytes(self, worker: Worker, plan: RingPlan) -> int:
    """What would be free if all plans closed that may give way for another, as far as is known here."""
    stages = (o.on(worker) for o in self._others(worker, plan, None) if o.unused)
    return sum(worker.all_of(stage.loaded.model) for stage in stages if stage is not None)

  def kept_bytes(self, worker: Worker, plan: RingPlan) -> int:
    """What those take at least that give way for none."""
    kept = self.kept - {plan.model_id}
    stages = (o.on(worker) for o in self._opened.values() if o.plan.model_id in kept)
    return sum(worker.taken_by(stage.loaded.model) for stage in stages if stage is not None)

  def _others(self, worker: Worker, plan: RingPlan, but_model: str | None) -> list[OpenedPlan]:
    stay = {but_model, *self.kept - {plan.model_id}}
    plans = (opened for opened in self._opened.values() if opened.plan.plan_id != plan.plan_id)
    found = (opened for opened in plans if opened.plan.model_id not in stay)
    return [opened for opened in found if opened.on(worker) is not None]

  def pinned_mb(self, worker: Worker) -> tuple[tuple[str, int], ...]:
    """The models on a worker that give way for no other, each with what it takes of its memory."""
    found: dict[str, int] = {}
    for opened in self._opened.values():
      model_id, stage = opened.plan.model_id, opened.on(worker)
      if stage is not None and model_id in self.kept:
        found[model_id] = found.get(model_id, 0) + worker.taken_by(stage.loaded.model)
    return tuple((model_id, taken // _MB) for model_id, taken in found.items())


def _purpose(plan: RingPlan) -> tuple[str, LoadedFor]:
  """Of plans that are for the same, a new one takes an old one's place."""
  return plan.model_id, plan.loaded_for
