"""Partitions in proportion to each node's memory."""

from __future__ import annotations

from exo.topology.partitioning_strategy import Partition, PartitioningStrategy
from exo.topology.topology import Topology


class RingMemoryWeightedPartitioningStrategy(PartitioningStrategy):
  """Nodes by (memory, id), largest first; fractions rounded to five decimals; the last end is exactly 1.

  Nodes that all tell no memory share evenly.
  """
  def partition(self, topology: Topology) -> list[Partition]:
    nodes = sorted(topology.all_nodes(), key=lambda node: (node[1].memory, node[0]), reverse=True)
    weights = [max(0, capabilities.memory) for _, capabilities in nodes]
    if not any(weights):
      weights = [1] * len(nodes)
    total, done, start, partitions = sum(weights), 0, 0.0, []
    for i, ((node_id, _), weight) in enumerate(zip(nodes, weights, strict=True)):
      done += weight
      end = 1.0 if i == len(nodes) - 1 else round(done / total, 5)
      partitions.append(Partition(node_id, start, end))
      start = end
    return partitions
