"""The entry node's part: its clients' requests, from the submission to the last token."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from exo.errors import DeadlineError, ExoError, PeerLostError, PeerUnreachableError, ProtocolError, from_wire
from exo.inference.sampling import SamplingParams
from exo.log import log
from exo.networking.messages import Cancel, Message, OpenPlan, Request, RequestFailed, Submit, TokenDelivery
from exo.topology.ring_plan import RingPlan

_SUBMIT_TIMEOUT_S = 30.0

Send = Callable[[str, Message], None]
Call = Callable[[str, Message, float], Awaitable[Message]]


@dataclass(frozen=True, slots=True)
class GenerationSpec:
  """What a client wants of a model: `n` choices, each of at most `max_tokens` tokens."""
  request_id: str
  prompt_ids: tuple[int, ...]
  max_tokens: int
  eos_ids: frozenset[int]
  sampling: SamplingParams
  n: int = 1
  prompt_logprobs: int | None = None


class Generation:
  """A running request. Iterate it for deliveries; it ends when every choice has its finish reason."""
  def __init__(self, spec: GenerationSpec, plan: RingPlan, timeout_s: float) -> None:
    self.spec, self.plan, self._timeout_s = spec, plan, timeout_s
    self._events: deque[TokenDelivery | ExoError] = deque()
    self._next_index = [0] * spec.n
    self._wanted, self._computing = set(range(spec.n)), set(range(spec.n))
    self._loop = asyncio.get_running_loop()
    self._heard_at = self._loop.time()
    self._reader: asyncio.Future[None] | None = None

  @property
  def computing(self) -> bool:
    """The ring still works for it."""
    return bool(self._computing)

  @property
  def pending(self) -> bool:
    """The next delivery is here already."""
    return bool(self._events)

  def end_choice(self, choice: int) -> None:
    """The client has all it wants of this choice (a stop string); what still comes of it is dropped."""
    self._wanted.discard(choice)

  def take(self, sender: str, delivery: TokenDelivery) -> None:
    """Accept a delivery from the plan's last stage. Raises `ProtocolError` for others, gaps and duplicates."""
    choice = delivery.choice
    if sender != self.plan.last.node_id or not 0 <= choice < self.spec.n:
      raise ProtocolError(f"tokens of request {self.spec.request_id} came from {sender}, which is not its last stage")
    if delivery.index != self._next_index[choice]:
      raise ProtocolError(
          f"token {delivery.index} of request {self.spec.request_id} came where {self._next_index[choice]} was due"
      )
    self._next_index[choice] += len(delivery.tokens)
    if delivery.finish_reason:
      self._computing.discard(choice)
    self._heard_at = self._loop.time()
    self._events.append(delivery)
    self._wake()

  def fail(self, error: ExoError) -> None:
    self._events.append(error)
    self._wake()

  def _wake(self) -> None:
    if self._reader is not None and not self._reader.done():
      self._reader.set_result(None)

  async def watch(self) -> None:
    """Fail when nothing comes for too long; runs until cancelled. One timer, not one for every token."""
    while (left_s := self._heard_at + self._timeout_s - self._loop.time()) > 0:  # noqa: ASYNC110
      await asyncio.sleep(left_s)
    self.fail(DeadlineError(f"the ring gave nothing for {self._timeout_s:g} s"))

  def __aiter__(self) -> AsyncIterator[TokenDelivery]:
    return self

  async def __anext__(self) -> TokenDelivery:
    """Raises the error that ended the request; `DeadlineError` when nothing came for too long."""
    while self._wanted:
      if not self._events:
        self._reader = self._loop.create_future()
        await self._reader
        continue
      event = self._events.popleft()
      if isinstance(event, ExoError):
        raise event
      if event.choice not in self._wanted:
        continue
      if event.finish_reason:
        self._wanted.discard(event.choice)
      return event
    raise StopAsyncIteration


class EntryDesk:
  """All requests that this node's clients have made."""
  def __init__(self, node_id: str, send: Send, call: Call) -> None:
    self._node_id, self._send, self._call = node_id, send, call
    self._running: dict[str, Generation] = {}

  def __len__(self) -> int:
    return len(self._running)

  @asynccontextmanager
  async def generation(self, spec: GenerationSpec, open_plan: OpenPlan, timeout_s: float) -> AsyncIterator[Generation]:
    """Run a request on a plan. However the block is left, nothing of it goes on running afterwards.

    Raises what the first stage refuses it with (`QueueFullError`, `InvalidRequestError`, …).
    """
    plan = open_plan.plan
    generation = self._running[spec.request_id] = Generation(spec, plan, timeout_s)
    log(1, "request %s: %d prompt tokens on %s", spec.request_id, len(spec.prompt_ids), plan)
    watching = asyncio.create_task(generation.watch(), name=f"watch {spec.request_id}")
    try:
      request = Request(
          spec.request_id,
          self._node_id,
          spec.prompt_ids,
          spec.max_tokens,
          spec.eos_ids,
          spec.sampling,
          prompt_logprobs=spec.prompt_logprobs
      )
      for choice in range(spec.n):
        await self._call(plan.first.node_id, Submit(open_plan, replace(request, choice=choice)), _SUBMIT_TIMEOUT_S)
      yield generation
    finally:
      watching.cancel()
      del self._running[spec.request_id]
      if generation.computing:
        self._cancel(generation)

  def _cancel(self, generation: Generation) -> None:
    try:
      self._send(generation.plan.first.node_id, Cancel(generation.plan.plan_id, generation.spec.request_id))
    except PeerUnreachableError:
      log(1, "request %s cannot be cancelled: its first stage is gone", generation.spec.request_id)

  def on_delivery(self, sender: str, delivery: TokenDelivery) -> None:
    generation = self._running.get(delivery.request_id)
    if generation is None or generation.plan.plan_id != delivery.plan_id:
      return  # cancelled meanwhile
    try:
      generation.take(sender, delivery)
    except ProtocolError as error:
      log(1, "%s", error)
      generation.fail(error)

  def on_failed(self, sender: str, message: RequestFailed) -> None:
    generation = self._running.get(message.request_id)
    if generation is not None and generation.plan.plan_id == message.plan_id and sender in generation.plan.node_ids:
      failure = message.failure
      generation.fail(from_wire(failure.kind, failure.message, failure.details_json))

  def peer_left(self, node_id: str, reason: str) -> None:
    for generation in self._running.values():
      if generation.plan.index_of(node_id) is not None:
        generation.fail(PeerLostError(f"{node_id} left the ring ({reason})", node=node_id))
