"""One gRPC stream of envelopes, used in both directions."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

import grpc

from exo.errors import ProtocolError
from exo.networking.grpc import node_service_pb2 as pb
from exo.networking.grpc.codec import envelope_bytes, envelope_items

METHOD = "/exo.NodeService/Connect"
MAX_MESSAGE_BYTES = 64 * 2**20
_MAX_QUEUED = 4096
_MAX_ITEMS_PER_WRITE = 64

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
SERVER_OPTIONS: list[tuple[str, int]] = [
    *CHANNEL_OPTIONS,
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 4_000),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_concurrent_streams", 16),  # a link has two on one connection, one on the other
]
MAX_STREAMS = 1024  # of all connections together

Read = Callable[[], Awaitable[bytes | None]]
Write = Callable[[bytes], Awaitable[None]]


class EnvelopeStream:
  """Reads items and writes queued ones until the stream ends. `read` gives None at the end."""
  def __init__(self, kind: str, read: Read, write: Write) -> None:
    self.kind = kind
    self._read, self._write = read, write
    self._outbox: deque[pb.Item] = deque()
    self._wake = asyncio.Event()

  def post(self, item: pb.Item) -> None:
    """Queue an item. Raises `ProtocolError` when the other side has stopped reading."""
    if len(self._outbox) >= _MAX_QUEUED:
      raise ProtocolError(f"{_MAX_QUEUED} messages wait on one {self.kind} stream: the other side does not read")
    self._outbox.append(item)
    self._wake.set()

  async def read_items(self) -> list[pb.Item] | None:
    data = await self._read()
    return None if data is None else envelope_items(data)

  async def write_items(self, items: list[pb.Item]) -> None:
    await self._write(envelope_bytes(items))

  async def run(self, receive: Callable[[EnvelopeStream, pb.Item], None]) -> str:
    """Serve both directions until one ends; returns why. What is queued together is written together."""
    reader = asyncio.create_task(self._receive(receive), name=f"{self.kind} reader")
    writer = asyncio.create_task(self._send(), name=f"{self.kind} writer")
    try:
      done, _ = await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
    finally:
      for task in (reader, writer):
        task.cancel()
      results = await asyncio.gather(reader, writer, return_exceptions=True)
    for task, result in zip((reader, writer), results, strict=True):
      if task in done and isinstance(result, BaseException):
        if isinstance(result, grpc.RpcError):
          return f"{result.code().name.lower()}" if hasattr(result, "code") else "broken"
        return str(result) or type(result).__name__
    return "closed by the other side"

  async def _receive(self, receive: Callable[[EnvelopeStream, pb.Item], None]) -> None:
    while (items := await self.read_items()) is not None:
      for item in items:
        receive(self, item)

  async def _send(self) -> None:
    while True:
      await self._wake.wait()
      self._wake.clear()
      while self._outbox:
        count = min(len(self._outbox), _MAX_ITEMS_PER_WRITE)
        await self.write_items([self._outbox.popleft() for _ in range(count)])
