"""A mesh inside one process: nodes without sockets, for tests of everything above the network."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from exo.errors import DeadlineError, PeerLostError, PeerUnreachableError
from exo.networking.mesh import Mesh, MeshHandler, PeerCandidate, PeerStatus
from exo.networking.messages import Message
from exo.networking.peer_messages import Heartbeat, Hello
from exo.tasks import TaskOwner

_BEAT_S = 0.05


class LocalNetwork:
  """The wire between `LocalMesh`es: every node that has started is linked to every other."""
  def __init__(self) -> None:
    self.nodes: dict[str, LocalMesh] = {}

  async def kill(self, node_id: str, reason: str = "killed") -> None:
    """Take a node away without a word, as a power cut would."""
    gone = self.nodes.pop(node_id)
    for other in list(self.nodes.values()):
      other.lost(node_id, reason)
    await gone.cut()


class LocalMesh(Mesh):
  def __init__(self, hello: Hello, network: LocalNetwork) -> None:
    self._hello, self._network = hello, network
    self._tasks = TaskOwner(f"local mesh {hello.node_id}")
    self._inbox: asyncio.Queue[tuple[str, Message]] = asyncio.Queue()
    self._calls: dict[asyncio.Future[Message], str] = {}
    self._latest: Heartbeat | None = None
    self.handler: MeshHandler | None = None

  async def start(self, handler: MeshHandler) -> None:
    self.handler = handler
    self._tasks.spawn(self._deliver(), "inbox")
    self._tasks.spawn(self._beat(), "heartbeat")
    for other in list(self._network.nodes.values()):
      assert other.handler is not None
      other.handler.peer_joined(self._hello)
      handler.peer_joined(other._hello)
    self._network.nodes[self._hello.node_id] = self

  async def stop(self) -> None:
    if self._network.nodes.get(self._hello.node_id) is self:
      await self._network.kill(self._hello.node_id, "stopped")
    await self.cut()

  async def cut(self) -> None:
    """Deliver nothing more."""
    await self._tasks.close()

  def lost(self, node_id: str, reason: str) -> None:
    for future, callee in list(self._calls.items()):
      if callee == node_id and not future.done():
        future.set_exception(PeerLostError(f"the link to {node_id} broke ({reason})", node=node_id))
    assert self.handler is not None
    self.handler.peer_left(node_id, reason)

  def offer(self, candidate: PeerCandidate) -> None:
    pass

  def peers(self) -> Mapping[str, PeerStatus]:
    return {
        node_id: PeerStatus(mesh._hello, "local", heartbeat=mesh._latest)
        for node_id, mesh in self._network.nodes.items() if mesh is not self
    }

  def _peer(self, node_id: str) -> LocalMesh:
    peer = self._network.nodes.get(node_id)
    if peer is None or self._network.nodes.get(self._hello.node_id) is not self:
      raise PeerUnreachableError(f"there is no link to {node_id}", node=node_id)
    return peer

  def send(self, node_id: str, message: Message) -> None:
    self._peer(node_id)._inbox.put_nowait((self._hello.node_id, message))

  async def _deliver(self) -> None:
    assert self.handler is not None
    while True:
      sender, message = await self._inbox.get()
      self.handler.message(sender, message)

  async def _beat(self) -> None:
    assert self.handler is not None
    while True:
      self._latest = self.handler.heartbeat()
      await asyncio.sleep(_BEAT_S)

  def rehearse(self, node_id: str) -> None:
    """Nothing is read here."""

  async def call(self, node_id: str, message: Message, timeout_s: float) -> Message:
    peer = self._peer(node_id)
    reply: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
    self._calls[reply] = node_id
    peer._tasks.spawn(peer._answer(self._hello.node_id, message, reply), type(message).__name__)
    try:
      return await asyncio.wait_for(reply, timeout_s)
    except TimeoutError:
      raise DeadlineError(f"{node_id} has not answered within {timeout_s:g} s") from None
    finally:
      del self._calls[reply]

  async def _answer(self, sender: str, message: Message, reply: asyncio.Future[Message]) -> None:
    assert self.handler is not None
    try:
      result = await self.handler.answer(sender, message)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the caller's
      if not reply.done():
        reply.set_exception(error)
      return
    if not reply.done():
      reply.set_result(result)
