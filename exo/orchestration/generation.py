"""One request of a client's: what it wants, what it has of it, and the plan that it runs on now."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from exo.errors import DeadlineError, ExoError, ProtocolError
from exo.inference.sampling import SamplingParams
from exo.log import log
from exo.networking.messages import PromptProgress, Request, TokenDelivery, WideStep
from exo.orchestration.setbacks import Setbacks
from exo.topology.ring_plan import RingPlan


@dataclass(frozen=True, slots=True)
class GenerationSpec:
  """What a client wants of a model: `n` choices, each of at most `max_tokens` tokens. `share` is the client's label.
  With `progress`, its client hears of the prompt before the first token.
  """
  request_id: str
  prompt_ids: tuple[int, ...]
  max_tokens: int
  eos_ids: frozenset[int]
  sampling: SamplingParams
  n: int = 1
  prompt_logprobs: int | None = None
  embed: bool = False
  share: str = ""
  cache_salt: str = ""
  exact: bool = True
  progress: bool = False


@dataclass(frozen=True, slots=True)
class Resumption:
  """A request went on elsewhere; `after_s` is how long its client waited for the next token."""
  n_nodes: int
  after_s: float

  def __str__(self) -> str:
    return f"resumed on {self.n_nodes} node{'' if self.n_nodes == 1 else 's'} after {self.after_s:.1f} s"


class Generation:
  """A running request. Iterate it for deliveries; it ends when every choice has its finish reason.

  `plan` is the one that it runs on now, `ring_id` the name that the ring has for it there: each plan gets another, so
  that nothing late from the plan before is taken for its own. `resumptions` fills as deliveries are read.
  """
  plan: RingPlan

  def __init__(self, spec: GenerationSpec, timeout_s: float) -> None:
    self.spec, self._timeout_s = spec, timeout_s
    self.ring_id = ""
    self.resumptions: list[Resumption] = []
    self.setbacks = Setbacks()
    self._attempts = 0
    self._events: deque[TokenDelivery | PromptProgress | ExoError | Resumption] = deque()
    self._emitted: list[list[int]] = [[] for _ in range(spec.n)]
    self._mu = [0.0] * spec.n
    self._wide: list[list[WideStep]] = [[] for _ in range(spec.n)]
    self._wanted, self._computing = set(range(spec.n)), set(range(spec.n))
    self._loop = asyncio.get_running_loop()
    self._heard_at = self._loop.time()
    self._lost_at: float | None = None
    self._reader: asyncio.Future[None] | None = None
    self.trouble: asyncio.Future[ExoError] = self._loop.create_future()

  @property
  def computing(self) -> bool:
    """The ring still works for it."""
    return bool(self._computing)

  def emitted(self, choice: int) -> tuple[int, ...]:
    """The tokens that have come of it."""
    return tuple(self._emitted[choice])

  @property
  def begun(self) -> bool:
    """Its client has something of it."""
    return any(self._emitted)

  @property
  def pending(self) -> bool:
    """The next delivery is here already."""
    return bool(self._events)

  def end_choice(self, choice: int) -> None:
    """The client has all it wants of this choice (a stop string); what still comes of it is dropped."""
    self._wanted.discard(choice)

  def begin(self, plan: RingPlan, entry_node: str) -> list[Request]:
    """Turn to a plan; returns what it must be asked for. Of plans before this one nothing counts any more."""
    spec, self.plan = self.spec, plan
    self.ring_id = spec.request_id if self._attempts == 0 else f"{spec.request_id}~{self._attempts}"
    self._attempts += 1
    self.trouble = self._loop.create_future()
    self._computing &= self._wanted
    return [
        Request(
            self.ring_id,
            entry_node,
            spec.prompt_ids,
            spec.max_tokens,
            spec.eos_ids,
            spec.sampling,
            choice,
            prompt_logprobs=None if self._emitted[choice] else spec.prompt_logprobs,
            replay_ids=tuple(self._emitted[choice]),
            embed=spec.embed,
            replay_wide=tuple(self._wide[choice]),
            share=spec.share,
            cache_salt=spec.cache_salt,
            exact=spec.exact,
            mu=self._mu[choice],
            progress=spec.progress and choice == 0 and not self.begun
        ) for choice in sorted(self._computing)
    ]

  def take(self, sender: str, delivery: TokenDelivery) -> None:
    """Accept a delivery from the plan's last stage. Raises `ProtocolError` for others, gaps and duplicates."""
    choice = delivery.choice
    if sender != self.plan.last.node_id or not 0 <= choice < self.spec.n:
      raise ProtocolError(f"tokens of request {self.spec.request_id} came from {sender}, which is not its last stage")
    emitted = self._emitted[choice]
    if delivery.index != len(emitted):
      raise ProtocolError(f"token {delivery.index} of request {self.spec.request_id} came where {len(emitted)} was due")
    if delivery.width > 1 and emitted and delivery.tokens:  # it began with the token before
      self._wide[choice].append(WideStep(len(emitted) - 1, len(delivery.tokens), delivery.width))
    emitted.extend(token.token_id for token in delivery.tokens)
    if delivery.tokens:
      self._mu[choice] = delivery.tokens[-1].mu
    if delivery.finish_reason:
      self._computing.discard(choice)
    self._heard_at = self._loop.time()
    if self._lost_at is not None and not self.trouble.done():  # else it is late, from the plan that was lost
      resumption = Resumption(len(self.plan.node_ids), self._heard_at - self._lost_at)
      self._lost_at = None
      self._events.append(resumption)
      log(1, "request %s %s", self.spec.request_id, resumption)
    self._events.append(delivery)
    self._wake()

  def tell(self, progress: PromptProgress) -> None:
    """What the plan's first stage says of the prompt; late where its tokens come already."""
    if self.spec.progress and not self.begun and not self.trouble.done():
      self._heard_at = self._loop.time()
      self._events.append(progress)
      self._wake()

  def lose(self, error: ExoError) -> None:
    """The plan does not serve this request any more."""
    if self.computing and not self.trouble.done():
      if self._lost_at is None:
        self._lost_at = self._loop.time()
      self.trouble.set_result(error)

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
    """As `event`, for whoever wants tokens alone."""
    while isinstance(event := await self.event(), PromptProgress):
      pass
    return event

  async def event(self) -> TokenDelivery | PromptProgress:
    """Raises the error that ended the request; `DeadlineError` when nothing came for too long."""
    while self._wanted:
      if not self._events:
        self._reader = self._loop.create_future()
        await self._reader
        continue
      event = self._events.popleft()
      if isinstance(event, ExoError):
        raise event
      if isinstance(event, Resumption):
        self.resumptions.append(event)
        continue
      if isinstance(event, PromptProgress):
        return event
      if event.choice not in self._wanted:
        continue
      if event.finish_reason:
        self._wanted.discard(event.choice)
      return event
    raise StopAsyncIteration
