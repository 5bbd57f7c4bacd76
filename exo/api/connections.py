"""Bounds on connections, below HTTP: how many there are, and how long one may leave what it asked for unread."""

from __future__ import annotations

import asyncio
import resource
from collections import Counter
from collections.abc import Callable
from typing import cast

from exo.log import log

MAX_CONNECTIONS = 1024
WRITE_TIMEOUT_S = 30.0
_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\nRetry-After: 5\r\n\r\n"
    b'{"error":{"message":"too many connections to this node","type":"server_error","param":null,"code":"connections"}}'
)


def connection_limit() -> int:
  """At most half of the descriptors that the system grants: models, links and files need some too."""
  soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
  return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else max(16, min(MAX_CONNECTIONS, soft // 2))


class ConnectionTable:
  """Counts connections; no address gets more than three quarters of them."""
  def __init__(self, limit: int | None = None, write_timeout_s: float = WRITE_TIMEOUT_S) -> None:
    self.limit = connection_limit() if limit is None else limit
    self.write_timeout_s = write_timeout_s
    self._by_host: Counter[str] = Counter()

  def __len__(self) -> int:
    return self._by_host.total()

  def factory(self, make: Callable[[], asyncio.BaseProtocol]) -> Callable[[], asyncio.BaseProtocol]:
    """A protocol factory for `loop.create_server` that serves `make`'s protocols within the bounds."""
    return lambda: _BoundedProtocol(self, make)

  def enter(self, host: str) -> bool:
    if len(self) >= self.limit or self._by_host[host] >= -(-self.limit * 3 // 4):
      log(1, "refused a connection of %s: there are %d", host, len(self))
      return False
    self._by_host[host] += 1
    return True

  def leave(self, host: str) -> None:
    self._by_host[host] -= 1
    if not self._by_host[host]:
      del self._by_host[host]


class _BoundedProtocol(asyncio.Protocol):
  """Hands everything to the protocol that serves, and ends connections whose other side does not read."""
  def __init__(self, table: ConnectionTable, make: Callable[[], asyncio.BaseProtocol]) -> None:
    self._table, self._make = table, make
    self._inner: asyncio.Protocol | None = None
    self._host = ""
    self._unread: asyncio.TimerHandle | None = None

  def connection_made(self, transport: asyncio.BaseTransport) -> None:
    self._transport = cast(asyncio.Transport, transport)
    peer = transport.get_extra_info("peername")
    host = str(peer[0]) if peer else ""
    if not self._table.enter(host):
      self._transport.write(_REFUSAL)
      self._transport.close()
      return
    self._host = host
    self._transport.set_write_buffer_limits(high=0)  # so that anything unread starts the clock
    self._inner = cast(asyncio.Protocol, self._make())
    self._inner.connection_made(transport)

  def data_received(self, data: bytes) -> None:
    if self._inner is not None:
      self._inner.data_received(data)

  def eof_received(self) -> bool | None:
    return None if self._inner is None else self._inner.eof_received()

  def pause_writing(self) -> None:
    if self._inner is not None:
      loop = asyncio.get_running_loop()
      self._unread = loop.call_later(self._table.write_timeout_s, self._give_up)
      self._inner.pause_writing()

  def resume_writing(self) -> None:
    self._stop_clock()
    if self._inner is not None:
      self._inner.resume_writing()

  def connection_lost(self, exc: Exception | None) -> None:
    self._stop_clock()
    if self._inner is not None:
      self._table.leave(self._host)
      self._inner.connection_lost(exc)
      self._inner = None

  def _stop_clock(self) -> None:
    if self._unread is not None:
      self._unread.cancel()
      self._unread = None

  def _give_up(self) -> None:
    log(1, "a client at %s has not read for %g s: its connection is ended", self._host, self._table.write_timeout_s)
    self._transport.abort()
