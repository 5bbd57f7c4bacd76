"""Links between nodes: the interface that orchestration sees, and the one through which it is told."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from exo.networking.messages import Message
from exo.networking.peer_messages import Heartbeat, Hello


@dataclass(frozen=True, slots=True)
class PeerCandidate:
  """Where a node may be reached. `node_id` "" for an address whose node is not known yet; higher priority is better.

  `configured`: a person named this address, so it may be anywhere, also without a cluster key.
  """
  node_id: str
  host: str
  port: int
  priority: int = 0
  interface: str = ""
  configured: bool = False


@dataclass(frozen=True, slots=True)
class PeerStatus:
  """A linked node: what it said of itself, how it is reached, and its latest heartbeat. `rtt_ms` 0 until measured.

  `bytes_per_s` is what has gone over its data stream of late, both ways. `codec_ms` is the recent mean of what it takes here to turn one message of the data stream into its wire form or back. A
  `suspect` one has not been heard for a while: it keeps what it has and gets nothing new.
  """
  hello: Hello
  address: str
  interface: str = ""
  rtt_ms: float = 0.0
  heartbeat: Heartbeat | None = None
  suspect: bool = False
  codec_ms: float = 0.0
  bytes_per_s: float = 0.0


class MeshHandler(Protocol):
  """Who is told of what arrives. Everything runs on the event loop, and nothing but `answer` may wait."""
  def peer_joined(self, peer: Hello) -> None:
    """There is a link to this node now."""

  def peer_left(self, node_id: str, reason: str) -> None:
    """The last link to this node is gone."""

  def message(self, sender: str, message: Message) -> None:
    """A one-way message, in the order in which its sender sent them."""

  def awaits(self, request_id: str) -> bool:
    """Whether a client of this node waits for tokens of this request."""

  async def answer(self, sender: str, message: Message) -> Message:
    """A call that wants a reply. An exception becomes a `Failure` at the caller."""

  def heartbeat(self) -> Heartbeat:
    """What this node tells of itself, `number` left to the mesh."""


class Mesh(ABC):
  """The links of one node. `send` and `call` address nodes by id, whichever side opened the link."""
  @abstractmethod
  async def start(self, handler: MeshHandler) -> None:
    """Begin to accept and to open links."""

  @abstractmethod
  async def stop(self) -> None:
    """Close every link; no task is left."""

  @abstractmethod
  def offer(self, candidate: PeerCandidate) -> None:
    """Tell of a node that might be reached there. Repeated offers keep an address alive."""

  @abstractmethod
  def peers(self) -> Mapping[str, PeerStatus]:
    """The nodes that are linked now."""

  def refusals(self) -> Sequence[str]:
    """Why addresses and nodes were turned down, latest last."""
    return ()

  def problems(self) -> Sequence[str]:
    """Those of them that are wrong now, and not as this node's user wants it."""
    return ()

  @abstractmethod
  def send(self, node_id: str, message: Message) -> None:
    """Queue a one-way message; never waits. Raises `PeerUnreachableError` when there is no link."""

  @abstractmethod
  def rehearse(self, node_id: str) -> None:
    """Do once more what reading the latest message of that node took, so that the next one finds the processor's caches
    warm. Never waits."""

  @abstractmethod
  async def call(self, node_id: str, message: Message, timeout_s: float) -> Message:
    """Ask and await the answer. Raises what the other side raised, `PeerLostError` when the link breaks,
    `PeerUnreachableError` when there is none, `DeadlineError` after `timeout_s`."""
