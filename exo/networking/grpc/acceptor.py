"""Takes the streams that others open to this node, and joins each to its link."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from urllib.parse import unquote

import grpc
import grpc.aio

from exo.errors import ProtocolError, in_words
from exo.log import log
from exo.networking.address_rule import AddressRule
from exo.networking.grpc.doorkeeper import Doorkeeper
from exo.networking.grpc.link import Link
from exo.networking.grpc.peer_check import PeerCheck
from exo.networking.grpc.peer_codec import OtherProtocolError, hello_in, hello_out
from exo.networking.grpc.stream import EnvelopeStream, reader
from exo.networking.grpc.unfinished import Unfinished
from exo.networking.memory_claims import MemoryClaims
from exo.networking.peer_messages import Hello
from exo.networking.place import place_of
from exo.networking.refusals import Refusals
from exo.tasks import TaskOwner

LINK_KEY = "exo-link"
GREETING_TIMEOUT_S = 5.0
# bounds on what strangers can make this node remember
_MAX_PENDING, _MAX_PENDING_OF_HOST = 128, 32


class Acceptor:
  """`new_link` makes the link of a peer, its address and its key; `run_link` lives as long as a link that is whole."""
  def __init__(
      self,
      hello: Callable[[], Hello],
      rule: AddressRule,
      refusals: Refusals,
      doorkeeper: Doorkeeper,
      check: PeerCheck,
      claims: MemoryClaims,
      unfinished: Unfinished,
      tasks: TaskOwner,
      new_link: Callable[[Hello, str, str], Link],
      run_link: Callable[[Link], None],
  ) -> None:
    self._hello, self._rule, self._refusals, self._doorkeeper = hello, rule, refusals, doorkeeper
    self._check, self._claims, self._unfinished, self._tasks = check, claims, unfinished, tasks
    self._new_link, self._run_link = new_link, run_link
    self._pending: dict[str, Link] = {}

  async def close(self, reason: str) -> None:
    """End the links whose streams have not all come."""
    for link in self._pending.values():
      await link.close(reason)
    self._pending.clear()

  async def accept(self, _: object, context: grpc.aio.ServicerContext) -> None:
    """Serve one incoming stream: greet, join it to its link, and stay until the link ends."""
    address = _peer_address(context.peer())
    try:
      await self._serve(address, context)
    except grpc.aio.AbortError:
      raise
    except Exception as error:  # gRPC tells the other side, but nobody here
      log(0, "a stream from %s was not served: %s", address, in_words(error))
      raise

  async def _serve(self, address: str, context: grpc.aio.ServicerContext) -> None:
    host, _colon, port = address.rpartition(":")
    if not self._rule.allows(host):
      self._refusals.note(f"refused {host}: without a cluster key only machines of this network may link")
      await context.abort(grpc.StatusCode.PERMISSION_DENIED, "not of this network")
    with self._doorkeeper.serving(place_of(host, port)):
      link = await self._greeted(address, context)
      try:
        await asyncio.wait({link.closed})
      finally:  # cancelled when the other side is gone
        link.end("closed by the other side")

  async def _greeted(self, address: str, context: grpc.aio.ServicerContext) -> Link:
    """Hear who it is, tell who this is, and find or begin the stream's link. Aborts the stream of whoever does not fit."""
    key = next((value for name, value in context.invocation_metadata() or () if name == LINK_KEY), "")
    try:
      with self._doorkeeper.greeting(address.rpartition(":")[0]):
        async with asyncio.timeout(GREETING_TIMEOUT_S):
          first = EnvelopeStream("", reader(context), context.write)
          items = await first.read_items()
          if not items or not 8 <= len(str(key)) <= 64:
            raise ProtocolError("a stream without a greeting")
          try:
            said, kind = hello_in(items[0])
          except OtherProtocolError:  # it is told which version this node has, and says so in words of its own
            await first.write_items([hello_out(self._hello(), "data")])
            raise
          peer = self._claims.believed(said)
          if f"{peer.node_id} {key}" not in self._pending:
            await self._check.check(peer, address, "")
          stream = EnvelopeStream(kind, reader(context), context.write, self._unfinished)
          await stream.write_items([hello_out(self._hello(), kind)])
          return self._join(f"{peer.node_id} {key}", peer, address, stream)
    except (ProtocolError, TimeoutError) as error:
      self._check.note(address, error)
      await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error) or "no greeting in time")
      raise

  def _join(self, key: str, peer: Hello, address: str, stream: EnvelopeStream) -> Link:
    link = self._pending.get(key)
    if link is None:
      host = address.rpartition(":")[0]
      of_host = sum(pending.address.rpartition(":")[0] == host for pending in self._pending.values())
      if len(self._pending) >= _MAX_PENDING or of_host >= _MAX_PENDING_OF_HOST:
        raise ProtocolError("too many links are being opened")
      link = self._pending[key] = self._new_link(peer, address, key.rpartition(" ")[2])
      self._tasks.spawn(self._forget(key, link), f"pending {peer.node_id}")
    if link.attach(stream):
      del self._pending[key]
      self._run_link(link)
    return link

  async def _forget(self, key: str, link: Link) -> None:
    await asyncio.sleep(GREETING_TIMEOUT_S)
    if self._pending.pop(key, None) is not None:
      await link.close("the other streams of the link did not come")


def _peer_address(peer: str) -> str:
  """"ipv4:10.0.0.2:41234" as "10.0.0.2:41234", "ipv6:%5Bfe80::1%254%5D:41234" as "[fe80::1%4]:41234"."""
  return unquote(peer.partition(":")[2])
