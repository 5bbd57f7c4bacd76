"""The ring's members as one node sees them: who is there, what each offers, and how they are linked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from exo.topology.device_capabilities import DeviceCapabilities


@dataclass(frozen=True, slots=True)
class PeerConnection:
  """A directed link, `from_id` to `to_id`; `description` names the interface that carries it."""
  from_id: str
  to_id: str
  description: str = ""


@dataclass(frozen=True)
class Topology:
  """An immutable view. Two nodes with equal views compute equal plans."""
  nodes: Mapping[str, DeviceCapabilities] = field(default_factory=dict)
  connections: frozenset[PeerConnection] = frozenset()
  active_node_id: str | None = None

  def all_nodes(self) -> list[tuple[str, DeviceCapabilities]]:
    """Every node, ordered by id."""
    return sorted(self.nodes.items())

  def without(self, node_ids: Iterable[str]) -> Topology:
    """The same view after these nodes have left."""
    gone = set(node_ids)
    return Topology({n: c
                     for n, c in self.nodes.items() if n not in gone},
                    frozenset(e for e in self.connections if e.from_id not in gone and e.to_id not in gone),
                    None if self.active_node_id in gone else self.active_node_id)

  def only(self, node_ids: Iterable[str]) -> Topology:
    """The same view of these nodes alone."""
    keep = set(node_ids)
    return self.without(n for n in self.nodes if n not in keep)
