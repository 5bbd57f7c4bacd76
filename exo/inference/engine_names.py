"""Which engines there are, by their folders; cheap enough for `--help`, since nothing of an engine is imported."""

from __future__ import annotations

import importlib.util
import pkgutil

import exo.inference


def engine_names() -> list[str]:
  """Every engine, by its folder."""
  return sorted(
      module.name for module in pkgutil.iter_modules(exo.inference.__path__)
      if module.ispkg and importlib.util.find_spec(f"exo.inference.{module.name}.probe") is not None
  )
