"""Requests that wait, on their plan's first stage, until all stages are open."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from exo.errors import (
    DrainingError,
    ExoError,
    InvalidRequestError,
    NoRoomError,
    PeerLostError,
    PeerUnreachableError,
    PlanClosedError,
    ProtocolError,
    QueueFullError,
    in_words,
    stage_sick,
    to_wire,
)
from exo.log import log
from exo.networking.messages import ClosePlan, Failure, Message, OpenPlan, PlanOpened, Request
from exo.orchestration.failures import tell_failed
from exo.orchestration.kv_room import Limits
from exo.orchestration.plan_driver import PlanDriver
from exo.orchestration.waiting_line import WaitingLine
from exo.tasks import TaskOwner
from exo.topology.ring_plan import RingPlan

_OPEN_TIMEOUT_S = 3600.0  # a download may be part of it; a dead node is noticed by its link, not by this
_MAX_REQUESTS = 256
_LEAST_ROOM_S = 0.1  # between two looks for room
# of all plans that are starting together
_MAX_PLANS, _MAX_TOKENS = 64, 2**22

Call = Callable[[str, Message, float], Awaitable[Message]]


class PlanStart:
  """All plans that are starting here. `ready` gives the driver of a plan whose stages are all open, or raises.

  Where models that are in use leave no room for one, its requests wait for at most `most_wait_s`, or are refused.
  """
  def __init__(
      self, send: Callable[[str, Message], None], call: Call, ready: Callable[[RingPlan, Limits], PlanDriver],
      tasks: TaskOwner, speculate: bool, most_wait_s: float
  ) -> None:
    self._send, self._call, self._ready, self._tasks, self._speculate = send, call, ready, tasks, speculate
    self._most_wait_s = most_wait_s
    self._waiting: dict[str, WaitingLine] = {}

  def __len__(self) -> int:
    return len(self._waiting)

  def __contains__(self, plan_id: str) -> bool:
    return plan_id in self._waiting

  def add(self, message: OpenPlan, request: Request) -> None:
    """Raises `QueueFullError`. What goes wrong later is told to the request's entry node."""
    plan = message.plan
    tokens = len(request.prompt_ids) + sum(line.prompt_tokens for line in self._waiting.values())
    if tokens > _MAX_TOKENS or (plan.plan_id not in self._waiting and len(self._waiting) >= _MAX_PLANS):
      raise QueueFullError(
          f"{len(self._waiting)} models are loading, and many requests wait for them", retry_after_s=10
      )
    if plan.plan_id not in self._waiting:
      self._tasks.spawn(self._start(message), f"start {plan.plan_id}", lambda error: self._give_up(plan, error))
      self._waiting[plan.plan_id] = WaitingLine(_MAX_REQUESTS)
    waiting = self._waiting[plan.plan_id]
    gone = waiting.add(request, time.monotonic())
    full = QueueFullError(f"{len(waiting)} requests wait for {plan.model_id} to load", retry_after_s=10)
    if gone is request:
      raise full
    if gone is not None:
      self._tell_failed(plan.plan_id, gone, full)

  def requests(self, plan_id: str) -> list[Request]:
    return list(self._waiting.get(plan_id, ()))

  def forget(self, unwanted: Callable[[Request], bool]) -> None:
    for waiting in self._waiting.values():
      waiting.forget(unwanted)

  def cancel_entry(self, entry_node: str, error: ExoError) -> None:
    """As `PlanDriver.cancel_entry`."""
    for plan_id, waiting in self._waiting.items():
      for request in [request for request in waiting if request.entry_node == entry_node]:
        self._tell_failed(plan_id, request, error)
      waiting.forget(lambda request: request.entry_node == entry_node)

  async def _start(self, message: OpenPlan) -> None:
    plan = message.plan
    try:
      opened = await self._opened(message)
      driver = self._ready(plan, self._limits(opened))
      waiting = list(self._waiting[plan.plan_id])
    except BaseException as error:
      self._give_up(plan, error)
      if not isinstance(error, Exception):
        raise
      return
    del self._waiting[plan.plan_id]
    for request in waiting:
      try:
        driver.submit(request)
      except (QueueFullError, InvalidRequestError) as error:
        self._tell_failed(plan.plan_id, request, error)
      except Exception as error:  # noqa: BLE001 - who knows what the driver has of it now: all begin anew on another plan
        self._tell_failed(plan.plan_id, request, error)
        self._give_up(plan, PlanClosedError(f"a request could not be taken: {in_words(error)}"))

  async def _opened(self, message: OpenPlan) -> list[PlanOpened]:
    """Of each stage. Raises `NoRoomError` where one has had no room for as long as anybody has waited for it."""
    plan, room_s = message.plan, self._most_wait_s
    while True:
      wanted = replace(message, room_s=room_s)
      try:
        return await asyncio.gather(*(self._open_stage(index, wanted) for index in range(len(plan.stages))))
      except NoRoomError as error:
        room_s = self._refuse_overdue(plan, error)

  def _refuse_overdue(self, plan: RingPlan, error: NoRoomError) -> float:
    """Those who have waited for too long hear why. Returns for how long the next of the others may wait; raises `error` where there
    are none."""
    waiting, now_s = self._waiting[plan.plan_id], time.monotonic()
    late = NoRoomError(
        f"its turn did not come within {self._most_wait_s:g} s (--queue-timeout): {error.message}", **error.details
    )
    overdue = waiting.overdue(now_s - self._most_wait_s)
    for request in overdue:
      self._tell_failed(plan.plan_id, request, late)
    gone = {request.request_id for request in overdue}
    waiting.forget(lambda request: request.request_id in gone)
    if not len(waiting):
      raise error
    oldest_s = waiting.oldest_s
    return self._most_wait_s if oldest_s is None else max(_LEAST_ROOM_S, oldest_s + self._most_wait_s - now_s)

  def _give_up(self, plan: RingPlan, error: BaseException) -> None:
    """Those who wait hear why, and what other stages have loaded or still load for this plan is let go."""
    log(1 if isinstance(error, ExoError) else 0, "plan %s could not begin: %s", plan.plan_id, in_words(error))
    for request in self._waiting.pop(plan.plan_id, ()):
      self._tell_failed(plan.plan_id, request, error)
    for node_id in plan.node_ids:
      try:
        self._send(node_id, ClosePlan(plan.plan_id, Failure(*to_wire(error))))
      except Exception as unreachable:  # noqa: BLE001 - the others are to be told
        log(2, "%s was not told: %s", node_id, unreachable)

  def _tell_failed(self, plan_id: str, request: Request, error: BaseException) -> None:
    tell_failed(self._send, plan_id, request.request_id, request.entry_node, error)

  def _limits(self, opened: list[PlanOpened]) -> Limits:
    """What every stage can do."""
    return Limits(
        max_sequences=min(o.max_sequences for o in opened),
        max_kv_tokens=min(o.max_kv_tokens for o in opened),
        max_context=min(o.max_context for o in opened),
        stages=len(opened),
        max_drafting=min(o.max_drafting for o in opened) if self._speculate else 0,
        lease_tokens=min(o.lease_tokens for o in opened),
        exactness=tuple(o.exactness for o in opened),
        indivisible=any(o.indivisible for o in opened)
    )

  async def _open_stage(self, index: int, message: OpenPlan) -> PlanOpened:
    """Raises `StageSickError` where that stage's worker is why the plan cannot begin."""
    plan = message.plan
    node_id, worker = plan.stages[index].by
    try:
      reply = await self._call(node_id, replace(message, stage=index), _OPEN_TIMEOUT_S)
    except (PeerLostError, PeerUnreachableError, PlanClosedError, DrainingError, NoRoomError):
      raise
    except Exception as error:
      # several stages may fail, of which only the first is why the plan does not begin
      log(1, "%s did not open its stage of plan %s: %s", plan.name_of(index), plan.plan_id, in_words(error))
      raise stage_sick(plan.name_of(index), node_id, worker, plan.model_id, error) from error
    if not isinstance(reply, PlanOpened):
      raise ProtocolError(f"{node_id} answered an OpenPlan with {type(reply).__name__}")
    return reply
