"""Placeholder"""
from exo.inference.engines import EngineProbe


def probe() -> EngineProbe:
  return EngineProbe(True, "CPU", "x")
