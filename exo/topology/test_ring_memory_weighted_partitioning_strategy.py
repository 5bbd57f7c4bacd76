"""Run directly (`python exo/topology/test_ring_memory_weighted_partitioning_strategy.py`) or under pytest."""

import unittest

from exo.topology.device_capabilities import DeviceCapabilities, DeviceFlops
from exo.topology.partitioning_strategy import Partition
from exo.topology.ring_memory_weighted_partitioning_strategy import RingMemoryWeightedPartitioningStrategy
from exo.topology.topology import Topology


def _topology(**memories: int) -> Topology:
  return Topology({
      node_id: DeviceCapabilities("Test", "Test chip", memory, DeviceFlops())
      for node_id, memory in memories.items()
  })


class TestRingMemoryWeightedPartitioningStrategy(unittest.TestCase):
  def setUp(self) -> None:
    self.strategy = RingMemoryWeightedPartitioningStrategy()

  def test_three_nodes(self) -> None:
    partitions = self.strategy.partition(_topology(node1=3000, node2=1000, node3=6000))
    self.assertEqual(
        partitions, [Partition("node3", 0.0, 0.6),
                     Partition("node1", 0.6, 0.9),
                     Partition("node2", 0.9, 1.0)]
    )

  def test_fractions_are_rounded_and_the_last_end_is_exactly_one(self) -> None:
    partitions = self.strategy.partition(_topology(a=1, b=1, c=1))
    self.assertEqual([(p.start, p.end) for p in partitions], [(0.0, 0.33333), (0.33333, 0.66667), (0.66667, 1.0)])

  def test_equal_memories_are_ordered_by_id(self) -> None:
    self.assertEqual([p.node_id for p in self.strategy.partition(_topology(a=5, c=5, b=5))], ["c", "b", "a"])

  def test_no_nodes_and_no_memory(self) -> None:
    self.assertEqual(self.strategy.partition(Topology()), [])
    self.assertEqual([p.end for p in self.strategy.partition(_topology(a=0, b=0))], [0.5, 1.0])


if __name__ == "__main__":
  unittest.main()
