"""The requests that this node's clients have under way or had last: how the screens and `/metrics` see them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from exo.errors import CancelledRequestError, ExoError, PeerLostError, PeerUnreachableError, PlanClosedError
from exo.orchestration.meter import Meter

_KEPT = 8
_TITLE_CHARS = 300
_TAIL_CHARS = 600
_REJECTIONS = {"queue_full", "invalid_request", "draining"}


@dataclass
class WatchedRequest:
  """One request. `title` (its question) and `tail` (what was said last) are for this machine's terminal alone."""
  id: str
  model: str
  title: str
  prompt_tokens: int
  meter: Meter
  started: float
  open_choices: int
  failed: bool = False
  outcome: str = "running"
  tokens: int = 0
  tail: str = ""
  first_at: float = 0.0
  last_at: float = 0.0
  _said_at: dict[int, float] = field(default_factory=dict)

  def said(self, choice: int, text: str, tokens: int, finished: bool) -> None:
    """So many more tokens of a choice came, and this text with them."""
    self.open_choices -= finished
    if text:
      self.tail = (self.tail + text)[-_TAIL_CHARS:]
    if not tokens:
      return
    now = time.monotonic()
    if not self.tokens:
      self.first_at = now
      self.meter.first_token_s[self.model].observe(now - self.started)
    if (before := self._said_at.get(choice)) is not None:  # tokens that came together share the time since those before
      self.meter.between_tokens_s[self.model].observe((now - before) / tokens, tokens)
    self._said_at[choice] = self.last_at = now
    self.tokens += tokens
    self.meter.generated_tokens[self.model] += tokens

  def resumed(self, times: int) -> None:
    """It went on elsewhere after a node was lost."""
    if times:
      self.meter.failovers["resumed"] += times

  def fails(self, error: ExoError) -> None:
    self.failed = not isinstance(error, CancelledRequestError)
    if isinstance(error, PeerLostError | PeerUnreachableError | PlanClosedError):
      self.meter.failovers["failed"] += 1

  @property
  def tokens_per_s(self) -> float:
    """Since the first token; 0 before there are two."""
    elapsed_s = self.last_at - self.first_at
    return (self.tokens - 1) / elapsed_s if self.tokens > 1 and elapsed_s > 0 else 0.0


class Activity:
  """Newest last."""
  def __init__(self, meter: Meter) -> None:
    self._meter = meter
    self._requests: deque[WatchedRequest] = deque()

  @contextmanager
  def request(self, request_id: str, model: str, title: str, prompt_tokens: int, n: int) -> Iterator[WatchedRequest]:
    """Watch a request from submission to its end; how the block is left is its outcome."""
    watched = WatchedRequest(request_id, model, title[-_TITLE_CHARS:], prompt_tokens, self._meter, time.monotonic(), n)
    self._meter.prompt_tokens[model] += prompt_tokens
    self._forget()
    self._requests.append(watched)
    outcome = "cancelled"  # whoever streams may swallow the client's going, and the ring's failure after telling it
    try:
      yield watched
      outcome = "failed" if watched.failed else "cancelled" if watched.open_choices else "completed"
    except ExoError as error:
      if not isinstance(error, CancelledRequestError):
        outcome = "rejected" if error.kind in _REJECTIONS else "failed"
      raise
    except ConnectionError:
      raise
    except Exception:
      outcome = "failed"
      raise
    finally:
      watched.outcome = outcome
      self._meter.requests[model, outcome] += 1

  def _forget(self) -> None:
    """Keep all that run and the last few that ended."""
    ended = [r for r in self._requests if r.outcome != "running"]
    for old in ended[:-_KEPT]:
      self._requests.remove(old)

  @property
  def running(self) -> list[WatchedRequest]:
    return [r for r in self._requests if r.outcome == "running"]

  @property
  def recent(self) -> list[WatchedRequest]:
    """All that run and the last few that ended, oldest first."""
    return list(self._requests)
