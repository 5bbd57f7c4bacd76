"""Discovery from a file, for networks that no broadcast crosses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from exo.errors import ConfigError
from exo.log import log, say
from exo.networking.discovery import Discovery
from exo.networking.manual.network_config import ConfiguredPeer, read_network_config
from exo.networking.mesh import PeerCandidate
from exo.networking.peer_messages import Hello
from exo.tasks import TaskOwner

REREAD_S = 5.0
_OFFER_S = 1.0


class ManualDiscovery(Discovery):
  """Offers the file's peers again and again; a changed file counts within seconds, a broken one leaves the old in force."""
  def __init__(self, path: Path, node_ids: tuple[str, ...] = ()) -> None:
    self._path, self._node_ids = path, node_ids
    self._tasks = TaskOwner("manual discovery")

  async def start(self, local: Hello, offer: Callable[[PeerCandidate], None]) -> None:
    peers = read_network_config(self._path)
    if local.node_id not in {peer.node_id for peer in peers}:
      log(1, "%s does not name this node (%s): the others cannot dial it from that file", self._path, local.node_id)
    self._tasks.spawn(self._offer_all(local.node_id, offer, peers), "offers")

  async def stop(self) -> None:
    await self._tasks.close()

  async def _offer_all(
      self, local_id: str, offer: Callable[[PeerCandidate], None], peers: list[ConfiguredPeer]
  ) -> None:
    loop, told = asyncio.get_running_loop(), ""
    read_at = loop.time()
    while True:
      for peer in peers:
        if peer.node_id != local_id and (not self._node_ids or peer.node_id in self._node_ids):
          offer(PeerCandidate(peer.node_id, peer.address, peer.port, interface="manual", configured=True))
      await asyncio.sleep(_OFFER_S)
      if loop.time() - read_at >= REREAD_S:
        read_at = loop.time()
        try:
          peers, told = await asyncio.to_thread(read_network_config, self._path), ""
        except ConfigError as error:
          if str(error) != told:
            told = str(error)
            say(f"kept the peers of before: {error}")
