"""Where nodes may be reached: what discovery and peers said, as long as they keep saying it. Bounded, and pure.

Whoever calls tells the time, in seconds of one clock.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field

from exo.networking.mesh import PeerCandidate

# whatever beacons and strangers say
_MAX_NODES, _MAX_ADDRESSES = 256, 16
_MAX_NODES_OF_HOST, _MAX_PORTS_OF_HOST = 64, 4  # of one address, so that no other is crowded out


@dataclass
class KnownNode:
  """One node's addresses; `node_id` is who answered at an address that came without one.

  `dialing` while somebody tries them; `tried` when; `proven` are those where a node was met. A better route than the one in use
  is not tried before `try_better_s`.
  """
  candidates: dict[tuple[str, int], tuple[PeerCandidate, float]] = field(default_factory=dict)
  tried: dict[tuple[str, int], float] = field(default_factory=dict)
  proven: set[tuple[str, int]] = field(default_factory=set)
  dialing: bool = False
  node_id: str = ""
  try_better_s: float = 0.0

  @property
  def nameless(self) -> bool:
    """One of the addresses came without the node's id."""
    return any(not candidate.node_id for candidate, _ in self.candidates.values())

  def best_first(self) -> list[PeerCandidate]:
    """What may be tried now, by priority; of equal ones IPv4 first. An address that nobody has been met at is tried once
    each time that somebody says it: a datagram's sender may have made it up."""
    found = [
        candidate for place, (candidate, said_s) in self.candidates.items()
        if place in self.proven or said_s > self.tried.get(place, float("-inf"))
    ]
    return sorted(found, key=lambda candidate: (-candidate.priority, ":" in candidate.host))


class AddressBook:
  """All nodes that are known, by id, or by "host:port" where an address alone is."""
  def __init__(self, timeout_s: float) -> None:
    self._timeout_s = timeout_s
    self.nodes: dict[str, KnownNode] = {}

  def note(self, key: str, candidate: PeerCandidate, linked: Container[str], now_s: float) -> KnownNode | None:
    """Remember an address; None where the node, or the address, has too many.

    Raises `OverflowError` when too many nodes are announced.

    Nodes that nobody announces any more give way, unless they are `linked`.
    """
    if key not in self.nodes and not candidate.configured and self._crowded(candidate.host, linked):
      return None
    if key not in self.nodes and len(self.nodes) >= _MAX_NODES:
      oldest = now_s - self._timeout_s
      for other, known in list(self.nodes.items()):
        if not known.dialing and other not in linked and all(at < oldest for _, at in known.candidates.values()):
          del self.nodes[other]
      if len(self.nodes) >= _MAX_NODES:
        raise OverflowError(f"{_MAX_NODES} nodes are being announced: more are not listened to")
    known = self.nodes.setdefault(key, KnownNode())
    place = candidate.host, candidate.port
    if place not in known.candidates:
      same = [other for other in known.candidates if other[0] == candidate.host]
      if len(same) >= _MAX_PORTS_OF_HOST:
        unproven = [other for other in same if other not in known.proven]
        if not unproven:
          return None
        del known.candidates[min(unproven, key=lambda other: known.candidates[other][1])]
      elif len(known.candidates) >= _MAX_ADDRESSES:
        return None
    known.candidates[place] = (candidate, now_s)
    return known

  def _crowded(self, host: str, linked: Container[str]) -> bool:
    """Whether so many nodes are said to be at an address that nobody has been met at that no more are believed."""
    strangers = (known for key, known in self.nodes.items() if key not in linked and not known.proven)
    return sum(any(place[0] == host for place in known.candidates) for known in strangers) >= _MAX_NODES_OF_HOST

  def forget_old(self, known: KnownNode, now_s: float) -> None:
    """Leave out what nobody has said for too long."""
    known.candidates = {k: v for k, v in known.candidates.items() if now_s - v[1] < self._timeout_s}
    known.tried = {k: v for k, v in known.tried.items() if k in known.candidates}
    known.proven &= known.candidates.keys()
