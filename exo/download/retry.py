"""What is tried again and when: failures that pass, with growing pauses; those that do not, never."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from exo.log import log

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
  """`attempts` in a row that bring nothing end it; with no connection at all, `connect_attempts` do. Times in seconds."""
  attempts: int = 6
  connect_attempts: int = 3
  pause_s: float = 0.5
  max_pause_s: float = 30.0
  connect_s: float = 10.0
  stall_s: float = 30.0

  def pause(self, failed: int, asked_s: float | None) -> float:
    """Before the next attempt, after `failed` of them; what the server asks for counts, within reason."""
    grown = min(self.pause_s * float(1 << min(failed - 1, 30)), self.max_pause_s)
    return min(max(grown * random.uniform(0.75, 1.25), asked_s or 0.0), 10 * self.max_pause_s)


class Transient(Exception):
  """An attempt failed in a way that may pass. `connection`: nothing answered at all."""
  def __init__(self, reason: str, after_s: float | None = None, *, connection: bool = False) -> None:
    super().__init__(reason)
    self.after_s, self.connection = after_s, connection


def retry_after_s(header: str | None) -> float | None:
  """A `Retry-After` in seconds; dates are left to our own pauses."""
  return float(header) if header and header.isdigit() else None


class Attempts:
  """Counts the failures of one piece of work; progress in between starts the count anew."""
  def __init__(self, policy: RetryPolicy) -> None:
    self._policy = policy
    self._failed = 0

  def progress(self) -> None:
    self._failed = 0

  async def failed(self, error: Transient) -> bool:
    """Pause before the next attempt; False when there should be none."""
    self._failed += 1
    if self._failed >= (self._policy.connect_attempts if error.connection else self._policy.attempts):
      return False
    pause_s = self._policy.pause(self._failed, error.after_s)
    log(2, "%s: next attempt in %.1f s", error, pause_s)
    await asyncio.sleep(pause_s)
    return True


async def retried(policy: RetryPolicy, work: Callable[[], Awaitable[T]]) -> T:
  """`work()`, again while it raises `Transient` and the policy allows. Raises the last `Transient`."""
  attempts = Attempts(policy)
  while True:
    try:
      return await work()
    except Transient as error:
      if not await attempts.failed(error):
        raise
