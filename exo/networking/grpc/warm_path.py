"""gRPC kept warm while a stage of the ring has nothing to do.

An engine streams tens of megabytes of weights through the processor's caches in every step, and a message that comes
afterwards finds neither gRPC's code nor its data there: 0.04 ms become 0.2. So the node sends itself a message of a frame's
size, while it waits anyway, and what the next frame will need is at hand again.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from exo.errors import in_words
from exo.log import log
from exo.networking.grpc.stream import OneMethod
from exo.tasks import TaskOwner

if TYPE_CHECKING:
  from collections.abc import AsyncIterator

_METHOD = "/exo.WarmPath/Echo"
_MESSAGE = bytes(2500)
_DEADLINE_S = 2.0
_PAUSE_S = 30.0  # after a failure
_OPTIONS = [("grpc.max_receive_message_length", 2 * len(_MESSAGE)), ("grpc.enable_retries", 0),
            ("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]


class WarmPath:
  """An echo over a socket in a folder that only this user may enter, opened at first use. `messages` have gone round.

  The folder is gone as soon as both ends are connected: nobody else can come, and a node that is killed leaves nothing.
  """
  def __init__(self) -> None:
    self.messages = 0
    self.folder: Path | None = None
    self._tasks = TaskOwner("warm path")
    self._server: grpc.aio.Server | None = None
    self._channel: grpc.aio.Channel | None = None
    self._call: grpc.aio.StreamStreamCall | None = None
    self._resting_until = 0.0

  @property
  def busy(self) -> bool:
    """A message is on its way."""
    return len(self._tasks) > 0

  def touch(self) -> None:
    """Send one message round, unless one is on its way. Never waits and never fails."""
    if not self.busy and asyncio.get_running_loop().time() >= self._resting_until:
      self._tasks.spawn(self._send(), "echo")

  async def _send(self) -> None:
    try:
      async with asyncio.timeout(_DEADLINE_S):
        if self._call is None:
          self._call = await self._open()
        await self._call.write(_MESSAGE)
        await self._call.read()
        self.messages += 1
      self._remove_folder()
    except (grpc.RpcError, OSError, RuntimeError, asyncio.InvalidStateError) as error:
      log(2, "gRPC is not kept warm for a while: %s", str(error) or type(error).__name__)  # the ring goes on without
      self._resting_until = asyncio.get_running_loop().time() + _PAUSE_S
      await self._shut()

  async def _open(self) -> grpc.aio.StreamStreamCall:
    self.folder = Path(tempfile.mkdtemp(prefix="exo-warm-"))  # mode 700
    address = f"unix:{self.folder / 'echo'}"
    self._server = grpc.aio.server(options=_OPTIONS)
    self._server.add_generic_rpc_handlers((OneMethod(_METHOD, grpc.stream_stream_rpc_method_handler(_echo)), ))
    self._server.add_insecure_port(address)
    await self._server.start()
    self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
    return self._channel.stream_stream(_METHOD)()

  async def close(self) -> None:
    await self._tasks.close()
    await self._shut()

  async def _shut(self) -> None:
    call, channel, server = self._call, self._channel, self._server
    self._call = self._channel = self._server = None
    if call is not None:
      call.cancel()
    if channel is not None:
      await channel.close()
    if server is not None:
      await server.stop(grace=None)
    self._remove_folder()

  def _remove_folder(self) -> None:
    if self.folder is not None:
      shutil.rmtree(self.folder, ignore_errors=True)
      self.folder = None


async def _echo(items: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
  try:
    while (item := await context.read()) is not grpc.aio.EOF:
      await context.write(item)
  except Exception as error:
    log(2, "the echo that keeps gRPC warm failed: %s", in_words(error))
    raise
