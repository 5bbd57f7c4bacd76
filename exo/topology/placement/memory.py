"""Layers in proportion to the memory that each worker offers, the largest first."""

from __future__ import annotations

from exo.topology.device_capabilities import DeviceCapabilities
from exo.topology.layer_fit import fit_layers
from exo.topology.partitioning_strategy import layer_counts
from exo.topology.ring_memory_weighted_partitioning_strategy import RingMemoryWeightedPartitioningStrategy
from exo.topology.ring_plan import RingPlan
from exo.topology.ring_state import ModelNeeds, RingState
from exo.topology.topology import Topology

_MB = 2**20


def place(model: ModelNeeds, ring: RingState) -> RingPlan:
  # names for the partitions that sort as the workers do, by node and then by worker
  able = {f"{i:06}": worker for i, worker in enumerate(ring.able_for(model))}
  topology = Topology({name: DeviceCapabilities(memory=worker.offered_bytes // _MB) for name, worker in able.items()})
  partitions = RingMemoryWeightedPartitioningStrategy().partition(topology)
  workers = [able[partition.node_id] for partition in partitions]
  counts = fit_layers(model, ring, workers, layer_counts(partitions, model.n_layers))
  return ring.plan(model, zip(workers, counts, strict=True))
