"""Makes a node process sick from outside, for `scripts/faults_chaos.py`: found by way of PYTHONPATH, never by the package.

The file that EXO_SICK names holds, while there is one, what the steps of this node's stages do: `nan`, `inf` or `huge` puts such
numbers into what they give, `raise` raises, each in some of the steps; `slow` waits.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

_ENGINES = "exo.inference.engines"
_NUMBERS = {"nan": float("nan"), "inf": float("inf"), "huge": 3e38}
_SHARE = float(os.environ.get("EXO_SICK_SHARE", "0.1"))  # of the steps


def _how() -> str:
  try:
    return Path(os.environ["EXO_SICK"]).read_text()
  except OSError:
    return ""


def _sick(step: Any) -> Any:
  def wrapped(batch: Any) -> Any:
    how = _how()
    if how == "slow":
      time.sleep(0.05)
    struck = bool(how) and random.random() < _SHARE
    if struck and how == "raise":
      raise MemoryError("a sick step")
    out = step(batch)
    if struck and how in _NUMBERS and out.size:
      out = out.copy()
      out.reshape(-1)[random.randrange(out.size)] = _NUMBERS[how]
    return out

  return wrapped


def _sicken(engines: ModuleType) -> None:
  healthy = engines.load_engine

  def load_engine(name: str) -> Any:
    import dataclasses
    engine = healthy(name)

    def load(*arguments: Any) -> Any:
      stage = engine.load(*arguments)
      stage.step = _sick(stage.step)
      return stage

    return dataclasses.replace(engine, load=load)

  engines.load_engine = load_engine


class _Finder(importlib.abc.MetaPathFinder):
  def find_spec(
      self,
      name: str,
      path: Sequence[str] | None,
      target: ModuleType | None = None
  ) -> importlib.machinery.ModuleSpec | None:
    if name != _ENGINES:
      return None
    spec = importlib.machinery.PathFinder.find_spec(name, path)
    assert spec is not None and spec.loader is not None
    run = spec.loader.exec_module

    def exec_module(module: ModuleType) -> None:
      run(module)
      _sicken(module)

    spec.loader.exec_module = exec_module  # type: ignore[method-assign]
    return spec


if "EXO_SICK" in os.environ:
  sys.meta_path.insert(0, _Finder())
