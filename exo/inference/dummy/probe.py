"""Whether the dummy engine can run: always, and never by itself."""

from __future__ import annotations

from exo.inference.offer import EngineOffer
from exo.inference.repertoire import Repertoire


def probe(quantize: str | None = None) -> EngineOffer:
  return EngineOffer("dummy", "none", "it computes nothing", -1, repertoire=Repertoire(any_model=True), any_device=True)
