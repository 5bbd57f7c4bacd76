"""Who the other side of a link is, and whether it may be linked."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import grpc
import grpc.aio

from exo.errors import ProtocolError, in_words
from exo.networking.grpc.allowance import FloodError
from exo.networking.grpc.doorkeeper import FAULT_BAN_S, FLOOD_BAN_S, Doorkeeper
from exo.networking.grpc.link import HEARTBEAT_S, Link
from exo.networking.grpc.peer_codec import OtherProtocolError
from exo.networking.grpc.tls import explain_refusal
from exo.networking.mesh import PeerCandidate
from exo.networking.peer_messages import Hello
from exo.networking.refusals import Refusals

_SILENCE_S = 3 * HEARTBEAT_S


class _UnwantedError(ProtocolError):
  """A node that is rightly not linked: this one itself, one that a filter leaves out, or one at another's old address."""


class PeerCheck:
  """Of one node, which says `hello` and has these `links`. `node_ids`, where there are any, are the only ones that it links to."""
  def __init__(
      self, hello: Callable[[], Hello], links: Mapping[str, list[Link]], node_ids: frozenset[str],
      doorkeeper: Doorkeeper, refusals: Refusals, keyed: bool
  ) -> None:
    self._hello, self._links, self._node_ids = hello, links, node_ids
    self._doorkeeper, self._refusals, self._keyed = doorkeeper, refusals, keyed

  def note(self, address: str, error: BaseException, dialed: PeerCandidate | None = None) -> None:
    """Whoever comes and does not speak as a node is not worth a finding; whoever is looked for and cannot be had is, and
    so is a node of another version.
    """
    if isinstance(error, grpc.aio.AioRpcError):
      why = explain_refusal(error.details() or error.code().name, self._keyed)
      if error.code() is grpc.StatusCode.FAILED_PRECONDITION:  # words of the other node, to which this one is the other
        why = f"it answers: {why}"
    else:
      why = in_words(error) if str(error) else type(error).__name__
    intended = isinstance(error, _UnwantedError) or why.endswith("-filter")  # the latter is the other side's
    if isinstance(error, OtherProtocolError):  # it comes again and again, each time from another port
      host = address.rpartition(":")[0]
      self._refusals.note(f"no link to {host}: {why}", wrong=True, node_id=str(error.details["node"]))
      return
    wrong = dialed is not None and not intended
    self._refusals.note(f"no link to {address}: {why}", wrong=wrong, node_id=dialed.node_id if dialed else "")

  async def check(self, peer: Hello, address: str, expected: str) -> None:
    """Raises `ProtocolError` for this node itself, for another than was looked for, and for a stale or doubled id.

    Who has the id of a linked node may be that node after a restart that its old link does not know of yet: it is, if
    that link is silent from now on.
    """
    here = self._hello()
    if peer.node_id == here.node_id:
      if peer.incarnation != here.incarnation:
        self._refusals.note(
            f"another node at {address} has this node's id {peer.node_id}: give one of them another --node-id",
            loud=True
        )
        raise ProtocolError(f"it has this node's id {peer.node_id}: give one of them another --node-id")
      raise _UnwantedError("it is this node itself, or has its id")
    if self._node_ids and peer.node_id not in self._node_ids:
      raise _UnwantedError(f"{peer.node_id} is not in --node-id-filter")
    if expected and peer.node_id != expected:
      raise _UnwantedError(f"there is {peer.node_id}, not {expected}")
    host, links = address.rpartition(":")[0], self._links.get(peer.node_id)
    every = [link for of_node in self._links.values() for link in of_node]
    of_host = sum(link.address.rpartition(":")[0] == host for link in every)
    self._doorkeeper.admit(peer.node_id, len(links or ()), of_host, len(every))
    if not links or links[0].peer.incarnation == peer.incarnation:
      return
    if links[0].peer.incarnation > peer.incarnation or await links[0].alive(_SILENCE_S):
      self._refusals.note(
          f"two nodes call themselves {peer.node_id}: {links[0].address} stays, {address} is refused", loud=True
      )
      raise ProtocolError(
          f"{peer.node_id} is already here from {links[0].address}: give one of the two another --node-id"
      )

  def punish(self, link: Link) -> None:
    """Keep a node away for a while that has sent what no node sends."""
    if link.fault is not None:
      node_id = link.peer.node_id
      self._refusals.note(f"{node_id} at {link.address} was disconnected: {link.fault}", wrong=True, loud=True)
      self._doorkeeper.ban(node_id, FLOOD_BAN_S if isinstance(link.fault, FloodError) else FAULT_BAN_S, str(link.fault))
