"""The plans that are open on this node: its stages of each, and for those that begin here their driver."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial

from exo.errors import (
    BadNumbersError,
    EngineEndedError,
    ExoError,
    InvalidRequestError,
    ModelInUseError,
    PeerLostError,
    PlanClosedError,
    ProtocolError,
    QueueFullError,
    StageSickError,
    in_words,
    to_wire,
)
from exo.inference.shard import Shard
from exo.log import log
from exo.networking.messages import (
    Absolve,
    Cancel,
    ClosePlan,
    ExactnessFound,
    Failure,
    Frame,
    Message,
    OpenPlan,
    PlanOpened,
    StepFailed,
    StepResult,
    Submit,
)
from exo.networking.peer_messages import Ailment, PlanPace, PlanRoom
from exo.orchestration.ailments import Illness
from exo.orchestration.awake_cores import AwakeCores
from exo.orchestration.failures import failure_error
from exo.orchestration.frame_check import check_frame
from exo.orchestration.kv_leases import KvLeases
from exo.orchestration.kv_room import Limits
from exo.orchestration.meter import Meter
from exo.orchestration.opened_plan import OpenedPlan, Opening, RunningStage
from exo.orchestration.plan_driver import PlanDriver
from exo.orchestration.plan_start import Call, PlanStart
from exo.orchestration.residents import Closing, Residents
from exo.orchestration.scheduler import Scheduler
from exo.orchestration.stage_files import StageFiles
from exo.orchestration.stage_opener import OpenedStage
from exo.orchestration.stage_runner import StageRunner
from exo.orchestration.worker_desk import WorkerDesk
from exo.tasks import TaskOwner
from exo.topology.ring_plan import RingPlan
from exo.worker.shard_loader import LoadedShard
from exo.worker.studies import Studies
from exo.worker.worker import Worker

Send = Callable[[str, Message], None]


class PlanHost:
  """Opens, serves and closes plans on the workers of one node."""
  def __init__(
      self, node_id: str, workers: Sequence[Worker], files: StageFiles, studies: Studies, send: Send, call: Call,
      rehearse: Callable[[str], None] | None, meter: Meter, speculate: bool, awake: AwakeCores, most_wait_s: float,
      is_linked: Callable[[str], bool]
  ) -> None:
    self._node_id, self.workers = node_id, tuple(workers)
    self._send, self._rehearse, self._meter, self._awake = send, rehearse, meter, awake
    self.studies = studies
    self._most_wait_s, self._is_linked = most_wait_s, is_linked
    self._open: dict[str, OpenedPlan] = {}
    self._opening: dict[tuple[str, int], Opening] = {}  # what is being loaded now, by plan and stage
    self._tasks = TaskOwner("plans")
    self._start = PlanStart(send, call, self._driver_of, self._tasks, speculate, most_wait_s)
    closing = Closing(self._close_here, self._close_everywhere, self._begin_to_close, self._lose)
    self.residents = Residents(node_id, self._open, self._opening, self._start.__contains__, call, closing)
    self.leases = KvLeases(node_id, self._open, self.residents, call, self._tasks)
    self._desks = {worker.name: WorkerDesk(worker, files, self._tasks, self) for worker in workers}
    for worker in workers:
      worker.health.on_broken(partial(self._leave, worker))

  @property
  def plans(self) -> list[RingPlan]:
    return [o.plan for o in self._open.values()]

  def sequences(self, plan_id: str) -> int:
    """How many sequences have something in this node's caches."""
    stages = self._open[plan_id].stages.values() if plan_id in self._open else ()
    return max((stage.runner.sequences for stage in stages), default=0)

  def shards(self, worker: Worker) -> tuple[Shard, ...]:
    """What is loaded on a worker of plans that are open."""
    return tuple(loaded.model.shard for loaded in self.loaded(worker))

  def loaded(self, worker: Worker) -> tuple[LoadedShard, ...]:
    """The same with what was planned and measured of it."""
    stages = (o.on(worker) for o in self._open.values())
    found = (worker.shard_of(stage.loaded.model) for stage in stages if stage is not None)
    return tuple(shard for shard in found if shard is not None)

  @property
  def paces(self) -> tuple[PlanPace, ...]:
    """Of the plans that begin here."""
    return tuple(o.driver.summary() for o in self._open.values() if o.driver is not None)

  @property
  def rooms(self) -> tuple[PlanRoom, ...]:
    """Of the plans that begin here, as soon as requests can run on them."""
    rooms = (o.driver.room for o in self._open.values() if o.driver is not None)
    return tuple(replace(room, kept=room.model_id in self.residents.kept) for room in rooms)

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
    return not self.busy and not self._opening and all(o.idle for o in self._open.values())

  async def close(self) -> None:
    for worker in self.workers:
      await worker.health.close()
    await self._tasks.close()
    for plan_id in list(self._open):
      await self._close_here(plan_id, PlanClosedError("this node stops"))
    self._awake.close()

  # opening

  async def open(self, message: OpenPlan) -> PlanOpened:
    """Load one of this node's stages, once however often it is asked for."""
    plan, index = message.plan, message.stage
    if not index < len(plan.stages) or plan.stages[index].node_id != self._node_id:
      raise ProtocolError(f"{self._node_id} has no stage {index} in plan {plan.plan_id}")
    desk = self._desks.get(plan.stages[index].worker)
    if desk is None:
      raise ProtocolError(f"{self._node_id} has no worker {plan.stages[index].worker}")
    opened = self._open.get(plan.plan_id)
    if opened is not None and index in opened.stages:
      return opened.stages[index].limits
    first = plan.first.node_id
    if first != self._node_id and not self._is_linked(first):
      # its message has outlived it: nobody would ever close what is opened now
      raise PeerLostError(f"{first}, where the plan begins, has left the ring", node=first)
    if (key := (plan.plan_id, index)) not in self._opening:
      task = self._tasks.spawn(self._load(desk, message), f"open stage {index} of {plan.plan_id}")
      self._opening[key] = Opening(plan, task)
    return await asyncio.shield(self._opening[key].task)

  async def _load(self, desk: WorkerDesk, message: OpenPlan) -> PlanOpened:
    try:
      return await self._open_stage(desk, message)
    finally:
      self._opening.pop((message.plan.plan_id, message.stage), None)

  async def _open_stage(self, desk: WorkerDesk, message: OpenPlan) -> PlanOpened:
    plan, index = message.plan, message.stage
    loaded = await desk.open(message)
    runner = StageRunner(
        plan, index, loaded.model, desk.worker, self._send, self._meter, self, self._awake, loaded.grammars
    )
    stage = RunningStage(runner, loaded)
    opened = self._open.setdefault(plan.plan_id, OpenedPlan(plan))
    opened.stages[index] = stage
    log(1, "stage %d of plan %s is open here: %s", index, plan.plan_id, plan)
    if loaded.model.to_study() is not None:
      opened.studies.append(self._tasks.spawn(self._study(stage), f"study stage {index} of {plan.plan_id}"))
    if self.residents.replaces(plan):
      self._tasks.spawn(self.residents.retire(plan), f"retire plans of {plan.model_id}")
    return stage.limits

  async def _study(self, stage: RunningStage) -> None:
    """Find out more about a stage, once its plan has served somebody, and let the first stage know."""
    runner = stage.runner
    try:
      found = await self.studies.run(stage.worker, runner.model, lambda: not self.idle or runner.changed_step < 0)
      if found is not None:
        self._send(runner.plan.first.node_id, ExactnessFound(runner.plan.plan_id, runner.index, found))
    except ExoError as error:  # the engine's process or the first stage is gone, and the plan ends for that
      log(1, "what was found out about %s was of no use: %s", runner.model.shard, error)

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
        self._begin_to_close(opened, closed)
        raise
      return
    self._start.add(message.open, message.request)

  def _driver_of(self, plan: RingPlan, limits: Limits) -> PlanDriver:
    """Begin to serve a plan whose stages are all open. Raises `PlanClosedError`."""
    here = self._open.get(plan.plan_id)
    if here is None or 0 not in here.stages:
      raise PlanClosedError(f"plan {plan.plan_id} was closed while it opened")
    feed = here.stages[0].runner.feed
    lease = self.leases.first_lease(plan.plan_id, limits.first_lease)
    limits = replace(limits, near_context=here.stages[0].loaded.model.memory.near_context, lease_tokens=lease)
    here.driver = PlanDriver(
        plan, Scheduler(limits), feed, self._send, self._meter, self._most_wait_s, self.leases.grow
    )
    return here.driver

  # sickness

  def ailments(self) -> tuple[Ailment, ...]:
    """What workers of this node cannot run for now."""
    return tuple(ailment for desk in self._desks.values() for ailment in desk.ailments.told())

  def forget(self, model_id: str) -> None:
    """The model is not here any more: nothing of it can ail."""
    for desk in self._desks.values():
      desk.ailments.forget(model_id)

  def find(self, worker: Worker, illness: Illness) -> OpenedStage | None:
    """See `OpenStages`."""
    for opened in self._open.values():
      stage = opened.on(worker) if opened.plan.file == illness.file else None
      if stage is not None and stage.loaded.model.shard == illness.shard:
        return stage.loaded
    return None

  def bad_numbers(self, runner: StageRunner, entry_nodes: frozenset[str]) -> None:
    """See `StageHost`. What runs and is well stays where it is."""
    error = BadNumbersError("it computes numbers that are not finite", node=self._node_id, worker=runner.worker.name)
    self._fall_ill(runner, error, entry_nodes)

  def broken(self, runner: StageRunner, error: StageSickError | EngineEndedError) -> None:
    """See `StageHost`. The plan is over, its requests may go on elsewhere; perhaps the whole worker is broken. Where only the process of
    its engine has ended, it is opened again at once."""
    opened = self._open.get(runner.plan.plan_id)
    if isinstance(error, EngineEndedError):
      if opened is not None:
        self._desks[runner.worker.name].engine_ended(runner.model.shard, opened.plan.file, error)
      self.crashed(runner, PlanClosedError(f"{runner.plan.name_of(runner.index)}: {error.message}"))
    elif self._fall_ill(runner, error):
      self.crashed(runner, error)
      runner.worker.health.doubt()

  def _fall_ill(self, runner: StageRunner, error: ExoError, entry_nodes: frozenset[str] = frozenset()) -> bool:
    """False where the plan is over already."""
    opened = self._open.get(runner.plan.plan_id)
    if opened is None:
      return False
    ailments = self._desks[runner.worker.name].ailments
    ailments.fall_ill(runner.model.shard, opened.plan.file, error, entry_nodes)
    return True

  def crashed(self, runner: StageRunner, error: ExoError) -> None:
    """See `StageHost`."""
    opened = self._open.get(runner.plan.plan_id)
    if opened is not None:
      self._begin_to_close(opened, error)

  async def _leave(self, worker: Worker) -> None:
    """Close all plans that a worker takes part in: it is broken."""
    error = PeerLostError(f"the engine of {worker.label} is broken", node=self._node_id, worker=worker.name)
    self._desks[worker.name].opener.lose_all(error)
    for opened in list(self._open.values()):
      if opened.on(worker) is not None:
        await self._close_everywhere(opened, error)

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
        self._begin_to_close(opened, failure)

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
        if opened is None or opened.driver is None or not opened.plan.has(sender):
          log(2, "ignored a failure of plan %s from %s", message.plan_id, sender)
          return
        opened.driver.on_failure(message)
      case ExactnessFound():
        self._on_exactness(sender, message)
      case Cancel():
        self._cancel(sender, message)
      case ClosePlan():
        self._on_close(sender, message)
      case Absolve():
        for desk in self._desks.values():
          desk.ailments.absolve(message.fingerprint, sender)
      case _:
        log(2, "ignored a %s from %s", type(message).__name__, sender)

  def _on_exactness(self, sender: str, message: ExactnessFound) -> None:
    opened = self._open.get(message.plan_id)
    stages = () if opened is None else opened.plan.stages
    if opened is None or opened.driver is None or message.stage >= len(stages) or stages[message.stage
                                                                                         ].node_id != sender:
      log(2, "ignored what %s has found out about a stage of plan %s", sender, message.plan_id)
      return
    opened.driver.learn(message.stage, message.exactness)

  def _on_frame(self, sender: str, frame: Frame) -> None:
    opened = self._open.get(frame.plan_id)
    stage = None if opened is None else opened.stages.get(frame.stage)
    if opened is None or stage is None or opened.plan.epoch != frame.epoch:
      log(2, "refused a frame of plan %s from %s: it is not open here", frame.plan_id, sender)
      self._tell_closed(sender, frame.plan_id, PlanClosedError(f"the plan is not open on {self._node_id}"))
      return
    previous = opened.plan.before(frame.stage)
    if previous is None or previous.node_id != sender:
      log(1, "ignored a frame of plan %s from %s, which is not its neighbour", frame.plan_id, sender)
      return
    try:
      check_frame(frame, stage.loaded.bounds)
    except ProtocolError as error:
      log(1, "refused a frame of plan %s from %s: %s", frame.plan_id, sender, error)
      self._send(opened.plan.first.node_id, StepFailed(frame.plan_id, frame.step, Failure(*to_wire(error))))
      return
    opened.used_at = time.monotonic()
    stage.runner.feed(frame)

  def at_rest(self, frame: Frame) -> None:
    """See `StageHost`. What reading a frame takes is done with this one once more, since the engine's weights have pushed all
    of it out of the processor's caches: the next is read in less than half the time."""
    opened = self._open.get(frame.plan_id)
    stage = None if opened is None else opened.stages.get(frame.stage)
    if opened is None or stage is None:
      return
    opened.used_at = time.monotonic()
    if opened.driver is not None and frame.stage == 0:
      opened.driver.catch_up()
    previous = opened.plan.before(frame.stage)
    sender = (previous or opened.plan.last).node_id
    if self._rehearse is not None and sender != self._node_id:
      self._rehearse(sender)
      if previous is not None:
        check_frame(frame, stage.loaded.bounds)

  def _cancel(self, sender: str, message: Cancel) -> None:
    """For the node that asked, and no other; later stages hear of it from the first."""
    opened = self._open.get(message.plan_id)
    driver = None if opened is None else opened.driver
    if opened is not None and driver is None and sender == opened.plan.first.node_id:
      self._abort_steps(opened, message)
    running = [] if driver is None else driver.scheduler.requests()
    everything = (*self._start.requests(message.plan_id), *running)
    if any(r.entry_node != sender for r in everything if r.request_id == message.request_id):
      log(1, "ignored %s, which wants to cancel another node's request %s", sender, message.request_id)
      return
    self._start.forget(lambda request: (request.request_id, request.entry_node) == (message.request_id, sender))
    if opened is not None and driver is not None and driver.cancel(message.request_id):
      self._abort_steps(opened, message)
      for node_id in opened.plan.node_ids:
        if node_id != self._node_id:
          self._tell(node_id, message)

  @staticmethod
  def _abort_steps(opened: OpenedPlan, message: Cancel) -> None:
    for stage in opened.stages.values():
      stage.runner.cancel(message.request_id)

  def _on_close(self, sender: str, message: ClosePlan) -> None:
    plan = self.residents.plan_of(message.plan_id)
    if plan is not None and plan.has(sender):
      # the reason names the node that was lost, if one was
      error = PlanClosedError(f"{sender} closed the plan") if message.reason is None else failure_error(message.reason)
      self._lose(message.plan_id, error)
      self._tasks.spawn(self._close_here(message.plan_id, error), "close")

  def peer_left(self, node_id: str, reason: str) -> None:
    """Close the plans that the node was part of, and free what it had asked for as an entry node.

    Where another link to it is up, it may have noticed nothing, or have asked anew meanwhile: it is told what is freed.
    """
    error = PeerLostError(f"{node_id} left the ring ({reason})", node=node_id)
    lost = PlanClosedError(f"a link between {node_id} and {self._node_id} broke ({reason})")
    for opened in list(self._open.values()):
      if opened.plan.has(node_id):
        # the others may hear that node still: who does not close would wait for it
        self._begin_to_close(opened, error)
        continue
      try:
        if opened.driver is not None:
          opened.driver.cancel_entry(node_id, lost)
        for stage in opened.stages.values():
          stage.runner.cancel_entry(node_id, lost)
      except Exception as unexpected:  # noqa: BLE001 - whoever was not told hears that the plan is over
        log(0, "requests of %s were not freed: %s", node_id, in_words(unexpected))
        self._tasks.spawn(self._close_everywhere(opened, lost), f"close {opened.plan.plan_id}")
    for (plan_id, _), opening in self._opening.items():
      if opening.plan.has(node_id):
        self._lose(plan_id, error)
    self._start.cancel_entry(node_id, lost)

  async def close_model(self, model_id: str, why: str = "was deleted") -> None:
    """Give back what is loaded of a model. Raises `ModelInUseError` while requests run on it."""
    opened = [o for o in self._open.values() if o.plan.model_id == model_id]
    loading = any(opening.plan.model_id == model_id for opening in self._opening.values())
    if loading or not all(o.unused for o in opened):
      raise ModelInUseError(f"{model_id} is in use: wait for its requests to end, or cancel them", model=model_id)
    for one in opened:
      await self._close_everywhere(one, PlanClosedError(f"{model_id} {why} on {self._node_id}"))

  def _begin_to_close(self, opened: OpenedPlan, error: ExoError) -> None:
    self._tasks.spawn(self._close_everywhere(opened, error), f"close {opened.plan.plan_id}")

  async def _close_everywhere(self, opened: OpenedPlan, error: ExoError) -> None:
    async with AsyncExitStack() as at_end:  # here in any case, or its requests would keep their caches
      at_end.push_async_callback(self._close_here, opened.plan.plan_id, error)
      for node_id in opened.plan.node_ids:
        if node_id != self._node_id:
          self._tell_closed(node_id, opened.plan.plan_id, error)

  def _tell_closed(self, node_id: str, plan_id: str, error: ExoError) -> None:
    self._tell(node_id, ClosePlan(plan_id, Failure(*to_wire(error))))

  def _tell(self, node_id: str, message: Message) -> None:
    try:
      self._send(node_id, message)
    except ExoError as unreachable:
      log(2, "%s need not be told: %s", node_id, unreachable)

  def _lose(self, plan_id: str, error: ExoError) -> None:
    """What is still being loaded for a plan is not wanted any more."""
    for desk in self._desks.values():
      desk.opener.lose(plan_id, error)

  async def _close_here(self, plan_id: str, error: ExoError) -> None:
    opened = self._open.pop(plan_id, None)
    if opened is None:
      return
    for study in opened.studies:
      study.cancel()
    async with AsyncExitStack() as at_end:  # each of them, also when another fails
      for stage in opened.stages.values():
        at_end.push_async_callback(stage.runner.close)
      if opened.driver is not None:
        at_end.callback(opened.driver.close, error)
      self._lose(plan_id, error)  # where some of its stages are open and others not yet
    log(1, "plan %s is closed here: %s", plan_id, error)
