"""All families that there are: the files beside this one."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path

from exo.inference.families.family import Family

_NO_FAMILIES = ("family", "catalogue")


@cache
def _by_architecture() -> dict[str, Family]:
  names = [found.name for found in pkgutil.iter_modules([str(Path(__file__).parent)]) if found.name not in _NO_FAMILIES]
  modules = [importlib.import_module(f"exo.inference.families.{name}") for name in names]
  return {architecture: family for of in modules for family in of.FAMILIES for architecture in family.architectures}


def family_of(architecture: str) -> Family | None:
  """By GGUF's name of an architecture; None for one that no test has compared."""
  return _by_architecture().get(architecture)
