"""The other nodes as a source of models: what downloading needs of them, whoever carries the messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from exo.download.manifest import Manifest, RepoFile
from exo.errors import PeerUnreachableError
from exo.inference.weights.block_map import Span

READ_BYTES = 1 << 19  # the most that one read asks for

Held = Mapping[str, Mapping[str, Sequence[Span]]]  # node: file: spans of whole blocks


@dataclass(frozen=True, slots=True)
class RangeRead:
  """Bytes of a file that begin at a block, and the SHA-256 of each block as the other node keeps them."""
  data: bytes
  digests: bytes


class Neighbours(Protocol):
  async def manifests(self, model_id: str) -> Mapping[str, Manifest]:
    """By node, what each holds of the model, at least its configuration. Never raises; waits a few seconds at most."""

  async def held(self, manifest: Manifest, files: Sequence[RepoFile]) -> Held:
    """Which bytes of these very files each node has. Never raises."""

  async def read(self, node_id: str, manifest: Manifest, file: RepoFile, start: int, end: int) -> RangeRead:
    """Bytes [start, end), at most `READ_BYTES` or one block of them. Raises `ExoError` when the node does not give them."""


class NoNeighbours:
  """A node by itself."""
  async def manifests(self, model_id: str) -> Mapping[str, Manifest]:
    return {}

  async def held(self, manifest: Manifest, files: Sequence[RepoFile]) -> Held:
    return {}

  async def read(self, node_id: str, manifest: Manifest, file: RepoFile, start: int, end: int) -> RangeRead:
    raise PeerUnreachableError(f"there is no link to {node_id}", node=node_id)
