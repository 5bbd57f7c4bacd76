"""The entry node's part: its clients' requests, from the submission to the last token.

A request outlives its plan: when a node of it is lost, what the client has of every unfinished choice is handed to a new
plan, which computes it again and goes on from there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager

from exo.errors import (
    BadNumbersError,
    CacheLostError,
    CancelledRequestError,
    DeadlineError,
    DrainingError,
    EngineEndedError,
    EngineError,
    ExoError,
    PeerLostError,
    PeerUnreachableError,
    PlanClosedError,
    ProtocolError,
    QueueFullError,
    StageSickError,
    from_wire,
    in_words,
)
from exo.log import log
from exo.networking.messages import Cancel, Message, OpenPlan, PromptProgress, RequestFailed, Submit, TokenDelivery
from exo.orchestration.generation import Generation, GenerationSpec
from exo.orchestration.planner import NO_RING, ModelRing
from exo.topology.ring_plan import Whom, WorkerId, names_of, node_of

_SUBMIT_TIMEOUT_S = 30.0
_RECOVERY_S = 30.0  # after which a request that finds no ring fails
_RETRY_S = 0.2
# a node that another one lost, or a worker that broke, is left out for a while, also where this node still hears it
_SHUN_S = 10.0

Send = Callable[[str, Message], None]
Call = Callable[[str, Message, float], Awaitable[Message]]
_RECOVERABLE = (PeerLostError, PeerUnreachableError, PlanClosedError, DrainingError)


class EntryDesk:
  """All requests that this node's clients have made."""
  def __init__(self, node_id: str, send: Send, call: Call) -> None:
    self._node_id, self._send, self._call = node_id, send, call
    self._running: dict[str, Generation] = {}
    self._shunned: dict[Whom, float] = {}

  def __len__(self) -> int:
    return len(self._running)

  @asynccontextmanager
  async def generation(self, spec: GenerationSpec, ring: ModelRing, timeout_s: float) -> AsyncIterator[Generation]:
    """Run a request on the plans that are made for its model of the ring as it is at that moment.

    However the block is left, nothing of it goes on running afterwards. Raises what planning raises and what the first
    stage refuses it with (`QueueFullError`, `InvalidRequestError`, …).
    """
    generation = Generation(spec, timeout_s)
    tasks = [_owned(generation, generation.watch(), f"watch {spec.request_id}")]
    try:
      await self._place(generation, ring, patient=False)
      tasks.append(_owned(generation, self._keep(generation, ring), f"keep {spec.request_id}"))
      yield generation
    finally:
      for task in tasks:
        task.cancel()
      self._running.pop(generation.ring_id, None)
      if generation.computing and generation.ring_id:
        self._cancel(generation)

  async def _place(self, generation: Generation, ring: ModelRing, patient: bool) -> None:
    """Submit what is unfinished, and again where a node is lost meanwhile; a patient one also waits for a full queue."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + _RECOVERY_S
    while True:
      try:
        await self._submit(generation, self._open_plan(generation, ring))
        return
      except NO_RING as error:
        # one that is under way waits for a sick node's return; before that, its client hears at once what is wrong
        if not generation.setbacks.hopeful or not generation.begun or loop.time() > give_up:
          raise generation.setbacks.verdict(error) from error
        generation.setbacks.forgive(ring.is_sick)
      except (*_RECOVERABLE, QueueFullError) as error:
        if loop.time() > give_up or (isinstance(error, QueueFullError) and not patient):
          raise
        self._shun(error)
        log(1, "request %s: %s; trying again", generation.spec.request_id, error)
      await asyncio.sleep(_RETRY_S)

  def _open_plan(self, generation: Generation, ring: ModelRing) -> OpenPlan:
    """Without those that another node lost lately, if there is a way; without workers that have failed this request."""
    now = asyncio.get_running_loop().time()
    failed: frozenset[Whom] = frozenset(generation.setbacks.failed)
    shunned = frozenset(whom for whom, until in self._shunned.items() if until > now)
    try:
      return ring.open_plan(shunned | failed)
    except NO_RING:
      if not shunned - failed:
        raise
      return ring.open_plan(failed)

  async def _submit(self, generation: Generation, message: OpenPlan) -> None:
    self._running.pop(generation.ring_id, None)
    spec, requests = generation.spec, generation.begin(message.plan, self._node_id)
    self._running[generation.ring_id] = generation
    exact = "exact" if spec.exact else "in any company"
    log(1, "request %s: %d prompt tokens on %s, %s", generation.ring_id, len(spec.prompt_ids), message.plan, exact)
    first = message.plan.first.node_id
    for request in requests:
      if request.replay_ids:
        log(
            1,
            "computing %d tokens again, %d of their steps with drafts",
            len(request.replay_ids),
            len(request.replay_wide),
            request=generation.ring_id
        )
      try:
        await self._call(first, Submit(message, request), _SUBMIT_TIMEOUT_S)
      except DeadlineError as error:
        raise PeerLostError(error.message, node=first) from error

  def _shun(self, error: ExoError) -> None:
    node, worker = error.details.get("node"), error.details.get("worker")
    now = asyncio.get_running_loop().time()
    self._shunned = {whom: until for whom, until in self._shunned.items() if until > now}
    if isinstance(node, str) and node != self._node_id:
      self._shunned[WorkerId(node, worker) if isinstance(worker, str) else node] = now + _SHUN_S

  async def _keep(self, generation: Generation, ring: ModelRing) -> None:
    """Move the request whenever it loses its plan; runs until cancelled or until there is no ring for it."""
    try:
      while True:
        error = await generation.trouble
        self._learn(generation, ring, error)
        log(1, "request %s lost its ring: %s", generation.spec.request_id, error)
        self._cancel(generation)
        await self._place(generation, ring, patient=True)
    except ExoError as error:
      generation.fail(error)
    except Exception as error:  # noqa: BLE001 - its client must hear of it, not wait
      log(0, "recovery of request %s failed: %s", generation.spec.request_id, in_words(error))
      generation.fail(ExoError(f"the request could not be moved to another ring: {in_words(error)}"))

  def _learn(self, generation: Generation, ring: ModelRing, error: ExoError) -> None:
    """What to leave out in the next attempt. Raises where there is none: what an engine says of this very request, say."""
    setbacks = generation.setbacks
    worker = WorkerId(str(error.details.get("node")), str(error.details.get("worker")))
    if isinstance(error, BadNumbersError | StageSickError) and worker not in generation.plan.workers:
      raise error  # nobody is left out on the word of a plan that it is not part of
    if isinstance(error, BadNumbersError):
      if not error.details.get("recomputed") and setbacks.doubt(worker):
        return  # computed once more where it was; the node itself had seen nothing
      setbacks.add(worker, error)
      guilty = setbacks.with_bad_numbers
      if len({node_id for node_id, _ in guilty}) > 1:  # one node's word is not enough against a model
        ring.acquit(guilty, generation.spec.request_id)
        names = names_of(guilty).values()
        raise BadNumbersError(
            f"this request makes numbers that are not finite, on {' and on '.join(names)}", nodes=len(names)
        )
      ring.failed(worker, error)
    elif isinstance(error, StageSickError):
      setbacks.add(worker, error)
      ring.failed(worker, error)
    elif isinstance(error, EngineEndedError) and error.details.get("computing"):
      if not setbacks.ended():
        raise EngineError(f"{error.message}; it was the second time with this request, which is given up")
    elif isinstance(error, CacheLostError | EngineEndedError):
      if not setbacks.again():
        raise error
    elif isinstance(error, _RECOVERABLE):
      self._shun(error)
    else:
      raise error

  def cancel(self, request_id: str, share: str | None = None) -> bool:
    """End a request on its client's behalf: whoever reads it gets `CancelledRequestError`. False when there is none, or
    where `share` is given, none of its."""
    found = [
        g for g in self._running.values()
        if g.spec.request_id.partition(".")[0] == request_id and share in (None, g.spec.share)
    ]
    for generation in found:
      generation.fail(CancelledRequestError(f"request {request_id} was cancelled"))
    return bool(found)

  def _cancel(self, generation: Generation) -> None:
    try:
      self._send(generation.plan.first.node_id, Cancel(generation.plan.plan_id, generation.ring_id))
    except PeerUnreachableError:
      log(1, "request %s cannot be cancelled: its first stage is gone", generation.ring_id)
    except Exception as error:  # noqa: BLE001 - whoever leaves the request has an error of its own, or an answer
      log(0, "request %s was not cancelled: %s", generation.ring_id, in_words(error))

  def has(self, request_id: str) -> bool:
    """Whether one of this node's requests has this name on the ring now."""
    return request_id in self._running

  def on_delivery(self, sender: str, delivery: TokenDelivery) -> None:
    generation = self._running.get(delivery.request_id)
    if generation is None or generation.plan.plan_id != delivery.plan_id:
      return  # cancelled meanwhile, or moved
    if sender != generation.plan.last.node_id:  # it must not be able to end what is another's
      log(1, "refused tokens of request %s from %s, which is not its last stage", delivery.request_id, sender)
      return
    try:
      generation.take(sender, delivery)
    except ProtocolError as error:
      log(1, "%s", error)
      generation.fail(error)
    except Exception as error:  # noqa: BLE001 - its client must hear of it, not wait
      log(0, "a delivery failed: %s", in_words(error), request=delivery.request_id)
      generation.fail(ExoError(in_words(error)))

  def on_progress(self, sender: str, progress: PromptProgress) -> None:
    generation = self._running.get(progress.request_id)
    if generation is None or (generation.plan.plan_id, generation.plan.first.node_id) != (progress.plan_id, sender):
      return  # of a plan that it has left, or made up
    generation.tell(progress)

  def on_failed(self, sender: str, message: RequestFailed) -> None:
    generation = self._running.get(message.request_id)
    if generation is not None and generation.plan.plan_id == message.plan_id and sender in generation.plan.node_ids:
      failure = message.failure
      generation.lose(from_wire(failure.kind, failure.message, failure.details_json))

  def peer_joined(self, node_id: str) -> None:
    """It is back, and may take part again."""
    self._shunned = {whom: until for whom, until in self._shunned.items() if node_of(whom) != node_id}

  def peer_left(self, node_id: str, reason: str) -> None:
    for generation in self._running.values():
      if generation.plan.has(node_id):
        generation.lose(PeerLostError(f"{node_id} left the ring ({reason})", node=node_id))


def _owned(generation: Generation, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
  """A task of a generation's, which fails with it."""
  def ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
      log(0, "%s failed: %s", name, in_words(error))
      generation.fail(ExoError(in_words(error)))

  task = asyncio.create_task(work, name=name)
  task.add_done_callback(ended)
  return task
