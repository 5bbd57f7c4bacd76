"""Which plan new requests of a model get: the one that is ready, while a better one is being made ready.

A node that joins, or memory that comes free, makes another plan the better one. It is opened beside the one in use, whose
requests never wait for that; where the two do not fit side by side, new requests wait for the new one and the old drains.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from exo.errors import ModelTooLargeError, in_words
from exo.log import log
from exo.networking.messages import OpenPlan
from exo.tasks import TaskOwner

_TRY_AGAIN_S = 5.0

Open = Callable[[OpenPlan], Awaitable[None]]


class PlanBook:
  """`open_stages` opens a plan on all of its nodes and returns once they are ready."""
  def __init__(self, open_stages: Open) -> None:
    self._open_stages = open_stages
    self._in_use: dict[str, OpenPlan] = {}
    self._preparing: dict[str, OpenPlan] = {}
    self._not_before: dict[str, float] = {}  # by model
    self._tasks = TaskOwner("plan book")

  def choose(self, best: OpenPlan, usable: Callable[[OpenPlan], bool]) -> OpenPlan:
    """`best`, or what is in use while it is usable and `best` is not ready."""
    model = best.plan.model_id
    used = self._in_use.get(model)
    if used is None or used.plan.plan_id == best.plan.plan_id or not usable(used):
      self._in_use[model] = best
      return best
    if model not in self._preparing and asyncio.get_running_loop().time() >= self._not_before.get(model, 0.0):
      self._preparing[model] = best
      self._tasks.spawn(self._prepare(best), f"prepare {best.plan.plan_id}")
    return used

  async def _prepare(self, best: OpenPlan) -> None:
    plan = best.plan
    log(1, "preparing %s beside the plan in use", plan)
    try:
      await self._open_stages(replace(best, beside=True))
      outcome = "is ready and serves new requests"
    except ModelTooLargeError as error:
      outcome = f"has to wait until the plan in use has drained: {error}"
    except Exception as error:  # noqa: BLE001 - whatever it is, the plan in use goes on, and this one is tried again
      self._not_before[plan.model_id] = asyncio.get_running_loop().time() + _TRY_AGAIN_S
      log(1, "%s could not be prepared: %s", plan, in_words(error))
      return
    finally:
      wanted = self._preparing.get(plan.model_id) is best  # and no node of it has left meanwhile
      if wanted:
        del self._preparing[plan.model_id]
    if wanted:
      self._in_use[plan.model_id] = best
      self._not_before.pop(plan.model_id, None)
      log(1, "%s %s", plan, outcome)

  def peer_left(self, node_id: str) -> None:
    """Plans with that node serve nobody any more."""
    for plans in (self._in_use, self._preparing):
      for model in [m for m, message in plans.items() if message.plan.has(node_id)]:
        del plans[model]

  async def close(self) -> None:
    await self._tasks.close()
