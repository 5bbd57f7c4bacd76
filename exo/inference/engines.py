"""Which engines there are and which of them can run here, found out without importing any.

An engine is a folder beside this file with `probe.py` (cheap: looks for packages and devices, says what the engine can run
and what weights take in memory) and `engine.py` (heavy: imported only when a model is loaded with it).
"""

from __future__ import annotations

import importlib
from dataclasses import replace

from exo.errors import ConfigError, EngineUnavailableError, in_words
from exo.inference.engine import InferenceEngine
from exo.inference.engine_names import engine_names
from exo.inference.offer import EngineOffer, in_order


def probe_engine(name: str, quantize: str | None = None) -> EngineOffer:
  """What one engine can do here; `quantize` is what it will round weights to. Raises `ConfigError` for a name that is none.

  An engine whose probe fails is one that cannot run.
  """
  if name not in engine_names():
    raise ConfigError(f"there is no engine {name!r}: choose auto, {', '.join(engine_names())}")
  try:
    offer: EngineOffer = importlib.import_module(f"exo.inference.{name}.probe").probe(quantize)
  except Exception as error:  # noqa: BLE001 - whatever one engine's packages do, the others are there
    return EngineOffer(name, "", "", 0, missing=f"cannot be looked at: {in_words(error)}")
  return offer


def offered_engines(wanted: str, quantize: str | None = None) -> tuple[EngineOffer, ...]:
  """The engines that models are run with, in the order of choice, for `wanted`: a name, or "auto".

  For "auto" those come last that would have to be installed first. Raises `EngineUnavailableError` with what to install where
  none can run, and `ConfigError`.
  """
  if wanted != "auto":
    offer = probe_engine(wanted, quantize)
    if offer.missing:
      raise EngineUnavailableError(f"engine {wanted} cannot run here: it {offer.missing}")
    return (replace(offer, reason=f"chosen by --inference-engine; {offer.reason}"), )
  offers = in_order(offer for name in engine_names() if (offer := probe_engine(name, quantize)).rank >= 0)
  if not offers or offers[0].missing:
    raise EngineUnavailableError(f"no engine can run here ({'; '.join(f'{o.name} {o.missing}' for o in offers)})")
  return offers


def load_engine(name: str) -> InferenceEngine:
  """Import the engine's package and make its one instance. Raises whatever that package's import raises."""
  engine: InferenceEngine = importlib.import_module(f"exo.inference.{name}.engine").create()
  return engine
