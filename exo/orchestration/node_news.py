"""What a node tells the others of itself in every heartbeat."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from exo.errors import one_line, without_paths
from exo.machine_sensors import Sensed
from exo.networking.mesh import PeerStatus
from exo.networking.peer_messages import Heartbeat, PeerLink, PlanRoom, ShardMemory, WorkerBeat
from exo.orchestration.meter import Meter
from exo.orchestration.plan_host import PlanHost
from exo.system_figures import own_memory
from exo.worker.shard_loader import LoadedShard
from exo.worker.worker import Worker

_MB = 2**20
_LONGEST_PROBLEM = 400


def rooms_of(node_id: str, plans: PlanHost, peers: Mapping[str, PeerStatus]) -> tuple[tuple[str, PlanRoom], ...]:
  """Of all plans that are open, as far as node `node_id` knows: the node where each begins, and what it told of it last."""
  found = [(node_id, room) for room in plans.rooms]
  for other, peer in sorted(peers.items()):
    found += [(other, room) for room in (peer.heartbeat.rooms if peer.heartbeat else ())]
  return tuple(found)


def heartbeat_of(
    plans: PlanHost, usable_mb: Mapping[str, int], meter: Meter, peers: Mapping[str, PeerStatus], leaving: bool,
    sensed: Sensed
) -> Heartbeat:
  """`usable_mb` are the MB that each of its workers could use now, by name."""
  return Heartbeat(
      0,
      False,
      plans.busy,
      tuple(_worker_beat(plans, worker, usable_mb[worker.name]) for worker in plans.workers),
      meter.load,
      meter.frames,
      tuple(PeerLink(node_id, peer.rtt_ms, peer.interface, peer.bytes_per_s) for node_id, peer in peers.items()),
      time.process_time(),
      own_memory() // _MB,
      plans.paces,
      leaving,
      ailments=plans.ailments(),
      rooms=plans.rooms,
      temperature_c=sensed.temperature_c,
      power_w=sensed.power_w
  )


def _worker_beat(plans: PlanHost, worker: Worker, usable_mb: int) -> WorkerBeat:
  return WorkerBeat(
      worker.name, usable_mb, worker.loaded_bytes // _MB, plans.shards(worker),
      without_paths(one_line(worker.health.problem or ""))[:_LONGEST_PROBLEM], worker.engines.news,
      plans.residents.pinned_mb(worker), tuple(worker.loader.loading.items()),
      tuple(map(_memory_of, plans.loaded(worker)))
  )


def _memory_of(shard: LoadedShard) -> ShardMemory:
  figures = (*shard.planned, *shard.measured)
  return ShardMemory(shard.engine, *(math.ceil(n_bytes / _MB) for n_bytes in figures))
