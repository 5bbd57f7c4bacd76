"""gRPC kept warm while a stage of the ring has nothing to do.

An engine streams tens of megabytes of weights through the processor's caches in every step, and a message that comes
afterwards finds neither gRPC's code nor its data there: 0.04 ms become 0.2. So the node sends itself a message of a frame's
size, while it waits anyway, and what the next frame will need is at hand again.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

import grpc

from exo.log import log
from exo.networking.grpc.stream import OneMethod
from exo.tasks import TaskOwner

if TYPE_CHECKING:
  from collections.abc import AsyncIterator

_MESSAGE = bytes(2500)
_DEADLINE_S = 2.0
_OPTIONS = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 2 * len(_MESSAGE)),
            ("grpc.enable_retries", 0)]


class WarmPath:
  """An echo on this machine's loopback, at `port` once it is open, which is at first use. Its method has a name that only
  this process knows. `messages` have gone round."""
  def __init__(self) -> None:
    self.port = self.messages = 0
    self._method = f"/exo.WarmPath/{secrets.token_hex(16)}"
    self._tasks = TaskOwner("warm path")
    self._server: grpc.aio.Server | None = None
    self._channel: grpc.aio.Channel | None = None
    self._call: grpc.aio.StreamStreamCall | None = None
    self._broken = False

  @property
  def busy(self) -> bool:
    """A message is on its way."""
    return len(self._tasks) > 0

  def touch(self) -> None:
    """Send one message round, unless one is on its way. Never waits and never fails."""
    if not self._broken and not self.busy:
      self._tasks.spawn(self._send(), "echo")

  async def _send(self) -> None:
    try:
      async with asyncio.timeout(_DEADLINE_S):
        if self._call is None:
          self._call = await self._open()
        await self._call.write(_MESSAGE)
        await self._call.read()
        self.messages += 1
    except (grpc.RpcError, OSError, RuntimeError, asyncio.InvalidStateError) as error:
      self._broken = True  # the ring goes on without it
      log(2, "gRPC is not kept warm between frames: %s", str(error) or type(error).__name__)

  async def _open(self) -> grpc.aio.StreamStreamCall:
    self._server = grpc.aio.server(options=_OPTIONS)
    self._server.add_generic_rpc_handlers((OneMethod(self._method, grpc.stream_stream_rpc_method_handler(_echo)), ))
    self.port = self._server.add_insecure_port("127.0.0.1:0")
    await self._server.start()
    options = [*_OPTIONS, ("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=options)
    return self._channel.stream_stream(self._method)()

  async def close(self) -> None:
    await self._tasks.close()
    if self._call is not None:
      self._call.cancel()
    if self._channel is not None:
      await self._channel.close()
    if self._server is not None:
      await self._server.stop(grace=None)


async def _echo(items: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
  while (item := await context.read()) is not grpc.aio.EOF:
    await context.write(item)
