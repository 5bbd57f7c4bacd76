"""How fast the hub may be read, over all connections together."""

from __future__ import annotations

import asyncio
import time


class RateLimit:
  """`bytes_per_s` None: as fast as it comes. Whoever has received bytes waits until they are due."""
  def __init__(self, bytes_per_s: float | None) -> None:
    self._bytes_per_s = bytes_per_s
    self._due_at = 0.0

  async def take(self, count: int) -> None:
    if self._bytes_per_s is None:
      return
    now = time.monotonic()
    self._due_at = max(self._due_at, now) + count / self._bytes_per_s
    if self._due_at > now:
      await asyncio.sleep(self._due_at - now)
