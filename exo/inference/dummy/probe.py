"""Whether the dummy engine can run: always, and never by itself."""

from __future__ import annotations

from exo.inference.offer import EngineOffer
from exo.inference.repertoire import Repertoire
from exo.topology.model_size import WeightMemory


def probe(quantize: str | None = None) -> EngineOffer:
  weights = weight_memory(quantize)
  return EngineOffer(
      "dummy",
      "none",
      "it computes nothing",
      -1,
      repertoire=Repertoire(any_model=True),
      weights=weights,
      any_device=True
  )


def weight_memory(quantize: str | None) -> WeightMemory:
  """It holds none."""
  return WeightMemory()
