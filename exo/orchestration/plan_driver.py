"""The first stage's part: takes requests, lets steps out as the scheduler decides, and hears what became of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

from exo.errors import BadNumbersError, ExoError, NoRoomError
from exo.inference.exactness import Exactness
from exo.log import enabled, log
from exo.networking.messages import Frame, Message, Request, StepFailed, StepResult
from exo.networking.peer_messages import PlanPace, PlanRoom
from exo.orchestration.failures import failure_error, tell_failed
from exo.orchestration.meter import Meter
from exo.orchestration.pace import Pace
from exo.orchestration.progress_teller import ProgressTeller
from exo.orchestration.scheduler import Scheduler
from exo.topology.ring_plan import RingPlan

_QUICK_STEP_MS = 12.0
_LONGEST_LOOK_S = 1.0
_TOLD_POLL_S = 0.005
_RETRY_S = 10


class PlanDriver:
  """Purely driven by events, and by one timer: a request waits for its turn for at most `most_wait_s`, or is refused.

  `want_lease` is called, as often as may be, while requests wait for the caches of a plan to be allowed to hold so many tokens, or (True)
  while caches of requests that are over would fill them.
  """
  def __init__(
      self, plan: RingPlan, scheduler: Scheduler, feed: Callable[[Frame], None], send: Callable[[str, Message], None],
      meter: Meter, most_wait_s: float, want_lease: Callable[[str, int, bool], None]
  ) -> None:
    self.plan, self.scheduler, self._want_lease = plan, scheduler, want_lease
    self.times_shrunk = 0
    self._most_wait_s = most_wait_s
    self._look_again: asyncio.TimerHandle | None = None
    self._feed, self._send, self._meter = feed, send, meter
    self._closed = False
    self._run = 1
    self.pace = Pace(scheduler.limits.stages, scheduler.chunks)
    self._progress = ProgressTeller(plan.plan_id, scheduler, send)

  def learn(self, stage: int, exactness: Exactness) -> None:
    """A stage has found out more about its calls."""
    if self.scheduler.limits.exactness[stage] == exactness:
      return
    self.scheduler.learn(stage, exactness)
    log(1, "plan %s is exact with %s", self.plan.plan_id, self.scheduler.exactness)

  @property
  def idle(self) -> bool:
    return not self.scheduler.requests() and not self.scheduler.counts.steps_in_flight

  def summary(self) -> PlanPace:
    """What recent steps took, and what drafts were worth."""
    drafter = self.scheduler.drafter
    return replace(
        self.pace.summary(self.plan.plan_id),
        drafted=drafter.drafted,
        accepted=drafter.accepted,
        wasted=drafter.wasted_ms / drafter.compute_ms if drafter.compute_ms else 0.0
    )

  @property
  def room(self) -> PlanRoom:
    """What the plan's model is loaded for, and what all of its stages have room for."""
    of = self.scheduler.limits
    context = min(of.max_context, of.max_kv_tokens)
    return PlanRoom(
        self.plan.plan_id, self.plan.model_id, self.plan.loaded_for, of.max_sequences, context,
        self.scheduler.room.lease
    )

  def submit(self, request: Request) -> None:
    """Raises `QueueFullError` or `InvalidRequestError`."""
    for gone in self.scheduler.add(request, self._most_wait_s):
      log(1, "another share's request takes its place in the line", request=gone.request_id)
      self._tell_failed(gone, self.scheduler.admission.queue_full(gone))
    self._pump()

  def _refuse_later(self) -> None:
    pause_s = min(_LONGEST_LOOK_S, self._most_wait_s / 4)
    self._look_again = asyncio.get_running_loop().call_later(pause_s, self._refuse_overdue)

  def _refuse_overdue(self) -> None:
    self._look_again = None
    if not self.scheduler.waiting or self._closed:
      return
    self._refuse_later()  # first, whatever becomes of this time
    for request in self.scheduler.admission.overdue(self._most_wait_s):
      self._tell_failed(request, self.scheduler.admission.overdue_error(request, self._most_wait_s))
    self._ask_for_lease()
    self._progress.tell()

  def _ask_for_lease(self) -> None:
    if self._closed:
      return
    if self.scheduler.waiting and (wanted := self.scheduler.admission.wanted_lease):
      self._want_lease(self.plan.plan_id, wanted, False)
    elif self.scheduler.room.is_cramped:
      self._want_lease(self.plan.plan_id, 2 * self.scheduler.room.lease, True)

  def shrink_lease(self, tokens: int, wanted_by: str = "") -> int:
    """Let the caches hold no more than so many tokens, or as many more as those who run need; returns how many those are.

    A plan whose next request waits for more gives nothing up for one with a greater id: of two such, one gets all that it needs.
    """
    if self.scheduler.waiting and self.plan.plan_id < wanted_by and self.scheduler.admission.wanted_lease:
      return self.scheduler.room.lease
    self.times_shrunk += 1
    held = self.scheduler.room.set_lease(min(tokens, self.scheduler.room.lease))
    self._pump()
    return held

  async def told(self, timeout_s: float) -> int | None:
    """The number of the step after which no stage holds anything that was given up before this call; None where none could be let out
    for so long."""
    deadline = time.monotonic() + timeout_s
    while self.scheduler.room.untold and not self._closed:
      if time.monotonic() > deadline:
        return None
      await asyncio.sleep(_TOLD_POLL_S)
    return self.scheduler.last_step

  def grow_lease(self, granted: int, wanted: int, most: int) -> None:
    """Of the tokens that were wanted all stages have room for those that are granted, and could have for `most` at most."""
    self.scheduler.room.set_most(most)
    self.scheduler.room.set_lease(max(granted, self.scheduler.room.lease))
    if granted < wanted:
      self.scheduler.room.deny_lease()
    for request in self.scheduler.admission.hopeless():
      self._tell_failed(
          request,
          NoRoomError(
              f"its prompt has {len(request.prompt_ids)} tokens; beside other models there is room for the caches of {most}",
              retry_after_s=_RETRY_S
          )
      )
    self._pump()

  def cancel(self, request_id: str) -> bool:
    """Whether there was anything of it."""
    if found := self.scheduler.cancel(request_id):
      log(1, "the request is cancelled", request=request_id)
      self._pump()
    return found

  def cancel_entry(self, entry_node: str, error: ExoError) -> None:
    """Free everything that a node had asked for that is gone, or was for a moment: then it hears `error`."""
    for request in self.scheduler.requests():
      if request.entry_node == entry_node:
        log(1, "freed request %s of %s, which is gone", request.request_id, entry_node)
        self.scheduler.cancel(request.request_id)
        self._tell_failed(request, error)
    self._pump()

  def on_result(self, result: StepResult) -> None:
    lap_ms = self.pace.returned(result, time.perf_counter())
    self.scheduler.on_result(result.step, result.tokens, result.refused, sum(result.compute_ms), lap_ms)
    for failed in result.failed:
      error = failure_error(failed.failure)
      if isinstance(error, BadNumbersError):  # they may come from a cache that the sequence began with
        self.scheduler.forget_kept()
      for request in self.scheduler.fail((failed.sequence, ), result.step):
        self._tell_failed(request, error)
    # waking for a token costs more than handling it: where tokens come fast, the stage computes two before it reports
    sequences = len({token.sequence for token in result.tokens})
    if sequences:
      step_ms = sum(result.compute_ms) * sequences / len(result.tokens)
      self._run = 2 if step_ms < _QUICK_STEP_MS and not self.scheduler.waiting else 1
    self._pump()
    if lap_ms is not None:
      if enabled(2):
        stages = ", ".join(
            f"{ms:.2f} ms of {spent:.2f}" for ms, spent in zip(result.compute_ms, result.spent_ms, strict=False)
        )
        hops = (lap_ms - sum(result.spent_ms)) / len(result.compute_ms)
        log(
            2, "step %d of %s: a lap of %.2f ms, stages computed %s, %.2f ms a hop", result.step, self.plan.plan_id,
            lap_ms, stages, hops
        )
      self._meter.step_returned(self.plan.model_id, lap_ms / 1e3, result.compute_ms)

  def catch_up(self) -> None:
    """Do what can wait until there is time for it."""
    self.pace.catch_up()

  def on_failure(self, failed: StepFailed) -> None:
    self.pace.lost(failed.step)
    error = failure_error(failed.failure)
    log(1, "step %d of %s failed: %s", failed.step, self.plan.plan_id, error)
    for request in self.scheduler.on_failure(failed.step):
      self._tell_failed(request, error)
    self._pump()

  def close(self, error: ExoError) -> None:
    """Every request fails with `error`."""
    self._closed = True
    if self._look_again is not None:
      self._look_again.cancel()
    for request in self.scheduler.requests():
      self._tell_failed(request, error)

  def _tell_failed(self, request: Request, error: BaseException) -> None:
    tell_failed(self._send, self.plan.plan_id, request.request_id, request.entry_node, error)

  def _pump(self) -> None:
    while not self._closed and (step := self.scheduler.next_step(self._run)) is not None:
      self.pace.sent(step, time.perf_counter())
      self._feed(
          Frame(
              self.plan.plan_id,
              self.plan.epoch,
              step.number,
              step.entries,
              step.token_ids,
              None,
              step.opens,
              step.drops,
              run=step.run,
              ends=step.ends,
              truncates=step.truncates,
              copies=step.copies
          )
      )
    self._ask_for_lease()
    self._progress.tell()
    if self._look_again is None and self.scheduler.waiting and not self._closed:
      self._refuse_later()  # whoever waits for memory alone has nobody else who wakes it
