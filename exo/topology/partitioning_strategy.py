"""How a model's layers are divided among nodes: the interface, and the step from fractions to layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from exo.inference.shard import Shard
from exo.topology.topology import Topology


@dataclass(frozen=True, slots=True)
class Partition:
  """A node's part [start, end) of the ring, as fractions of [0, 1]."""
  node_id: str
  start: float
  end: float


class PartitioningStrategy(ABC):
  """Decides each node's fraction of the ring from the topology alone."""
  @abstractmethod
  def partition(self, topology: Topology) -> list[Partition]:
    """Partitions in ring order that cover [0, 1] without gap or overlap; the last ends at exactly 1.

    Pure: the same topology gives the same partitions on every node. An empty topology gives no partitions.
    """


def map_partitions_to_shards(partitions: Sequence[Partition], n_layers: int, model_id: str) -> list[Shard]:
  """The layers of each partition, every layer exactly once, in ring order.

  A partition too small to hold a layer yields no shard, so there may be fewer shards than partitions: a plan that must
  know which node has which shard uses `layer_counts`.
  """
  shards, start = [], 0
  for count in layer_counts(partitions, n_layers):
    if count:
      shards.append(Shard(model_id, start, start + count - 1, n_layers))
      start += count
  return shards


def layer_counts(partitions: Sequence[Partition], n_layers: int) -> list[int]:
  """How many layers each partition gets: its end, rounded to whole layers, less the end of the one before."""
  counts, done = [], 0
  for i, partition in enumerate(partitions):
    end = n_layers if i == len(partitions) - 1 else min(n_layers, round(partition.end * n_layers))
    counts.append(max(0, end - done))
    done = max(done, end)
  return counts
