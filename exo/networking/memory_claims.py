"""What other nodes say that they offer: who offers most gets most layers."""

from __future__ import annotations

from dataclasses import replace

from exo.networking.peer_messages import Hello
from exo.networking.refusals import Refusals

MOST_OF_STRANGERS_MB = 2**21  # 2 TB: what a machine of a home or a lab may have


class MemoryClaims:
  """Believed up to `most_mb`, all where that is None. Beyond it a claim is not cut but ignored: cut, it would still be the
  largest."""
  def __init__(self, most_mb: int | None, refusals: Refusals) -> None:
    self._most_mb, self._refusals = most_mb, refusals

  def believed(self, peer: Hello) -> Hello:
    """What it says of itself, offering nothing where its claim cannot be."""
    claim = peer.capabilities.memory
    if self._most_mb is None or claim <= self._most_mb:
      return peer
    self._refusals.note(
        f"{peer.node_id} says that it offers {claim} MB, which is not believed: it gets no layers. Start all nodes with a "
        f"cluster key (`exo key new`), or this one with --max-peer-memory {claim}, if it is so",
        about=f"memory {peer.node_id}",
        wrong=True,
        loud=True
    )
    workers = tuple(replace(worker, memory_mb=0) for worker in peer.workers)
    return replace(peer, capabilities=replace(peer.capabilities, memory=0), workers=workers)
