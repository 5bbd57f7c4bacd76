"""Workers that no plan of a model is made with, since none of their engines can run it: what is shown beside ailments."""

from __future__ import annotations

from collections.abc import Mapping

from exo.networking.peer_messages import Ailment
from exo.oldest import forget_oldest
from exo.orchestration.model_catalog import ModelInfo
from exo.topology.ring_plan import WorkerId
from exo.topology.ring_state import RingState

_MAX_MODELS = 8  # on a screen


class LeftOut:
  """Of the models that were planned last, the workers as they were then."""
  def __init__(self) -> None:
    self._by_model: dict[str, dict[WorkerId, Ailment]] = {}

  def note(self, model: ModelInfo, ring: RingState, sick: Mapping[WorkerId, str]) -> bool:
    """Remember which workers of the ring cannot run a model, for other reasons than `sick` gives; whether that is all of them."""
    found = {
        worker.by: Ailment(model.id, model.fingerprint, worker.cannot, worker.worker)
        for worker in ring.workers if worker.cannot is not None and worker.cannot != sick.get(worker.by)
    }
    self._by_model.pop(model.id, None)
    if found:
      forget_oldest(self._by_model, _MAX_MODELS - 1)
      self._by_model[model.id] = found
    return len(found) == len(ring.workers)

  def told(self, node_id: str) -> tuple[Ailment, ...]:
    """What a node takes no part in."""
    return tuple(
        ailment for found in self._by_model.values() for worker, ailment in found.items() if worker.node_id == node_id
    )
