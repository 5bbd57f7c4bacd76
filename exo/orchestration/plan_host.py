"""The plans that are open on this node: its stage of each, and for those that begin here their driver."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from exo.errors import (
    BadNumbersError,
    DrainingError,
    ExoError,
    InvalidRequestError,
    ModelInUseError,
    ModelTooLargeError,
    OutOfMemoryError,
    PeerLostError,
    PlanClosedError,
    ProtocolError,
    QueueFullError,
    StageSickError,
    in_words,
    to_wire,
)
from exo.log import log
from exo.networking.messages import (
    Absolve,
    Cancel,
    ClosePlan,
    Failure,
    Frame,
    Message,
    OpenPlan,
    PlanOpened,
    PlanPace,
    StepFailed,
    StepResult,
    Submit,
)
from exo.orchestration.ailments import Ailments, Illness
from exo.orchestration.awake_cores import AwakeCores
from exo.orchestration.frame_check import FrameBounds, check_frame
from exo.orchestration.kv_room import Limits
from exo.orchestration.meter import Meter
from exo.orchestration.plan_driver import PlanDriver, failure_error
from exo.orchestration.plan_start import Call, PlanStart
from exo.orchestration.scheduler import Scheduler
from exo.orchestration.stage_files import StageFiles
from exo.orchestration.stage_opener import StageOpener
from exo.orchestration.stage_runner import StageRunner
from exo.tasks import TaskOwner
from exo.topology.ring_plan import RingPlan
from exo.worker.step_guard import check_step
from exo.worker.worker import Worker

_RETIRE_S = 10.0
# of a load that ended because nobody wants it any more, or that was never this node's
_NO_AILMENT = (PeerLostError, PlanClosedError, DrainingError, ProtocolError)

Send = Callable[[str, Message], None]


@dataclass
class _Open:
  """A plan of which this node has a stage."""
  plan: RingPlan
  runner: StageRunner
  fingerprint: str
  bounds: FrameBounds
  driver: PlanDriver | None = None
  used_at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class _Opening:
  """A plan whose stage here is being loaded."""
  plan: RingPlan
  task: asyncio.Task[PlanOpened]


class PlanHost:
  """Opens, serves and closes plans."""
  def __init__(
      self, node_id: str, worker: Worker, files: StageFiles, send: Send, call: Call,
      rehearse: Callable[[str], None] | None, meter: Meter, speculate: bool, awake: AwakeCores, most_wait_s: float
  ) -> None:
    self._node_id, self.worker, self._files = node_id, worker, files
    self._send, self._rehearse, self._meter, self._awake = send, rehearse, meter, awake
    self._most_wait_s = most_wait_s
    self._open: dict[str, _Open] = {}
    self._begun: dict[str, _Opening] = {}
    self._tasks = TaskOwner("plans")
    self._start = PlanStart(send, call, self._driver_of, self._tasks, speculate)
    self._opener = StageOpener(node_id, worker, files, self)
    self.ailments = Ailments(node_id, self._tasks, self._recover)
    worker.health.on_broken(self._leave)

  @property
  def plans(self) -> list[RingPlan]:
    return [o.plan for o in self._open.values()]

  def sequences(self, plan_id: str) -> int:
    """How many sequences have something in this node's cache."""
    return self._open[plan_id].runner.sequences if plan_id in self._open else 0

  @property
  def paces(self) -> tuple[PlanPace, ...]:
    """Of the plans that begin here."""
    return tuple(o.driver.summary() for o in self._open.values() if o.driver is not None)

  @property
  def busy(self) -> bool:
    return bool(self._start) or any(o.driver is not None and not o.driver.idle for o in self._open.values())

  @property
  def drivers(self) -> list[PlanDriver]:
    """Of the plans whose first stage is here."""
    return [o.driver for o in self._open.values() if o.driver is not None]

  @property
  def idle(self) -> bool:
    """No request has anything here, wherever it began."""
    return not self.busy and not self._opening and all(o.runner.idle for o in self._open.values())

  async def close(self) -> None:
    await self.worker.health.close()
    await self._tasks.close()
    for plan_id in list(self._open):
      await self._close_here(plan_id, PlanClosedError("this node stops"))
    self._awake.close()

  # opening

  async def open(self, message: OpenPlan) -> PlanOpened:
    """Load this node's stage, once however often it is asked for."""
    plan_id = message.plan.plan_id
    if plan_id in self._open:
      return self._opened(self._open[plan_id])
    if plan_id not in self._opening:
      self._begun[plan_id] = _Opening(message.plan, self._tasks.spawn(self._load(message), f"open {plan_id}"))
    return await asyncio.shield(self._begun[plan_id].task)

  @property
  def _opening(self) -> dict[str, _Opening]:
    """Plans whose stage here is being loaded now."""
    self._begun = {plan_id: opening for plan_id, opening in self._begun.items() if not opening.task.done()}
    return self._begun

  async def _load(self, message: OpenPlan) -> PlanOpened:
    plan = message.plan
    try:
      stage = await self._opener.open(message)
    except Exception as error:
      index = plan.index_of(self._node_id)
      # a plan beside another one may find no room, and is made again when there is some
      no_ailment = (*_NO_AILMENT, ModelTooLargeError) if message.beside else _NO_AILMENT
      if index is not None and not isinstance(error, no_ailment):
        self.ailments.fall_ill(plan.stages[index].shard, message.fingerprint, error)
        self.worker.health.load_failed(message.fingerprint)
      raise
    self.worker.health.loaded()
    self.ailments.forget(plan.model_id, but=message.fingerprint)
    runner = StageRunner(
        plan, self._node_id, stage.model, self.worker, self._send, self._meter, self, self._awake, stage.grammars
    )
    self._open[plan.plan_id] = _Open(plan, runner, message.fingerprint, stage.bounds)
    log(1, "plan %s is open here: %s", plan.plan_id, plan)
    if any(o.plan.model_id == plan.model_id for o in self._open.values() if o.plan.plan_id != plan.plan_id):
      self._tasks.spawn(self._retire(plan.model_id), f"retire plans of {plan.model_id}")
    return self._opened(self._open[plan.plan_id])

  def _opened(self, opened: _Open) -> PlanOpened:
    memory = opened.runner.model.memory
    return PlanOpened(
        opened.plan.plan_id, memory.max_kv_tokens, memory.max_sequences, memory.max_context, memory.max_drafting
    )

  async def give_way(self, plan: RingPlan, but_model: str | None) -> bool | None:
    """See `Residents`."""
    others = [o for o in self._open.values() if o.plan.model_id != but_model]
    idle = min((o for o in others if o.runner.idle), key=lambda o: o.used_at, default=None)
    if idle is not None:
      await self._close_everywhere(idle, PlanClosedError(f"its memory was needed for {plan}"))
      return True
    return False if others else None

  async def _retire(self, model_id: str) -> None:
    """Close all plans of a model but the one used last, once each has been idle for a while."""
    while True:
      await asyncio.sleep(_RETIRE_S / 4)
      plans = sorted((o for o in self._open.values() if o.plan.model_id == model_id), key=lambda o: o.used_at)
      for opened in plans[:-1]:
        if opened.runner.idle and time.monotonic() - opened.used_at > _RETIRE_S:
          await self._close_everywhere(opened, PlanClosedError("another plan has taken its place"))
      if len(plans) < 2:
        return

  # the first stage's part

  async def submit(self, message: Submit) -> None:
    """Take a request; it waits here while the plan opens. Raises what makes it impossible at once."""
    plan = message.open.plan
    if plan.first.node_id != self._node_id:
      raise ProtocolError(f"{self._node_id} is not the first stage of plan {plan.plan_id}")
    opened = self._open.get(plan.plan_id)
    if opened is not None and opened.driver is not None:
      opened.used_at = time.monotonic()
      try:
        opened.driver.submit(message.request)
      except (QueueFullError, InvalidRequestError):
        raise
      except Exception as error:  # who knows what the driver has of it now: the others begin anew on another plan
        closed = PlanClosedError(f"a request could not be taken: {in_words(error)}")
        self._tasks.spawn(self._close_everywhere(opened, closed), f"close {plan.plan_id}")
        raise
      return
    self._start.add(message.open, message.request)

  def _driver_of(self, plan: RingPlan, limits: Limits) -> PlanDriver:
    """Begin to serve a plan whose stages are all open. Raises `PlanClosedError`."""
    here = self._open.get(plan.plan_id)
    if here is None:
      raise PlanClosedError(f"plan {plan.plan_id} was closed while it opened")
    here.driver = PlanDriver(plan, Scheduler(limits), here.runner.feed, self._send, self._meter, self._most_wait_s)
    return here.driver

  # sickness

  def bad_numbers(self, runner: StageRunner, entry_nodes: frozenset[str]) -> None:
    """See `StageHost`. What runs and is well stays where it is."""
    opened = self._open.get(runner.plan.plan_id)
    if opened is not None:
      error = BadNumbersError("it computes numbers that are not finite", node=self._node_id)
      self.ailments.fall_ill(runner.model.shard, opened.fingerprint, error, entry_nodes)

  def broken(self, runner: StageRunner, error: StageSickError) -> None:
    """See `StageHost`. The plan is over, its requests may go on elsewhere; perhaps the whole worker is broken."""
    opened = self._open.get(runner.plan.plan_id)
    if opened is not None:
      self.ailments.fall_ill(runner.model.shard, opened.fingerprint, error)
      self._tasks.spawn(self._close_everywhere(opened, error), f"close {opened.plan.plan_id}")
      self.worker.health.doubt()

  def crashed(self, runner: StageRunner, error: ExoError) -> None:
    """See `StageHost`."""
    opened = self._open.get(runner.plan.plan_id)
    if opened is not None:
      self._tasks.spawn(self._close_everywhere(opened, error), f"close {opened.plan.plan_id}")

  async def _recover(self, illness: Illness) -> None:
    """Whether this node can run its part of a model again. Raises while it cannot."""
    for opened in self._open.values():
      if opened.fingerprint == illness.fingerprint and opened.runner.model.shard == illness.shard:
        hidden_size = None if illness.shard.is_first else opened.bounds.hidden_size
        with suppress(OutOfMemoryError):  # its room is taken by others, whom it computes for
          await self.worker.thread.run(check_step, opened.runner.model, hidden_size)
        return
    if illness.no_files or not await self._files.is_gone(illness.shard, illness.fingerprint):
      await self._opener.try_out(illness.shard, illness.fingerprint, illness.no_memory)

  async def _leave(self) -> None:
    """Close all plans: this node's worker is broken."""
    for opened in list(self._open.values()):
      await self._close_everywhere(
          opened, PeerLostError(f"the engine of {self._node_id} is broken", node=self._node_id)
      )

  # messages

  def on_message(self, sender: str, message: Message) -> None:
    """Frames, results and the like. What does not belong is logged and ignored; a plan that cannot go on is closed."""
    try:
      self._on_message(sender, message)
    except Exception as error:  # noqa: BLE001 - whatever it is, the plan's clients must hear of it
      log(0, "a %s from %s failed: %s", type(message).__name__, sender, in_words(error))
      opened = self._open.get(getattr(message, "plan_id", ""))
      if opened is not None:
        failure = ExoError(in_words(error))
        self._tasks.spawn(self._close_everywhere(opened, failure), f"close {opened.plan.plan_id}")

  def _on_message(self, sender: str, message: Message) -> None:
    match message:
      case Frame():
        self._on_frame(sender, message)
      case StepResult():
        opened = self._open.get(message.plan_id)
        if opened is None or opened.driver is None or sender != opened.plan.last.node_id:
          log(2, "ignored a result of plan %s from %s", message.plan_id, sender)
          return
        opened.driver.on_result(message)
      case StepFailed():
        opened = self._open.get(message.plan_id)
        if opened is None or opened.driver is None or opened.plan.index_of(sender) is None:
          log(2, "ignored a failure of plan %s from %s", message.plan_id, sender)
          return
        opened.driver.on_failure(message)
      case Cancel():
        self._cancel(sender, message)
      case ClosePlan():
        self._on_close(sender, message)
      case Absolve():
        self.ailments.absolve(message.fingerprint, sender)
      case _:
        log(2, "ignored a %s from %s", type(message).__name__, sender)

  def _on_frame(self, sender: str, frame: Frame) -> None:
    opened = self._open.get(frame.plan_id)
    if opened is None or opened.plan.epoch != frame.epoch:
      log(2, "refused a frame of plan %s from %s: it is not open here", frame.plan_id, sender)
      self._tell_closed(sender, frame.plan_id, PlanClosedError(f"the plan is not open on {self._node_id}"))
      return
    previous = opened.plan.previous_of(self._node_id)
    if previous is None or previous.node_id != sender:
      log(1, "ignored a frame of plan %s from %s, which is not its neighbour", frame.plan_id, sender)
      return
    try:
      check_frame(frame, opened.bounds)
    except ProtocolError as error:
      log(1, "refused a frame of plan %s from %s: %s", frame.plan_id, sender, error)
      self._send(opened.plan.first.node_id, StepFailed(frame.plan_id, frame.step, Failure(*to_wire(error))))
      return
    opened.used_at = time.monotonic()
    opened.runner.feed(frame)

  def at_rest(self, frame: Frame) -> None:
    """See `StageHost`. What reading a frame takes is done with this one once more, since the engine's weights have pushed all
    of it out of the processor's caches: the next is read in less than half the time."""
    opened = self._open.get(frame.plan_id)
    if opened is None:
      return
    if opened.driver is not None:
      opened.driver.catch_up()
    if self._rehearse is not None and len(opened.plan.stages) > 1:
      previous = opened.plan.previous_of(self._node_id)
      self._rehearse((previous or opened.plan.last).node_id)
      if previous is not None:
        check_frame(frame, opened.bounds)

  def _cancel(self, sender: str, message: Cancel) -> None:
    """For the node that asked, and no other."""
    opened = self._open.get(message.plan_id)
    driver = None if opened is None else opened.driver
    running = [] if driver is None else driver.scheduler.requests()
    everything = (*self._start.requests(message.plan_id), *running)
    if any(r.entry_node != sender for r in everything if r.request_id == message.request_id):
      log(1, "ignored %s, which wants to cancel another node's request %s", sender, message.request_id)
      return
    self._start.forget(lambda request: (request.request_id, request.entry_node) == (message.request_id, sender))
    if driver is not None:
      driver.cancel(message.request_id)

  def _on_close(self, sender: str, message: ClosePlan) -> None:
    known = self._open.get(message.plan_id) or self._opening.get(message.plan_id)
    if known is not None and known.plan.index_of(sender) is not None:
      # the reason names the node that was lost, if one was
      error = PlanClosedError(f"{sender} closed the plan") if message.reason is None else failure_error(message.reason)
      self._opener.lose(message.plan_id, error)
      self._tasks.spawn(self._close_here(message.plan_id, error), "close")

  def peer_left(self, node_id: str, reason: str) -> None:
    """Close the plans that the node was part of, and free what it had asked for as an entry node."""
    error = PeerLostError(f"{node_id} left the ring ({reason})", node=node_id)
    for opened in list(self._open.values()):
      if opened.plan.index_of(node_id) is not None:
        # the others may hear that node still: who does not close would wait for it
        self._tasks.spawn(self._close_everywhere(opened, error), f"close {opened.plan.plan_id}")
      elif opened.driver is not None:
        opened.driver.cancel_entry(node_id)
    for plan_id, opening in self._opening.items():
      if opening.plan.index_of(node_id) is not None:
        self._opener.lose(plan_id, error)
    self._start.forget(lambda request: request.entry_node == node_id)

  async def close_model(self, model_id: str) -> None:
    """Give back what is loaded of a model. Raises `ModelInUseError` while requests run on it."""
    opened = [o for o in self._open.values() if o.plan.model_id == model_id]
    loading = any(opening.plan.model_id == model_id for opening in self._opening.values())
    if loading or any(not o.runner.idle or (o.driver is not None and not o.driver.idle) for o in opened):
      raise ModelInUseError(f"{model_id} is in use: wait for its requests to end, or cancel them", model=model_id)
    for one in opened:
      await self._close_everywhere(one, PlanClosedError(f"{model_id} was deleted on {self._node_id}"))

  async def _close_everywhere(self, opened: _Open, error: ExoError) -> None:
    for node_id in opened.plan.node_ids:
      if node_id != self._node_id:
        self._tell_closed(node_id, opened.plan.plan_id, error)
    await self._close_here(opened.plan.plan_id, error)

  def _tell_closed(self, node_id: str, plan_id: str, error: ExoError) -> None:
    try:
      self._send(node_id, ClosePlan(plan_id, Failure(*to_wire(error))))
    except ExoError as unreachable:
      log(2, "%s need not be told: %s", node_id, unreachable)

  async def _close_here(self, plan_id: str, error: ExoError) -> None:
    opened = self._open.pop(plan_id, None)
    if opened is None:
      return
    if opened.driver is not None:
      opened.driver.close(error)
    await opened.runner.close()
    log(1, "plan %s is closed here: %s", plan_id, error)
