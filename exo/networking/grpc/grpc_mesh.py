"""The mesh over gRPC: one server, one dialer, and a table of the links that are up."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace

import grpc
import grpc.aio

from exo import descriptors
from exo.errors import ConfigError, PeerUnreachableError, ProtocolError, in_words
from exo.log import log
from exo.networking.address_book import AddressBook, KnownNode
from exo.networking.address_rule import AddressRule, own_addresses, parse_address
from exo.networking.cluster_key import ClusterKeyring
from exo.networking.dial_rate import DialRate
from exo.networking.grpc.acceptor import GREETING_TIMEOUT_S, LINK_KEY, Acceptor
from exo.networking.grpc.channels import Channels
from exo.networking.grpc.doorkeeper import Doorkeeper
from exo.networking.grpc.link import Link
from exo.networking.grpc.open_connections import OpenConnections
from exo.networking.grpc.peer_check import PeerCheck
from exo.networking.grpc.peer_codec import STREAM_KINDS, hello_in, hello_out
from exo.networking.grpc.routes import turn_to_later
from exo.networking.grpc.stream import (
    MAX_STREAMS,
    METHOD,
    EnvelopeStream,
    OneMethod,
    reader,
    server_options,
)
from exo.networking.grpc.tensor_codec import WireDtype
from exo.networking.grpc.tls import TlsCredentials
from exo.networking.grpc.unfinished import Unfinished
from exo.networking.grpc.warm_path import WarmPath
from exo.networking.membership import Change, Membership, State, Timing
from exo.networking.memory_claims import MOST_OF_STRANGERS_MB, MemoryClaims
from exo.networking.mesh import Mesh, MeshHandler, PeerCandidate, PeerStatus
from exo.networking.messages import Message
from exo.networking.peer_messages import Hello, Rumour
from exo.networking.refusals import Refusals
from exo.tasks import TaskOwner

# the node with the smaller id dials; the other one only if nothing has come by then (it may be the only one who can)
_POLITE_S = 0.7
_RETRY_S, _MAX_RETRY_S = 0.5, 5.0
_TRY_BETTER_S = 30.0
_TIMING = Timing()
_RUMOUR_PRIORITY = -1  # behind every address that the node itself announces


class GrpcMesh(Mesh):
  """`hello.port` 0 takes a free port; `port` tells which after `start`. With a keyring, links are mutual TLS.

  `node_ids`, where there are any, are the only nodes that it links to. A node that claims to offer more than `most_memory_mb`
  counts as one that offers nothing; without a keyring that is at most 2 TB unless it is said.
  """
  def __init__(
      self,
      hello: Hello,
      host: str,
      candidate_timeout_s: float,
      keyring: ClusterKeyring | None = None,
      node_ids: tuple[str, ...] = (),
      wire: WireDtype = "native",
      most_memory_mb: int | None = None
  ) -> None:
    self._node_ids, self._wire = frozenset(node_ids), wire
    self._hello, self._host = hello, host
    self._tls = None if keyring is None else TlsCredentials(keyring)
    self._rule = AddressRule(restricted=keyring is None)
    self._links: dict[str, list[Link]] = {}
    self._book = AddressBook(candidate_timeout_s)
    self._refusals = Refusals()
    if most_memory_mb is None and keyring is None:
      most_memory_mb = MOST_OF_STRANGERS_MB
    self._claims = MemoryClaims(most_memory_mb, self._refusals)
    self._doorkeeper, self._unfinished = Doorkeeper(), Unfinished()
    self._check = PeerCheck(
        lambda: self._hello, self._links, self._node_ids, self._doorkeeper, self._refusals, keyring is not None
    )
    self._dial_rate = DialRate()
    self._membership = Membership(hello.node_id, hello.incarnation, time.monotonic(), _TIMING)
    self._tasks = TaskOwner("mesh")
    self._warm_path = WarmPath()
    self._channels = Channels(self._tls)
    self._acceptor = Acceptor(
        lambda: self._hello, self._rule, self._refusals, self._doorkeeper, self._check, self._claims, self._unfinished,
        self._tasks, lambda peer, address, key: self._new_link(peer, address, False, key),
        lambda link: self._spawn_link(link, [])
    )
    self._handler: MeshHandler | None = None
    self._server: grpc.aio.Server | None = None
    self._stopping = False

  @property
  def hello(self) -> Hello:
    return self._hello

  async def start(self, handler: MeshHandler) -> None:
    self._handler = handler
    self._server = grpc.aio.server(
        options=server_options(descriptors.peer_connections()),
        maximum_concurrent_rpcs=MAX_STREAMS,
        compression=grpc.Compression.NoCompression
    )
    rpc = grpc.stream_stream_rpc_method_handler(self._acceptor.accept)
    self._server.add_generic_rpc_handlers((OneMethod(METHOD, rpc), ))
    try:
      address = f"{self._host}:{self._hello.port}"
      if self._tls is None:
        port = self._server.add_insecure_port(address)
      else:
        port = self._server.add_secure_port(address, await asyncio.to_thread(self._tls.server))
    except RuntimeError:
      port = 0
    if port == 0:
      raise ConfigError(
          f"port {self._hello.port} on {self._host} is taken: choose another --node-port, or leave it out"
      )
    await self._server.start()
    self._tasks.spawn(self._watch_members(), "membership")
    connections = OpenConnections(port, descriptors.peer_connections())
    self._tasks.spawn(connections.watch(self._doorkeeper, self._refusals), "connections")
    self._hello = replace(self._hello, port=port)

  async def stop(self) -> None:
    self._stopping = True
    await self._tasks.close()
    await self._warm_path.close()
    await self._acceptor.close("this node stops")
    for link in [link for links in self._links.values() for link in links]:
      await link.close("this node stops")
    self._links.clear()
    await self._channels.close_all()
    if self._server is not None:
      await self._server.stop(grace=0.1)

  def offer(self, candidate: PeerCandidate) -> None:
    if candidate.node_id == self._hello.node_id or self._stopping:
      return
    if self._node_ids and candidate.node_id and candidate.node_id not in self._node_ids:
      self._refusals.note(f"{candidate.node_id} at {candidate.host} is not in --node-id-filter")
      return
    if candidate.configured:
      self._rule.configure(candidate.host)
    elif not self._rule.allows(candidate.host):
      self._refusals.note(
          f"{candidate.node_id} at {candidate.host} is not of this network: without a cluster key it is not dialed"
      )
      return
    key = candidate.node_id or f"{candidate.host}:{candidate.port}"
    try:
      known = self._book.note(key, candidate, self._links, time.monotonic())
    except OverflowError as error:
      self._refusals.note(str(error), wrong=True)
      return
    if known is None or known.dialing:
      return
    linked = {candidate.node_id, known.node_id} & self._links.keys()
    if not linked:
      known.dialing = True
      self._tasks.spawn(self._keep_dialing(key, known), f"dial {key}")
    elif candidate.node_id in linked and self._is_better(candidate, known):
      known.dialing = True
      self._tasks.spawn(self._try_better(candidate, known), f"dial {key}")

  def _is_better(self, candidate: PeerCandidate, known: KnownNode) -> bool:
    """Whether to try this route beside a link that this node has dialed. Between two nodes of one machine none is."""
    links, now = self._links[candidate.node_id], time.monotonic()
    better = links[0].dialed and all(candidate.priority > link.priority for link in links)
    if not better or now < known.try_better_s:
      return False
    known.try_better_s = now + _TRY_BETTER_S
    return parse_address(candidate.host) not in own_addresses()

  async def _try_better(self, candidate: PeerCandidate, known: KnownNode) -> None:
    """A second link; `routes.py` says when it takes the first one's place."""
    try:
      if (await self._dial(candidate))[0]:
        log(1, "a better route to %s: %s", candidate.node_id, candidate.interface or candidate.host)
    finally:
      known.dialing = False

  def peers(self) -> Mapping[str, PeerStatus]:
    return {
        node_id: PeerStatus(
            link.peer, link.address, link.interface, link.rtt_ms, link.latest,
            self._membership.state(node_id) is State.SUSPECT, link.codec_ms, link.bytes_per_s
        )
        for node_id, links in self._links.items() if (link := links[0])
    }

  def refusals(self) -> Sequence[str]:
    return self._refusals.texts()

  def problems(self) -> Sequence[str]:
    return self._refusals.problems(self._links)

  # membership

  async def _watch_members(self) -> None:
    while True:
      await asyncio.sleep(_TIMING.tick_s)
      for change in self._membership.tick(time.monotonic()):
        self._tell(change)

  def _tell(self, change: Change) -> None:
    """Of a node that this one knows of only by what others say anybody may say anything."""
    log(1 if change.node_id in self._links else 2, "%s is %s", change.node_id, change.after.name.lower())

  def _heard(self, link: Link, rumours: tuple[Rumour, ...]) -> None:
    """A heartbeat came, with what its sender knows of others: those that this node has no link to are tried."""
    turn_to_later(self._links.get(link.peer.node_id, []), link)
    host = link.address.rpartition(":")[0]
    elsewhere = "" if "%" in host else f"{host}:{link.peer.port}"  # a link-local address means nothing to others
    changes = self._membership.heard(link.peer.node_id, rumours, time.monotonic(), elsewhere)
    for change in changes:
      self._tell(change)
    for rumour in rumours:
      if rumour.address and rumour.node_id not in self._links and rumour.node_id != self._hello.node_id:
        host, _, port = rumour.address.rpartition(":")
        if port.isascii() and port.isdigit() and 1024 <= int(port) <= 65535:
          self.offer(PeerCandidate(rumour.node_id, host.strip("[]"), int(port), _RUMOUR_PRIORITY, "told by a peer"))

  def send(self, node_id: str, message: Message) -> None:
    self._link(node_id).post(message)

  def rehearse(self, node_id: str) -> None:
    for link in self._links.get(node_id, [])[:1]:
      link.rehearse()
    self._warm_path.touch()

  async def call(self, node_id: str, message: Message, timeout_s: float) -> Message:
    return await self._link(node_id).call(message, timeout_s)

  def _link(self, node_id: str) -> Link:
    for link in self._links.get(node_id, ()):
      if not link.closed.done(
      ) and not link.retired:  # else it is about to be taken out, and nobody reads what is posted to it
        return link
    raise PeerUnreachableError(f"there is no link to {node_id}", node=node_id)

  # dialing

  async def _keep_dialing(self, key: str, known: KnownNode) -> None:
    """Try a node's addresses, best first, until there is a link or nobody offers them any more."""
    try:
      if key < self._hello.node_id and not known.nameless:
        await asyncio.sleep(_POLITE_S)
      pause_s = _RETRY_S
      while not {key, known.node_id} & self._links.keys():
        self._book.forget_old(known, time.monotonic())
        if not known.candidates:
          return
        for candidate in known.best_first():
          if not self._dial_rate.take(candidate):
            continue
          place = candidate.host, candidate.port
          known.tried[place] = time.monotonic()
          async with self._dial_rate.dialing(candidate):
            node_id, is_node = await self._dial(candidate)
          if is_node:
            known.proven.add(place)
          if node_id:
            known.node_id = node_id
            return
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, _MAX_RETRY_S)
    finally:
      known.dialing = False

  async def _dial(self, candidate: PeerCandidate) -> tuple[str, bool]:
    """Open the four streams; heartbeats and files get connections of their own, so that neither waits for the other
    nor for a tensor.

    Returns who is there, "" where no link could be made, and whether it is a node at all.
    """
    address = f"[{candidate.host}]:{candidate.port}" if ":" in candidate.host else f"{candidate.host}:{candidate.port}"
    if candidate.configured:
      await self._configure_name(candidate.host)
    channels = await self._channels.open(address)
    link_id, link = uuid.uuid4().hex, None
    try:
      for kind in STREAM_KINDS:
        call = self._channels.of(channels, kind).stream_stream(METHOD)(metadata=((LINK_KEY, link_id), ))
        stream = EnvelopeStream(kind, reader(call), call.write, self._unfinished)
        async with asyncio.timeout(GREETING_TIMEOUT_S):
          await stream.write_items([hello_out(self._hello, kind)])
          items = await stream.read_items()
        if not items:
          raise ProtocolError("it closed the stream without a greeting")
        peer = self._claims.believed(hello_in(items[0])[0])
        if link is None:
          await self._check.check(peer, address, candidate.node_id)
          assert self._handler is not None
          if not candidate.node_id and peer.node_id in self._links:  # an address alone, of a node that is here already
            await self._channels.close(channels)
            return peer.node_id, True
          link = self._new_link(peer, address, True, link_id)
          link.interface, link.priority = candidate.interface, candidate.priority
        link.attach(stream)
    except Exception as error:  # noqa: BLE001 - whatever it is, its connections must not stay
      self._check.note(address, error, candidate)
      await self._channels.close(channels)
      refused = isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.FAILED_PRECONDITION
      return "", refused or isinstance(error, ProtocolError)
    assert link is not None
    self._spawn_link(link, channels)
    return link.peer.node_id, True

  async def _configure_name(self, host: str) -> None:
    """Let the addresses of a host name that a person gave connect to this node too."""
    with contextlib.suppress(OSError, UnicodeError):
      async with asyncio.timeout(GREETING_TIMEOUT_S):  # a resolver may take minutes
        infos = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
      for info in infos:
        self._rule.configure(str(info[4][0]))

  def _new_link(self, peer: Hello, address: str, dialed: bool, key: str) -> Link:
    assert self._handler is not None
    return Link(
        peer, address, dialed, self._handler, self._membership, self._heard, self._wire, key,
        lambda node_id: tuple(link.key for link in self._links.get(node_id, ()))
    )

  # links

  def _spawn_link(self, link: Link, channels: list[grpc.aio.Channel]) -> None:
    self._tasks.spawn(self._run_link(link, channels), f"link {link.peer.node_id}")

  async def _run_link(self, link: Link, channels: list[grpc.aio.Channel]) -> None:
    """From the moment a link is complete until it is gone."""
    node_id = link.peer.node_id
    assert self._handler is not None
    older = [other for other in self._links.get(node_id, []) if other.peer.incarnation < link.peer.incarnation]
    for other in older:
      await other.close("the node was restarted")
      self._remove(other, "the node was restarted")
    first, reason = node_id not in self._links, "this node stops, or failed"

    try:  # each of them, also when another fails: what is sent over a link that has ended, and is still here, is lost
      self._links.setdefault(node_id, []).append(link)
      link.start()
      if first:
        self._handler.peer_joined(link.peer)
      reason = await link.closed
    finally:
      try:
        self._check.punish(link)
        await link.close(reason)
      finally:
        try:
          self._remove(link, reason)
        except Exception as error:  # noqa: BLE001 - while it is in the table nobody dials that node
          log(0, "a link to %s was not taken out: %s", node_id, in_words(error))
          self._remove(link, reason)
        finally:
          await self._channels.close(channels)

  def _remove(self, link: Link, reason: str) -> None:
    node_id = link.peer.node_id
    links = self._links.get(node_id, [])
    if link not in links:
      return
    links.remove(link)
    log(2, "a link to %s over %s has ended: %s", node_id, link.interface or link.address, reason)
    assert self._handler is not None
    if links and not link.retired and not self._stopping:
      # What was under way on it, either way, is lost, and nobody shall wait for it. The other side does the same, but maybe later:
      # each tells the other what it gives up for that.
      self._handler.peer_left(node_id, reason)
      self._handler.peer_joined(links[0].peer)
    if not links:
      del self._links[node_id]
      if not self._stopping:
        self._handler.peer_left(node_id, reason)
        known = self._book.nodes.get(node_id)
        if known and known.candidates and not known.dialing:
          known.dialing = True
          self._tasks.spawn(self._keep_dialing(node_id, known), f"dial {node_id}")
