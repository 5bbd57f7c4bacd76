"""How fast addresses are dialed that nobody vouches for: whoever announces nodes makes this one connect to them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from exo.networking.mesh import PeerCandidate
from exo.networking.token_bucket import Buckets, TokenBucket

_RATE, _BURST = 16.0, 128.0
_HOST_RATE, _HOST_BURST = 4.0, 64.0
_MAX_HOSTS = 1024
_AT_ONCE = 32


class DialRate:
  """Addresses that a person named are dialed whenever somebody wants it."""
  def __init__(self) -> None:
    self._all = TokenBucket(_RATE, _BURST, time.monotonic())
    self._hosts = Buckets(_HOST_RATE, _HOST_BURST, _MAX_HOSTS)
    self._places = asyncio.Semaphore(_AT_ONCE)

  def take(self, candidate: PeerCandidate) -> bool:
    """False where it has to wait."""
    now_s = time.monotonic()
    return candidate.configured or (self._hosts.take(candidate.host, now_s) and self._all.take(now_s))

  @contextlib.asynccontextmanager
  async def dialing(self, candidate: PeerCandidate) -> AsyncIterator[None]:
    """While it is dialed; waits for a place."""
    async with contextlib.nullcontext() if candidate.configured else self._places:
      yield
