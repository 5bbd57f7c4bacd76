"""The connections that others have open to this node's gRPC port, which gRPC itself neither tells nor shuts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from exo.networking.grpc.doorkeeper import Doorkeeper
from exo.networking.place import Place, place_of
from exo.networking.refusals import Refusals

_FOLDER = Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd")
_LOOK_S = 0.5
_MANY = 16  # descriptors more than there were when nobody held a connection for nothing
SILENT_S = 10.0  # a connection that carries no stream by then is ended
MOST_OF_HOST = 32  # that carry no stream; the oldest give way


def open_descriptors() -> int:
  """How many this process has; 0 where the system does not tell."""
  try:
    return sum(1 for _ in _FOLDER.iterdir())
  except OSError:
    return 0


@dataclass(frozen=True, slots=True)
class Silent:
  """A connection without a stream, and since when it has been seen."""
  place: Place
  since_s: float


def to_end(silent: list[Silent], limit: int, now_s: float) -> set[Place]:
  """Which of them must go: the old ones, and the oldest of a host, or of all, where they leave no room to others."""
  oldest = sorted(silent, key=lambda connection: connection.since_s)
  gone = {connection.place for connection in oldest if now_s - connection.since_s > SILENT_S}
  by_host: dict[str, list[Place]] = defaultdict(list)
  for connection in oldest:
    by_host[connection.place[0]].append(connection.place)
  for places in by_host.values():
    if len(places) > MOST_OF_HOST:
      gone.update(places[:-MOST_OF_HOST // 2])
  left = [connection.place for connection in oldest if connection.place not in gone]
  if len(left) > limit // 2:
    gone.update(left[:len(left) - limit // 4])
  return gone


class OpenConnections:
  """Looks at them now and then. `sweep` blocks for milliseconds; call it in one thread at a time."""
  def __init__(self, port: int, limit: int) -> None:
    self._port, self._limit = port, limit
    self._since: dict[Place, float] = {}

  async def watch(self, doorkeeper: Doorkeeper, refusals: Refusals) -> None:
    """Sweep for ever; looks closely only where there are many descriptors."""
    many = 0
    while True:
      await asyncio.sleep(_LOOK_S)
      if open_descriptors() < many:
        continue
      silent, ended = await asyncio.to_thread(self.sweep, doorkeeper.served, time.monotonic())
      many = 0 if silent else open_descriptors() + _MANY
      if ended:
        refusals.note("ended connections to the ring's port that said nothing: is something scanning this machine?")

  def sweep(self, served: Container[Place], now_s: float) -> tuple[int, int]:
    """End what must go. `served` carry streams. Returns (connections that carry none, how many of them were ended)."""
    found: dict[Place, socket.socket] = {}
    try:
      for entry in list(_FOLDER.iterdir()):
        if (taken := self._connection(int(entry.name))) is None:
          continue
        place, connection = taken
        if place in served or place in found:
          connection.close()
        else:
          found[place] = connection
      self._since = {place: self._since.get(place, now_s) for place in found}
      gone = to_end([Silent(place, since_s) for place, since_s in self._since.items()], self._limit, now_s)
      for place in gone:
        with contextlib.suppress(OSError):  # one that its other side has closed meanwhile
          found[place].shutdown(socket.SHUT_RDWR)
    except OSError:  # a system that does not tell
      gone = set()
    finally:
      for connection in found.values():
        connection.close()
    return len(found), len(gone)

  def _connection(self, descriptor: int) -> tuple[Place, socket.socket] | None:
    """(who is there, a second handle) of a connection to the port.

    The handle stays this very connection, whatever gRPC closes meanwhile.
    """
    try:
      copy = os.dup(descriptor)
    except OSError:
      return None
    try:
      found = socket.socket(fileno=copy)
    except OSError:
      os.close(copy)
      return None
    try:
      if found.family in (socket.AF_INET, socket.AF_INET6) and found.getsockname()[1] == self._port:
        host, port = found.getpeername()[:2]
        return place_of(host, port), found
    except OSError:
      pass
    found.close()
    return None
