"""Workers, and what a node with the dummy engine says of them."""

from __future__ import annotations

from collections.abc import Sequence

from exo.inference.engines import probe_engine
from exo.networking.peer_messages import WorkerOffer
from exo.topology.ring_plan import WorkerId, names_of
from exo.worker.worker import Worker, WorkerOptions

_MB = 2**20
DUMMY = (probe_engine("dummy"), )
_OPTIONS = WorkerOptions()


def dummy_offers(memory_mb: int, devices: Sequence[str] = ("cpu", )) -> tuple[WorkerOffer, ...]:
  """So much memory, divided evenly."""
  return tuple(WorkerOffer(name, DUMMY, memory_mb // len(devices)) for name in devices)


def make_workers(node_id: str, offers: Sequence[WorkerOffer], options: WorkerOptions = _OPTIONS) -> list[Worker]:
  """Those that a node says it has."""
  labels = names_of(WorkerId(node_id, offer.name) for offer in offers)
  return [
      Worker(offer.name, labels[WorkerId(node_id, offer.name)], offer.engines, offer.memory_mb * _MB, options)
      for offer in offers
  ]
