"""A hostile peer: real links to a real node, over which it says what no node says."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil

from exo.errors import PeerUnreachableError
from exo.networking.grpc import node_service_pb2 as pb
from exo.networking.grpc.grpc_mesh import GrpcMesh
from exo.networking.grpc.link import Link
from exo.networking.grpc.stream import EnvelopeStream
from exo.networking.mesh import PeerCandidate
from exo.networking.messages import Done, Message
from exo.networking.peer_messages import Heartbeat, Hello, WorkerBeat
from exo.topology.device_capabilities import DeviceCapabilities, DeviceFlops
from test.support.nodes import NodeProcess
from test.support.workers import dummy_offers


class Mute:
  """A handler that says as little as a node may."""
  def peer_joined(self, peer: Hello) -> None:
    pass

  def peer_left(self, node_id: str, reason: str) -> None:
    pass

  def message(self, sender: str, message: Message) -> None:
    pass

  def awaits(self, request_id: str) -> bool:
    return True

  async def answer(self, sender: str, message: Message) -> Message:
    return Done()

  def heartbeat(self) -> Heartbeat:
    return Heartbeat(0, workers=(WorkerBeat("cpu", 1), ))


class Stranger:
  """Linked to one node, whose id is `to`."""
  def __init__(self, mesh: GrpcMesh, to: str) -> None:
    self.mesh, self.to = mesh, to

  @property
  def link(self) -> Link | None:
    links = self.mesh._links.get(self.to)
    return links[0] if links else None

  async def send(self, message: Message) -> bool:
    """As fast as the node reads; False once it has hung up."""
    link = self.link
    if link is None:
      return False
    data = link._streams["data"]
    while len(data._outbox) > 500:
      if self.link is not link:
        return False
      await asyncio.sleep(0.001)
    try:
      self.mesh.send(self.to, message)
    except PeerUnreachableError:
      return False
    return True

  async def send_bytes(self, kind: str, *messages: bytes) -> None:
    """As gRPC messages of one of its streams, whatever is in them."""
    async with self._alone(kind) as stream:
      for data in messages:
        await stream._write(data)

  async def send_item(self, kind: str, item: pb.Item) -> None:
    async with self._alone(kind) as stream:
      await stream.write_items([item])

  @asynccontextmanager
  async def _alone(self, kind: str) -> AsyncIterator[EnvelopeStream]:
    """gRPC takes one write of a stream at a time: heartbeats and answers wait meanwhile."""
    link = self.link
    assert link is not None
    stream = link._streams[kind]
    while stream._writer is not None:  # noqa: ASYNC110 - nothing tells of it
      await asyncio.sleep(0.001)
    stream._writer = writing = asyncio.get_running_loop().create_future()  # cancelled where the link ends
    try:
      yield stream
    finally:
      if stream._writer is writing:
        stream._writer = None
        if stream._outbox and stream._ended is not None:
          stream._begin_writing(stream._ended)

  async def hung_up(self, timeout_s: float = 10) -> bool:
    """Whether the node ends the link."""
    try:
      async with asyncio.timeout(timeout_s):
        while self.link is not None:  # noqa: ASYNC110 - nothing tells of it
          await asyncio.sleep(0.02)
    except TimeoutError:
      return False
    return True


def grpc_port(node: NodeProcess) -> int:
  return int(node.log.split("ring    0.0.0.0:")[1].split()[0])


def says(node_id: str, memory: int = 1000, **more: object) -> Hello:
  return Hello(
      node_id, 1, 0, DeviceCapabilities("m", "c", memory, DeviceFlops(1, 1, 1)), dummy_offers(memory), "1", **more
  )


@asynccontextmanager
async def stranger(node: NodeProcess, hello: Hello, handler: Mute | None = None) -> AsyncIterator[Stranger]:
  """One that has joined."""
  mesh = GrpcMesh(hello, "127.0.0.1", 30, most_memory_mb=2**62)
  await mesh.start(handler or Mute())
  try:
    mesh.offer(PeerCandidate(node.node_id, "127.0.0.1", grpc_port(node)))
    async with asyncio.timeout(10):
      while not mesh.peers():  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.02)
    yield Stranger(mesh, node.node_id)
  finally:
    await mesh.stop()


def refused(node: NodeProcess) -> str:
  """What the node tells of those that it turned down."""
  return "\n".join(node.get("/v1/topology")[1]["refused"])


class Size:
  """Of a node's process, and how it has grown."""
  def __init__(self, node: NodeProcess) -> None:
    self._process = psutil.Process(node.process.pid)
    self._mb = self._rss()

  def _rss(self) -> float:
    return self._process.memory_info().rss / 2**20

  @property
  def grown_mb(self) -> float:
    return self._rss() - self._mb

  @property
  def descriptors(self) -> int:
    return self._process.num_fds()


def bare_connections(port: int, count: int, hosts: int = 1) -> list[socket.socket]:
  """Connections that say nothing, from so many addresses of this machine."""
  held = []
  for i in range(count):
    sock = socket.socket()
    sock.settimeout(2)
    try:
      sock.bind((f"127.0.0.{1 + i % hosts}", 0))
      sock.connect(("127.0.0.1", port))
    except OSError:
      sock.close()
      continue
    held.append(sock)
  return held
