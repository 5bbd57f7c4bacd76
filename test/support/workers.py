"""Workers of the dummy engine, and what a node says of them."""

from __future__ import annotations

from collections.abc import Sequence

from exo.inference.engines import probe_engine
from exo.networking.messages import WorkerOffer
from exo.worker.worker import Worker, WorkerOptions

_MB = 2**20
DUMMY = (probe_engine("dummy"), )


def dummy_offers(memory_mb: int, devices: Sequence[str] = ("cpu", )) -> tuple[WorkerOffer, ...]:
  """So much memory, divided evenly."""
  return tuple(WorkerOffer(name, DUMMY, memory_mb // len(devices)) for name in devices)


def dummy_workers(node_id: str, memory_mb: int, devices: Sequence[str] = ("cpu", )) -> list[Worker]:
  return [
      Worker(
          offer.name, node_id if len(devices) == 1 else f"{node_id}/{offer.name}", DUMMY, offer.memory_mb * _MB,
          WorkerOptions()
      ) for offer in dummy_offers(memory_mb, devices)
  ]
