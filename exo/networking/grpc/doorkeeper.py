"""How many may come in, and who may not for a while. All counts are bounded, whatever comes from however many addresses."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from exo.errors import ProtocolError
from exo.networking.place import Place
from exo.oldest import forget_oldest

MAX_LINKS, MAX_LINKS_OF_HOST, MAX_LINKS_OF_NODE = 256, 64, 4
_MAX_GREETINGS, _MAX_GREETINGS_OF_HOST = 256, 32  # streams under way whose other side has not said who it is
_MAX_BANNED = 1024
FLOOD_BAN_S, FAULT_BAN_S = 60.0, 5.0


class Doorkeeper:
  def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
    self._clock = clock
    self._greeting: Counter[str] = Counter()
    self._served: Counter[Place] = Counter()
    self._banned: dict[str, tuple[float, str]] = {}

  @property
  def served(self) -> frozenset[Place]:
    """Connections that carry a stream."""
    return frozenset(self._served)

  @contextmanager
  def serving(self, place: Place) -> Iterator[None]:
    """A stream of this connection is there."""
    self._served[place] += 1
    try:
      yield
    finally:
      self._served[place] -= 1
      if not self._served[place]:
        del self._served[place]

  @contextmanager
  def greeting(self, host: str) -> Iterator[None]:
    """While a stranger says who it is. Raises `ProtocolError` where too many are about to."""
    if self._greeting[host] >= _MAX_GREETINGS_OF_HOST or self._greeting.total() >= _MAX_GREETINGS:
      raise ProtocolError(f"too many streams of {host} are being opened")
    self._greeting[host] += 1
    try:
      yield
    finally:
      self._greeting[host] -= 1
      if not self._greeting[host]:
        del self._greeting[host]

  def admit(self, node_id: str, of_node: int, of_host: int, of_all: int) -> None:
    """Whether one more link may be opened beside so many. Raises `ProtocolError`."""
    until_s, why = self._banned.get(node_id, (0.0, ""))
    if self._clock() < until_s:
      raise ProtocolError(f"{node_id} may not link for {until_s - self._clock():.0f} s: {why}")
    if of_node >= MAX_LINKS_OF_NODE:
      raise ProtocolError(f"{node_id} has {of_node} links already")
    if of_host >= MAX_LINKS_OF_HOST or of_all >= MAX_LINKS:
      raise ProtocolError(f"this node has {of_all} links, {of_host} of them to that address: there is no room for more")

  def ban(self, node_id: str, seconds: float, why: str) -> None:
    self._banned.pop(node_id, None)
    self._banned[node_id] = (self._clock() + seconds, why)
    forget_oldest(self._banned, _MAX_BANNED)
