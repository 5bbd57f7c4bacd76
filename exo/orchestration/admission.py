"""Who gets a place among the running sequences of a plan, and how long it takes.

Places go to clients' shares in turn (`waiting_line.py`). A share that has none does not wait for one that has several to
end an answer: some of those give up their places, and are computed again later.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from exo.errors import InvalidRequestError, QueueFullError
from exo.inference.engine import BatchEntry
from exo.networking.messages import Request
from exo.orchestration.fair_clock import share_of
from exo.orchestration.kv_room import KvRoom
from exo.orchestration.sequence import RunningSequence
from exo.orchestration.wait_estimate import WaitEstimate
from exo.orchestration.waiting_line import WaitingLine


class Admission:
  """Not thread-safe. `running` are the sequences by number, `room` their KV memory; times in seconds."""
  def __init__(
      self, room: KvRoom, running: Mapping[int, RunningSequence], clock: Callable[[], float] = time.monotonic
  ) -> None:
    self._limits, self._room, self._running, self._clock = room.limits, room, running, clock
    self.line = WaitingLine(room.limits.max_waiting)
    self.estimate = WaitEstimate(room.limits.stages)

  def needed(self, request: Request) -> int:
    """KV tokens that the request may come to need."""
    return min(len(request.prompt_ids) + request.max_tokens, self._limits.max_context)

  def is_far(self, request: Request) -> bool:
    """Whether its sequence may become longer than the model's near context; the last token of an answer is not computed."""
    near = self._limits.near_context
    return 0 < near < min(len(request.prompt_ids) + max(0, request.max_tokens - 1), self._limits.max_context)

  def add(self, request: Request, most_wait_s: float = math.inf) -> list[Request]:
    """Queue a request. Returns those that must make way for it in the line, and are forgotten.

    Raises `QueueFullError` where there is no place for it or it would wait for longer than `most_wait_s`, and
    `InvalidRequestError` for one that can never run here.
    """
    self._check(request)
    wait_s = 0.0 if request.replay_ids else self.wait_s(request)
    if wait_s > most_wait_s:
      raise QueueFullError(
          f"{len(self.line)} requests are waiting: this one would wait for about {wait_s:.0f} s, "
          f"{most_wait_s:g} s are allowed (--queue-timeout)",
          retry_after_s=math.ceil(wait_s)
      )
    gone = self.line.add(request, self._clock())
    if gone is request:
      raise self.queue_full(request)
    return [] if gone is None else [gone]

  def _check(self, request: Request) -> None:
    prompt = len(request.prompt_ids)
    if prompt == 0:
      raise InvalidRequestError("the prompt is empty", "prompt")
    if prompt > self._limits.max_context:
      raise InvalidRequestError(
          f"the prompt has {prompt} tokens, the context has room for {self._limits.max_context}", "messages",
          "context_length_exceeded"
      )
    if prompt + min(1, request.max_tokens) > self._limits.max_kv_tokens:
      raise InvalidRequestError(
          f"the prompt has {prompt} tokens, the memory for this model's KV cache holds {self._limits.max_kv_tokens}",
          "messages", "context_length_exceeded"
      )

  def wait_s(self, request: Request) -> float:
    """An estimate of how long it would wait for its turn if it came now."""
    if not self.line and self.has_room(request):
      return 0.0
    ahead = self.line.ahead_of(request)
    free = self._free_places([*ahead, request])
    if not ahead and not self.line.running(request) and self.line.some_have_several:
      return 0.0  # they give up a place
    return self.estimate.wait_s(list(self._running.values()), ahead, free)

  def _free_places(self, requests: list[Request]) -> int:
    """How many of these, in their order, could begin now."""
    rows, reserved = self._limits.max_sequences - len(self._running), self._room.reserved
    for count, request in enumerate(requests[:rows]):
      reserved += self.claim(request)
      if reserved > self._limits.max_kv_tokens:
        return count
    return min(rows, len(requests))

  def queue_full(self, request: Request) -> QueueFullError:
    """What a request is told that has no place in the line, or not any more."""
    retry_s = max(1, math.ceil(self.wait_s(request)))
    return QueueFullError(f"{len(self.line)} requests are waiting already", retry_after_s=retry_s)

  def overdue_error(self, request: Request, waited_s: float) -> QueueFullError:
    """What a request is told that has waited for too long."""
    retry_s = max(1, math.ceil(self.wait_s(request)))
    return QueueFullError(f"its turn did not come within {waited_s:g} s (--queue-timeout)", retry_after_s=retry_s)

  def overdue(self, most_wait_s: float) -> list[Request]:
    """Forget, and return, the requests that have waited so long and have not begun."""
    late = self.line.overdue(self._clock() - most_wait_s)
    gone = {request.request_id for request in late}
    self.line.forget(lambda request: request.request_id in gone)
    return late

  def fits(self) -> bool:
    """Whether the next waiting request can begin."""
    request = self.line.next()
    return request is not None and self.has_room(request)

  def has_room(self, request: Request) -> bool:
    return len(self._running) < self._limits.max_sequences and self._lacking(request) <= 0

  def claim(self, request: Request) -> int:
    """KV tokens that are reserved for a request when it begins: no more than there could be, if its prompt has room in that."""
    most = self._limits.max_kv_tokens
    if len(request.prompt_ids) + len(request.replay_ids) < self._room.most_tokens:
      most = min(most, self._room.most_tokens)
    return min(self.needed(request), most)

  def _lacking(self, request: Request) -> int:
    return self._room.reserved + self.claim(request) - self._room.lease

  def hopeless(self) -> list[Request]:
    """Forget, and return, the requests whose prompts alone have no room, whatever other models give up; those that have begun may
    still get it."""
    most = self._room.most_tokens
    gone = [r for r in self.line if not r.replay_ids and len(r.prompt_ids) + min(1, r.max_tokens) > most]
    ids = {request.request_id for request in gone}
    self.line.forget(lambda request: request.request_id in ids)
    return gone

  @property
  def wanted_lease(self) -> int:
    """How many tokens caches would have to hold for the next waiting request to begin beside those that run; 0 where the lease is not
    what it waits for.
    """
    request = self.line.next()
    if request is None or len(self._running) >= self._limits.max_sequences or self._lacking(request) <= 0:
      return 0
    wanted = self._room.reserved + self.claim(request)
    return wanted if wanted <= self._limits.max_kv_tokens else 0

  def giving_up(self, in_flight: Iterable[tuple[BatchEntry, ...]]) -> list[RunningSequence]:
    """Sequences that give up their places for the next request: none unless its share has nothing running, and enough.

    Those of the share that has the most running go first, the ones with the least to compute again; each share keeps
    one. None is of a step `in_flight`: what comes of it would be lost.
    """
    request = self.line.next()
    if request is None or self.line.running(request) or not self.line.some_have_several or self.has_room(request):
      return []
    if self.wanted_lease and not self._room.is_denied:  # memory may be had without anybody's giving up anything
      return []
    rows, tokens = 1 + len(self._running) - self._limits.max_sequences, self._lacking(request)
    running = Counter(share_of(s.request) for s in self._running.values())
    busy = {entry.sequence for entries in in_flight for entry in entries}
    free = [s for s in self._running.values() if s.number not in busy]
    going: list[RunningSequence] = []
    while rows > 0 or tokens > 0:
      several = [s for s in free if running[share_of(s.request)] > 1]
      if not several:
        return []
      one = max(several, key=lambda s: (running[share_of(s.request)], -len(s.tokens)))
      free.remove(one)
      running[share_of(one.request)] -= 1
      going.append(one)
      rows, tokens = rows - 1, tokens - one.reserved
    return going
