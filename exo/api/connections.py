"""Bounds on connections, below HTTP: how many there are, who gives way to newcomers, and how long one may leave what it
asked for unread."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import cast

from aiohttp import web

from exo import descriptors
from exo.errors import in_words
from exo.log import log

MAX_CONNECTIONS = 1024
WRITE_TIMEOUT_S = 30.0
HALF_CLOSED_S = 1.0  # in which who sends no more may still get an answer
_AT_ONCE_S, _LOOK_S = 0.01, 0.1
_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\nRetry-After: 5\r\n\r\n"
    b'{"error":{"message":"too many connections to this node","type":"server_error","param":null,"code":"connections"}}'
)


class ConnectionTable:
  """Counts connections; no address gets more than three quarters of them, but for those of `many_clients`.

  Where there is no room for a newcomer, the connection that has asked for nothing for longest is ended: whoever holds
  connections open without a request keeps nobody out.
  """
  def __init__(
      self,
      limit: int | None = None,
      write_timeout_s: float = WRITE_TIMEOUT_S,
      *,
      many_clients: Callable[[str], bool] = lambda host: False
  ) -> None:
    self.limit = min(MAX_CONNECTIONS, descriptors.client_connections()) if limit is None else limit
    self.write_timeout_s, self._many_clients = write_timeout_s, many_clients
    self._by_host: Counter[str] = Counter()
    self._idle: dict[_BoundedProtocol, None] = {}  # without a request, the longest first

  def __len__(self) -> int:
    return self._by_host.total()

  def factory(self, make: Callable[[], asyncio.BaseProtocol]) -> Callable[[], asyncio.BaseProtocol]:
    """A protocol factory for `loop.create_server` that serves `make`'s protocols within the bounds."""
    return lambda: _BoundedProtocol(self, make)

  @web.middleware
  async def middleware(
      self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
  ) -> web.StreamResponse:
    """To stand before all others: a connection with a request under way gives way to nobody."""
    protocol = request.transport.get_protocol() if request.transport is not None else None
    if not isinstance(protocol, _BoundedProtocol):
      return await handler(request)
    self._idle.pop(protocol, None)
    try:
      return await handler(request)
    finally:
      if protocol.host:  # it is still there
        self._idle[protocol] = None

  def enter(self, protocol: _BoundedProtocol, host: str) -> bool:
    """False where there is no room and everybody is being served."""
    crowded = self._by_host[host] >= -(-self.limit * 3 // 4) and not self._many_clients(host)
    if crowded or len(self) >= self.limit:
      idle = next((p for p in self._idle if not crowded or p.host == host), None)
      if idle is None:
        log(1, "refused a connection of %s: there are %d", host, len(self))
        return False
      log(2, "ended a connection of %s that asks for nothing: there are %d", idle.host, len(self))
      idle.refuse()
    self._by_host[host] += 1
    self._idle[protocol] = None
    return True

  def asks_nothing(self, protocol: _BoundedProtocol) -> bool:
    """It has no request under way."""
    return protocol in self._idle

  def leave(self, protocol: _BoundedProtocol, host: str) -> None:
    self._idle.pop(protocol, None)
    self._by_host[host] -= 1
    if not self._by_host[host]:
      del self._by_host[host]


class _BoundedProtocol(asyncio.Protocol):
  """Hands everything to the protocol that serves, and ends connections whose other side does not read."""
  def __init__(self, table: ConnectionTable, make: Callable[[], asyncio.BaseProtocol]) -> None:
    self._table, self._make = table, make
    self._inner: asyncio.Protocol | None = None
    self.host = ""  # while it counts
    self._unread: asyncio.TimerHandle | None = None
    self._half_closed: asyncio.TimerHandle | None = None

  def connection_made(self, transport: asyncio.BaseTransport) -> None:
    try:
      self._transport = cast(asyncio.Transport, transport)
      peer = transport.get_extra_info("peername")
      host = str(peer[0]) if peer else "?"
      if not self._table.enter(self, host):
        self._transport.write(_REFUSAL)
        self._transport.close()
        return
      self.host = host
      self._transport.set_write_buffer_limits(high=0)  # so that anything unread starts the clock
      self._inner = cast(asyncio.Protocol, self._make())
      self._inner.connection_made(transport)
    except Exception as error:  # noqa: BLE001 - asyncio would leave the connection open, and its client waiting
      self._fail(transport, error)

  def refuse(self) -> None:
    """End a connection that has no request, and count it no more."""
    self._leave()
    self._transport.write(_REFUSAL)
    self._transport.close()

  def _leave(self) -> None:
    if self.host:
      self._table.leave(self, self.host)
      self.host = ""

  def data_received(self, data: bytes) -> None:
    try:
      if self._inner is not None:
        self._inner.data_received(data)
    except Exception as error:  # noqa: BLE001 - asyncio takes an OSError for the connection's own and tells nobody
      self._fail(self._transport, error)

  def eof_received(self) -> bool | None:
    """The other side sends no more: it may still wait for what it asked, or be gone altogether, which looks the same."""
    if self._inner is None:
      return None
    self._inner.eof_received()
    # what came with the end is a request a few turns of the loop later
    self._look_again(_AT_ONCE_S, asyncio.get_running_loop().time() + HALF_CLOSED_S)
    return True

  def _look_again(self, after_s: float, deadline: float) -> None:
    self._half_closed = asyncio.get_running_loop().call_later(after_s, self._end_when_answered, deadline)

  def _end_when_answered(self, deadline: float) -> None:
    if self._table.asks_nothing(self) or asyncio.get_running_loop().time() >= deadline:
      self._transport.close()
    else:
      self._look_again(_LOOK_S, deadline)

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
    if self._half_closed is not None:
      self._half_closed.cancel()
    self._leave()
    if self._inner is not None:
      self._inner.connection_lost(exc)
      self._inner = None

  def _stop_clock(self) -> None:
    if self._unread is not None:
      self._unread.cancel()
      self._unread = None

  def _fail(self, transport: asyncio.BaseTransport, error: Exception) -> None:
    log(0, "a connection of %s is ended, it failed here: %s", self.host or "a client", in_words(error))
    cast(asyncio.Transport, transport).abort()

  def _give_up(self) -> None:
    log(1, "a client at %s has not read for %g s: its connection is ended", self.host, self._table.write_timeout_s)
    self._transport.abort()
