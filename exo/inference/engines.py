"""Which engines there are and which one this machine should use, found out without importing any of them.

An engine is a folder beside this file with `probe.py` (cheap: looks for packages and devices, says what weights take in
memory) and `engine.py` (heavy: imported only when the engine is chosen).
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass

import exo.inference
from exo.errors import ConfigError, EngineUnavailableError
from exo.inference.engine import InferenceEngine
from exo.topology.ring_plan import WeightMemory


@dataclass(frozen=True, slots=True)
class EngineProbe:
  """What an engine's `probe()` found. `reason` completes "because …"; `preference` above 0 takes part in `auto`."""
  available: bool
  device: str
  reason: str
  preference: int = 0


@dataclass(frozen=True, slots=True)
class EngineChoice:
  name: str
  device: str
  reason: str


def engine_names() -> list[str]:
  """Every engine, by its folder."""
  return sorted(
      module.name for module in pkgutil.iter_modules(exo.inference.__path__)
      if module.ispkg and importlib.util.find_spec(f"exo.inference.{module.name}.probe") is not None
  )


def probe_engine(name: str) -> EngineProbe:
  """Ask one engine's probe. Raises `ConfigError` for a name that is none."""
  if name not in engine_names():
    raise ConfigError(f"there is no engine {name!r}: choose auto, {', '.join(engine_names())}")
  probe: EngineProbe = importlib.import_module(f"exo.inference.{name}.probe").probe()
  return probe


def weight_memory(name: str, quantize: str | None) -> WeightMemory:
  """What a weight takes in this engine's memory, for planning; its probe says so."""
  held: WeightMemory = importlib.import_module(f"exo.inference.{name}.probe").weight_memory(quantize)
  return held


def choose_engine(wanted: str) -> EngineChoice:
  """The engine to use for `wanted`, a name or "auto". Raises `EngineUnavailableError` with what to install."""
  if wanted != "auto":
    probe = probe_engine(wanted)
    if not probe.available:
      raise EngineUnavailableError(f"engine {wanted} cannot run here: {probe.reason}")
    return EngineChoice(wanted, probe.device, f"chosen by --inference-engine; {probe.reason}")
  probes = {name: probe_engine(name) for name in engine_names()}
  usable = {name: probe for name, probe in probes.items() if probe.available and probe.preference > 0}
  if not usable:
    reasons = "; ".join(f"{name}: {probe.reason}" for name, probe in probes.items() if probe.preference >= 0)
    raise EngineUnavailableError(f"no engine can run here ({reasons})")
  name = max(usable, key=lambda n: usable[n].preference)
  return EngineChoice(name, usable[name].device, usable[name].reason)


def load_engine(name: str) -> InferenceEngine:
  """Import the engine's package and make its one instance."""
  engine: InferenceEngine = importlib.import_module(f"exo.inference.{name}.engine").create()
  return engine
