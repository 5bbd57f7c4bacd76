"""What a plan's first stage computes next: the policy of continuous batching, without any waiting or sending.

Decodes of all running sequences join into one step; what is left of the step's token budget goes to prompts, in the order
in which they came, cut into chunks. A sequence that waits for its next token is in no step.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np

from exo.errors import InvalidRequestError, QueueFullError
from exo.inference.engine import BatchEntry, LogitsOf, TokenIds
from exo.networking.messages import EMPTY_TOKEN_IDS, Request, SequenceOpen, SequenceToken


@dataclass(frozen=True, slots=True)
class Limits:
  """The least of what the plan's stages can do, and the bounds of one step. Counts of tokens unless said."""
  max_sequences: int
  max_kv_tokens: int
  max_context: int
  stages: int = 1
  step_tokens: int = 256
  max_waiting: int = 256  # requests


@dataclass(frozen=True, slots=True)
class Step:
  """One frame's worth of work; `run` is how many tokens of each sequence the only stage may compute in one go."""
  number: int
  entries: tuple[BatchEntry, ...]
  token_ids: TokenIds
  opens: tuple[SequenceOpen, ...]
  drops: tuple[int, ...]
  run: int = 1


@dataclass(slots=True)
class _Sequence:
  """A running sequence. `computed` tokens are in the caches or on their way there."""
  number: int
  request: Request
  reserved: int
  tokens: list[int]
  computed: int = 0
  generated: int = 0

  @property
  def prompt_left(self) -> int:
    return max(0, len(self.request.prompt_ids) - self.computed)

  @property
  def ready_to_decode(self) -> bool:
    return self.prompt_left == 0 and self.computed < len(self.tokens)


@dataclass(frozen=True, slots=True)
class Counts:
  """For metrics and admission."""
  running: int
  waiting: int
  steps_in_flight: int
  reserved_kv_tokens: int


@dataclass
class Scheduler:
  """Not thread-safe; every method returns at once."""
  limits: Limits
  _waiting: deque[Request] = field(default_factory=deque)
  _running: dict[int, _Sequence] = field(default_factory=dict)
  _drops: list[int] = field(default_factory=list)
  _in_flight: dict[int, tuple[int, ...]] = field(default_factory=dict)
  _next_sequence: int = 1
  _next_step: int = 1
  _reserved: int = 0

  @property
  def counts(self) -> Counts:
    return Counts(len(self._running), len(self._waiting), len(self._in_flight), self._reserved)

  def needed(self, request: Request) -> int:
    """KV tokens that the request may come to need."""
    return min(len(request.prompt_ids) + request.max_tokens, self.limits.max_context)

  def add(self, request: Request) -> None:
    """Queue a request. Raises `QueueFullError`, or `InvalidRequestError` for one that can never run here."""
    prompt = len(request.prompt_ids)
    if prompt == 0:
      raise InvalidRequestError("the prompt is empty", "prompt")
    if prompt > self.limits.max_context:
      raise InvalidRequestError(
          f"the prompt has {prompt} tokens, the context has room for {self.limits.max_context}", "messages",
          "context_length_exceeded"
      )
    if prompt + min(1, request.max_tokens) > self.limits.max_kv_tokens:
      raise InvalidRequestError(
          f"the prompt has {prompt} tokens, the memory for this model's KV cache holds {self.limits.max_kv_tokens}",
          "messages", "context_length_exceeded"
      )
    if len(self._waiting) >= self.limits.max_waiting:
      raise QueueFullError(f"{len(self._waiting)} requests are waiting already", retry_after_s=5)
    self._waiting.append(request)

  def cancel(self, request_id: str) -> bool:
    """Forget all choices of a request, waiting or running; False when there were none."""
    before = len(self._waiting)
    self._waiting = deque(r for r in self._waiting if r.request_id != request_id)
    numbers = [s.number for s in self._running.values() if s.request.request_id == request_id]
    for number in numbers:
      self._finish(number)
    return bool(numbers) or len(self._waiting) != before

  def requests(self) -> list[Request]:
    """Everything that is waiting or running."""
    return [*(s.request for s in self._running.values()), *self._waiting]

  def requests_in(self, step: int) -> list[Request]:
    """The requests that a step in flight computes for."""
    return [self._running[n].request for n in self._in_flight.get(step, ()) if n in self._running]

  def next_step(self, run: int = 1) -> Step | None:
    """The next step, or None when nothing can be done until a result comes. Freed sequences alone make a step too.

    A step of decodes alone may be a `run`, on a plan of one stage.
    """
    if len(self._in_flight) >= self.limits.stages:
      return None
    entries, tokens, opens = self._decodes()
    budget = self.limits.step_tokens - len(tokens)
    for sequence in [s for s in self._running.values() if s.prompt_left]:
      budget -= self._chunk(sequence, budget, entries, tokens)
    while budget >= 2 and (admitted := self._admit()) is not None:
      opens.append(self._open(admitted))
      budget -= self._chunk(admitted, budget, entries, tokens)
    if not entries and not self._drops:
      return None
    step, self._next_step = self._next_step, self._next_step + 1
    drops, self._drops = tuple(self._drops), []
    if entries:
      self._in_flight[step] = tuple(entry.sequence for entry in entries)
    ids = np.asarray(tokens, np.int32) if tokens else EMPTY_TOKEN_IDS
    room = all(s.computed + run <= self.limits.max_context for s in self._running.values())
    alone = self.limits.stages == 1 and bool(entries) and all(e.n_tokens == 1 and e.logits for e in entries)
    return Step(step, tuple(entries), ids, tuple(opens), drops, run if alone and room else 1)

  def _decodes(self) -> tuple[list[BatchEntry], list[int], list[SequenceOpen]]:
    ready = [s for s in self._running.values() if s.ready_to_decode]
    if self.limits.stages > 1:
      # leave some for the other frames, so that every stage has work at once
      decoding = sum(1 for s in self._running.values() if not s.prompt_left)
      ready = ready[:-(-decoding // self.limits.stages)]
    entries, tokens = [], []
    for sequence in ready[:self.limits.step_tokens]:
      entries.append(BatchEntry(sequence.number, sequence.computed, 1, LogitsOf.LAST))
      tokens.append(sequence.tokens[sequence.computed])
      sequence.computed += 1
    return entries, tokens, []

  def _chunk(self, sequence: _Sequence, budget: int, entries: list[BatchEntry], tokens: list[int]) -> int:
    """Put the next part of a prompt into the step; returns the tokens that it took.

    No part is of one token (unless the whole prompt is): one token alone takes other kernels, whose results differ in
    the last bits, and a prompt must not depend on what ran beside it.
    """
    left = sequence.prompt_left
    count = min(left, budget)
    if left - count == 1:
      count = count - 1 if count > 2 else 0
    if count < min(2, left):
      return 0
    last = count == left
    wanted = LogitsOf.ALL if sequence.request.prompt_logprobs is not None else LogitsOf.LAST if last else LogitsOf.NONE
    entries.append(BatchEntry(sequence.number, sequence.computed, count, wanted))
    tokens.extend(sequence.tokens[sequence.computed:sequence.computed + count])
    sequence.computed += count
    return count

  def _admit(self) -> _Sequence | None:
    """The next waiting request as a sequence, if there is a row and memory for it."""
    if not self._waiting or len(self._running) >= self.limits.max_sequences:
      return None
    needed = min(self.needed(self._waiting[0]), self.limits.max_kv_tokens)
    if self._reserved + needed > self.limits.max_kv_tokens:
      return None
    request = self._waiting.popleft()
    number, self._next_sequence = self._next_sequence, self._next_sequence + 1
    sequence = self._running[number] = _Sequence(number, request, needed, list(request.prompt_ids))
    self._reserved += needed
    return sequence

  @staticmethod
  def _open(sequence: _Sequence) -> SequenceOpen:
    request = sequence.request
    prompt = len(request.prompt_ids)
    if not request.sampling.needs_prompt:
      request = replace(request, prompt_ids=())
    return SequenceOpen(sequence.number, request, prompt)

  def on_result(self, step: int, tokens: tuple[SequenceToken, ...]) -> None:
    """A step came back, of a run with several tokens a sequence. Those of sequences cancelled meanwhile are ignored."""
    self._in_flight.pop(step, None)
    seen: set[int] = set()
    for token in tokens:
      sequence = self._running.get(token.sequence)
      if sequence is None:
        continue
      if token.sequence in seen:  # the stage went on by itself and holds the token before this one too
        sequence.computed += 1
      seen.add(token.sequence)
      if token.finish_reason:
        self._finish(token.sequence)
        continue
      sequence.tokens.append(token.token_id)
      sequence.generated += 1
      if len(sequence.tokens) > self.limits.max_context:
        self._finish(token.sequence)

  def on_failure(self, step: int) -> list[Request]:
    """A step was lost; its requests are forgotten and returned."""
    failed = self.requests_in(step)
    for number in self._in_flight.pop(step, ()):
      self._finish(number)
    return failed

  def _finish(self, number: int) -> None:
    sequence = self._running.pop(number, None)
    if sequence is not None:
      self._reserved -= sequence.reserved
      if sequence.computed:
        self._drops.append(number)
