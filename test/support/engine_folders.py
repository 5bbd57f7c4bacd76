"""Engines that a test adds at run time: folders beside exo's own."""

from __future__ import annotations

from pathlib import Path

import pytest

import exo.inference

_PROBE = """
from exo.inference.offer import EngineOffer
from exo.inference.repertoire import Repertoire

def probe(quantize=None):
  return EngineOffer({name!r}, "test", "a test wants it", {rank}, repertoire=Repertoire(any_model=True))
"""


def add_engine(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, rank: int, engine: str) -> None:
  """An engine that runs any model; `engine` is the source of its `engine.py`. It is gone after the test."""
  package = folder / name
  package.mkdir(parents=True)
  (package / "__init__.py").write_text("")
  (package / "probe.py").write_text(_PROBE.format(name=name, rank=rank))
  (package / "engine.py").write_text(engine)
  if str(folder) not in exo.inference.__path__:
    monkeypatch.setattr(exo.inference, "__path__", [*exo.inference.__path__, str(folder)])
