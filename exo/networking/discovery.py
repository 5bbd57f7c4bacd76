"""How nodes are found: the interface of all discovery modules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from exo.networking.mesh import PeerCandidate
from exo.networking.peer_messages import Hello


class Discovery(ABC):
  """Finds addresses of other nodes and offers them, again and again while they are seen."""
  @abstractmethod
  async def start(self, local: Hello, offer: Callable[[PeerCandidate], None]) -> None:
    """Begin to announce `local` and to offer what is found. Raises `ConfigError` for settings that cannot work."""

  def refusals(self) -> Sequence[str]:
    """Why nodes that were seen were not offered, latest last."""
    return ()

  def problems(self) -> Sequence[str]:
    """Those of them that are wrong now, and not as this node's user wants it."""
    return ()

  @abstractmethod
  async def stop(self) -> None:
    """Stop announcing; no task or socket is left."""


class NoDiscovery(Discovery):
  """Finds nobody: a node alone."""
  async def start(self, local: Hello, offer: Callable[[PeerCandidate], None]) -> None:
    pass

  async def stop(self) -> None:
    pass
