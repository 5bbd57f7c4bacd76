"""One gRPC stream of envelopes, used in both directions."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable

import grpc

from exo.errors import ProtocolError, in_words
from exo.log import log
from exo.networking.grpc import node_service_pb2 as pb
from exo.networking.grpc.codec import decode
from exo.networking.grpc.unfinished import Unfinished
from exo.networking.grpc.wire import (
    MAX_BYTES,
    MAX_ITEMS,
    MAX_MESSAGE_BYTES,
    PIECE_BYTES,
    envelope_bytes,
    envelope_items,
    is_slow,
    piece_of,
    pieces,
)

METHOD = "/exo.NodeService/Connect"
_MAX_QUEUED = 4096
_MAX_QUEUED_BYTES = 4 * MAX_BYTES["data"]
_MOST_REHEARSED = 2**16  # bytes

CHANNEL_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    # activations do not compress, and what a stranger compressed could unpack to anything: identity alone
    ("grpc.default_compression_algorithm", 0),
    ("grpc.compression_enabled_algorithms_bitset", 1),
    ("grpc.max_metadata_size", 8 * 1024),
]
MAX_STREAMS = 1024  # of all connections together


def server_options(max_connections: int) -> list[tuple[str, int]]:
  """What beyond `max_connections` connects is shut at once; a connection that carries no stream is, after seconds."""
  return [
      *CHANNEL_OPTIONS,
      ("grpc.so_reuseport", 0),
      ("grpc.http2.min_recv_ping_interval_without_data_ms", 4_000),
      ("grpc.max_allowed_incoming_connections", max_connections),
      ("grpc.server_handshake_timeout_ms", 5_000),
      ("grpc.max_connection_idle_ms", 5_000),
      ("grpc.max_concurrent_streams", 16),  # a link has two on one connection, one on the other
  ]


Read = Callable[[], Awaitable[bytes | None]]
Write = Callable[[bytes], Awaitable[None]]


class EnvelopeStream:
  """Reads items and writes queued ones until the stream ends. `read` gives None at the end.

  `failure` is what ended it, where it was neither the other side nor gRPC.
  """
  def __init__(self, kind: str, read: Read, write: Write, unfinished: Unfinished | None = None) -> None:
    self.kind, self._unfinished = kind, unfinished or Unfinished()
    self._read, self._write = read, write
    self._outbox: deque[tuple[pb.Item, int]] = deque()
    self._queued_bytes = 0
    self.failure: BaseException | None = None
    self._ended: asyncio.Future[BaseException] | None = None  # while it runs; gets what broke a write
    self._writer: asyncio.Task[None] | None = None
    self.read_bytes = self.written_bytes = 0  # since it runs
    self._latest = b""  # small message that was read

  def post(self, item: pb.Item) -> None:
    """Queue an item, or write it at once where nothing is being written.

    Raises `ProtocolError` when the other side has stopped reading.
    """
    size = 0 if self._writer is None else item.ByteSize()  # it waits behind others
    if len(self._outbox) >= _MAX_QUEUED or self._queued_bytes + size > _MAX_QUEUED_BYTES:
      raise ProtocolError(f"{len(self._outbox)} messages wait on one {self.kind} stream: the other side does not read")
    self._outbox.append((item, size))
    self._queued_bytes += size
    if self._ended is not None and self._writer is None:
      self._begin_writing(self._ended)

  def _begin_writing(self, ended: asyncio.Future[BaseException]) -> None:
    # started in place: a turn of the event loop less for every hop; what is posted meanwhile is written together
    self._writer = asyncio.Task(self._send(ended), loop=ended.get_loop(), name=f"{self.kind} writer", eager_start=True)
    if self._writer.done():
      self._writer = None

  @property
  def idle(self) -> bool:
    """Nothing is queued or being written."""
    return not self._outbox and self._writer is None

  async def read_items(self) -> list[pb.Item] | None:
    """Those of the next envelope, in however many messages it comes. Raises `ProtocolError`."""
    most, size = MAX_BYTES[self.kind], 0
    parts: list[memoryview] = []
    while True:
      data = await self._read()
      if data is None:
        return None
      self.read_bytes += len(data)
      size += len(data)
      if size > most:
        raise ProtocolError(f"a message of more than {most} bytes came on a stream of kind {self.kind!r}")
      piece = piece_of(data)
      if piece is None and not parts:
        break
      if piece is None:
        raise ProtocolError("a message came in the middle of another")
      parts.append(piece[0])
      if piece[1]:
        data = b"".join(parts)
        self._unfinished.done(self._give_up)
        break
      self._unfinished.hold(self._give_up, len(data))
    if len(data) <= _MOST_REHEARSED:
      self._latest = data
    return await asyncio.to_thread(envelope_items, data) if is_slow(data) else envelope_items(data)

  def _give_up(self, error: ProtocolError) -> None:
    if self._ended is not None and not self._ended.done():
      self._ended.set_result(error)

  def rehearse(self) -> None:
    """Read the latest small message once more, to no other end than that the next one finds it all in the caches."""
    with contextlib.suppress(ProtocolError):  # whoever reads it first says so
      for item in envelope_items(self._latest):
        decode(item)

  async def write_items(self, items: list[pb.Item]) -> None:
    for data in pieces(envelope_bytes(items)):
      self.written_bytes += len(data)
      await self._write(data)

  async def run(self, receive: Callable[[EnvelopeStream, pb.Item], None]) -> str:
    """Serve both directions until one ends; returns why. What is queued together is written together."""
    self.read_bytes = self.written_bytes = 0
    self._latest = b""  # not the greeting
    reader = asyncio.create_task(self._receive(receive), name=f"{self.kind} reader")
    self._ended = ended = asyncio.get_running_loop().create_future()
    if self._outbox:
      self._begin_writing(ended)
    over = False
    try:
      await asyncio.wait({reader, ended}, return_when=asyncio.FIRST_COMPLETED)
      over = reader.done()
    finally:
      self._ended = None
      self._unfinished.done(self._give_up)
      tasks = [reader] if self._writer is None else [reader, self._writer]
      for task in tasks:
        task.cancel()
      results = await asyncio.gather(*tasks, return_exceptions=True)
      if not over and isinstance(late := results[0], Exception) and not isinstance(late, grpc.RpcError):
        log(2, "a %s stream that ended had failed, too: %s", self.kind, in_words(late))
    error = results[0] if over else ended.result() if ended.done() else None
    if isinstance(error, BaseException):
      if isinstance(error, grpc.RpcError):
        return f"{error.code().name.lower()}" if hasattr(error, "code") else "broken"
      self.failure = error
      return str(error) or type(error).__name__
    return "closed by the other side"

  async def _receive(self, receive: Callable[[EnvelopeStream, pb.Item], None]) -> None:
    while (items := await self.read_items()) is not None:
      for item in items:
        receive(self, item)

  async def _send(self, ended: asyncio.Future[BaseException]) -> None:
    """Write what is queued, and what comes to it meanwhile."""
    try:
      while self._outbox:
        await self.write_items(self._next_items())
      self._writer = None
    except asyncio.CancelledError:
      raise
    except BaseException as error:  # noqa: BLE001 - whatever breaks a write ends the stream, and says so
      if not ended.done():
        ended.set_result(error)

  def _next_items(self) -> list[pb.Item]:
    """As many as go into one envelope; a large one goes alone."""
    items: list[pb.Item] = []
    total = 0
    while self._outbox and len(items) < MAX_ITEMS:
      item, size = self._outbox[0]
      total += size
      if items and total > PIECE_BYTES:
        break
      self._outbox.popleft()
      self._queued_bytes -= size
      items.append(item)
    return items


class OneMethod(grpc.GenericRpcHandler):  # type: ignore[misc]
  """Serves the method of that name and no other."""
  def __init__(self, method: str, handler: grpc.RpcMethodHandler) -> None:
    self._method, self._handler = method, handler

  def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
    return self._handler if details.method == self._method else None


def reader(call: grpc.aio.StreamStreamCall | grpc.aio.ServicerContext):  # type: ignore[no-untyped-def]
  async def read() -> bytes | None:
    data = await call.read()
    return None if data is grpc.aio.EOF else data

  return read
