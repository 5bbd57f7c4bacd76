"""Slows down who tries keys: wrong ones are answered later and later, and few at a time are tried at all.

Each address has a few places for wrong keys. One is taken from a wrong key until some time after it, also when its client
does not wait for the answer, and while none is free a few more wait for one and the rest are refused unlooked at. So no
more keys are tried than there are places in that time, however many connections ask, and few connections are held. Who has
a right key at the same address does not suffer for it, if it was right there before or is one that nobody can guess.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from exo.networking.address_rule import IPAddress
from exo.oldest import forget_oldest

FREE_FAILURES = 5  # that are answered at once: people mistype
FORGIVEN_S = 10.0  # after which one failure counts no more
DELAY_S, MAX_DELAY_S = 0.1, 1.0
PLACES = 4
MAX_WAITING, MAX_WAIT_S = 8, 5.0  # of one address, for a place
MAX_ADDRESSES = 2048
_MAX_PROVEN = 16  # keys of one address


@dataclass(slots=True)
class _Source:
  failures: float = 0.0
  at: float = 0.0
  busy_until: list[float] = field(default_factory=list)
  waiting: int = 0
  proven: OrderedDict[str, None] = field(default_factory=OrderedDict)

  def busy_s(self, now: float) -> float:
    """Until there is a free place; 0 where there is one."""
    self.busy_until = [until for until in self.busy_until if until > now]
    return min(self.busy_until) - now if len(self.busy_until) >= PLACES else 0.0


class FailureBrake:
  """In bounded memory: of too many addresses those are forgotten that were not heard of for longest. `clock` in seconds."""
  def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
    self._clock = clock
    self._sources: OrderedDict[str, _Source] = OrderedDict()

  def __len__(self) -> int:
    return len(self._sources)

  async def admit(self, address: IPAddress | None, digest: str) -> bool:
    """Waits for a place; False where too many wait already, or none came free in time. A key that was right at this
    address before needs none: `digest` is its, "" for a wrong one.
    """
    source = self._sources.get(_place(address))
    if source is None or (digest and digest in source.proven):
      return True
    deadline = self._clock() + MAX_WAIT_S
    while (busy_s := source.busy_s(self._clock())) > 0:
      if source.waiting >= MAX_WAITING or self._clock() + busy_s > deadline:
        return False
      source.waiting += 1
      try:
        await asyncio.sleep(busy_s)
      finally:
        source.waiting -= 1
    return True

  def succeeded(self, address: IPAddress | None, digest: str) -> None:
    """The key was right. Failures are not forgiven for it: they may be somebody else's."""
    source = self._source(address)
    source.proven[digest] = None
    source.proven.move_to_end(digest)
    forget_oldest(source.proven, _MAX_PROVEN)

  async def failed(self, address: IPAddress | None) -> None:
    """The key was wrong: returns when that may be said."""
    source, now = self._source(address), self._clock()
    source.failures = max(0.0, source.failures - (now - source.at) / FORGIVEN_S) + 1
    source.at = now
    beyond = source.failures - FREE_FAILURES
    if beyond > 0:
      delay_s = min(DELAY_S * 2**min(beyond, 10), MAX_DELAY_S)
      source.busy_until.append(now + delay_s)
      await asyncio.sleep(delay_s)

  def _source(self, address: IPAddress | None) -> _Source:
    place = _place(address)
    source = self._sources.get(place)
    if source is None:
      source = self._sources[place] = _Source(at=self._clock())
      forget_oldest(self._sources, MAX_ADDRESSES)
    self._sources.move_to_end(place)
    return source


def _place(address: IPAddress | None) -> str:
  """One client's: an IPv6 network of 64 bits, in which a single machine may take any address."""
  if address is None:
    return ""
  return str(address) if address.version == 4 else address.packed[:8].hex()
