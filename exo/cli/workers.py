"""Makes a node's workers from its configuration, and what others are told of them."""

from __future__ import annotations

from collections.abc import Sequence

from exo.config import Config
from exo.inference.offer import EngineOffer
from exo.made_files import made_files_dir
from exo.networking.peer_messages import WorkerOffer
from exo.topology.ring_plan import WorkerId, names_of
from exo.worker.devices import engines_by_device, offers_mb
from exo.worker.engine_speeds import EngineSpeeds
from exo.worker.worker import Worker, WorkerOptions

_MB = 2**20


def make_workers(config: Config, node_id: str, offers: Sequence[EngineOffer],
                 speeds: EngineSpeeds) -> tuple[Worker, ...]:
  """One for each device, its engines in the order of what they were measured to do there.

  Blocks for up to a few seconds. Raises `ConfigError` for devices that no engine can use.
  """
  engines = {name: speeds.ordered(name, on) for name, on in engines_by_device(offers, config.devices).items()}
  kv_bytes = None if config.kv_cache_memory is None else config.kv_cache_memory * _MB
  options = WorkerOptions(
      kv_bytes, config.quantize, config.kv_type, config.weights, made_files_dir(config.exo_home), config.tinygrad_debug
  )
  memory_mb = offers_mb(list(engines), config.max_memory)
  labels = names_of(WorkerId(node_id, name) for name in engines)
  return tuple(
      Worker(name, labels[WorkerId(node_id, name)], engines[name], mb * _MB, options)
      for name, mb in zip(engines, memory_mb, strict=True)
  )


def offers_of(workers: Sequence[Worker]) -> tuple[WorkerOffer, ...]:
  """What a node's greeting says of them."""
  return tuple(WorkerOffer(worker.name, worker.engines.offers, worker.offered_bytes // _MB) for worker in workers)
