"""The connections of the links that this node has dialed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import grpc
import grpc.aio

from exo.networking.grpc.stream import CHANNEL_OPTIONS
from exo.networking.grpc.tls import SERVER_NAME, TlsCredentials

_CONNECTIONS = 3
_CONNECTION_OF = {"heartbeat": 1, "bulk": 2}  # data and control share the first


class Channels:
  """With `tls`, they are mutual TLS."""
  def __init__(self, tls: TlsCredentials | None) -> None:
    self._tls = tls
    self._open: set[grpc.aio.Channel] = set()

  async def open(self, address: str) -> list[grpc.aio.Channel]:
    """One for data and calls, one for heartbeats, one for files, each with a connection of its own."""
    options: list[tuple[str, int | str]] = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
    if self._tls is None:
      channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(_CONNECTIONS)]
    else:
      options.append(("grpc.ssl_target_name_override", SERVER_NAME))
      credentials = await asyncio.to_thread(self._tls.channel)
      channels = [grpc.aio.secure_channel(address, credentials, options=options) for _ in range(_CONNECTIONS)]
    self._open.update(channels)
    return channels

  @staticmethod
  def of(channels: list[grpc.aio.Channel], kind: str) -> grpc.aio.Channel:
    """The one for streams of this kind."""
    return channels[_CONNECTION_OF.get(kind, 0)]

  async def close(self, channels: Iterable[grpc.aio.Channel]) -> None:
    for channel in channels:
      self._open.discard(channel)
      await channel.close()

  async def close_all(self) -> None:
    await asyncio.gather(*(channel.close() for channel in self._open))
