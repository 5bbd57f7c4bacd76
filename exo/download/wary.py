"""The other nodes without those that gave false bytes a while ago."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from exo.download.manifest import Manifest, RepoFile
from exo.download.neighbours import Held, Neighbours, RangeRead
from exo.errors import ModelFilesError
from exo.log import log

REFUSED_S = 600.0


class WaryNeighbours:
  """Neighbours, none of which is asked for files within `REFUSED_S` of having been caught with false ones."""
  def __init__(self, neighbours: Neighbours) -> None:
    self._neighbours = neighbours
    self._refused_at: dict[str, float] = {}

  def refuse(self, node_id: str, why: str) -> None:
    log(0, "%s gave false bytes: %s. It is asked for no files for %d minutes", node_id, why, REFUSED_S // 60)
    now = time.monotonic()
    self._refused_at = {n: at for n, at in self._refused_at.items() if now - at < REFUSED_S} | {node_id: now}

  def refuses(self, node_id: str) -> bool:
    return time.monotonic() - self._refused_at.get(node_id, float("-inf")) < REFUSED_S

  async def manifests(self, model_id: str) -> Mapping[str, Manifest]:
    found = await self._neighbours.manifests(model_id)
    return {node_id: manifest for node_id, manifest in found.items() if not self.refuses(node_id)}

  async def held(self, manifest: Manifest, files: Sequence[RepoFile]) -> Held:
    found = await self._neighbours.held(manifest, files)
    return {node_id: spans for node_id, spans in found.items() if not self.refuses(node_id)}

  async def read(self, node_id: str, manifest: Manifest, file: RepoFile, start: int, end: int) -> RangeRead:
    if self.refuses(node_id):
      raise ModelFilesError(f"{node_id} gave false bytes a while ago", node=node_id)
    return await self._neighbours.read(node_id, manifest, file, start, end)
