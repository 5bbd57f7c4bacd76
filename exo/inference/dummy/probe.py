"""Whether the dummy engine can run: always, and never by itself."""

from __future__ import annotations

from exo.inference.engines import EngineProbe
from exo.topology.ring_plan import WeightMemory


def probe() -> EngineProbe:
  return EngineProbe(True, "none", "it computes nothing", preference=-1)


def weight_memory(quantize: str | None) -> WeightMemory:
  """It holds none."""
  return WeightMemory()
