"""Whether the dummy engine can run: always, and never by itself."""

from __future__ import annotations

from exo.inference.offer import EngineOffer
from exo.inference.repertoire import Repertoire
from exo.topology.weight_memory import WeightMemory

_NO_WEIGHTS = WeightMemory(weightless=True, cache=0.125)  # its caches hold a number for each token of a layer
_ANY = Repertoire(any_model=True)


def probe(quantize: str | None = None) -> EngineOffer:
  return EngineOffer("dummy", "none", "it computes nothing", -1, repertoire=_ANY, weights=_NO_WEIGHTS, any_device=True)
