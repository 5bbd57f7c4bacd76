"""All families that there are: the files beside this one."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

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


def why_uncut(metadata: Mapping[str, Any]) -> str:
  """Why a model with these metadata of a GGUF file can only be run as a whole; "" where it can be cut."""
  architecture = str(metadata.get("general.architecture", ""))
  family = family_of(architecture)
  if family is None:
    return f"nobody has compared parts of a {architecture!r} with the whole"
  if family.cut.refused:
    return f"a {architecture!r} cannot be cut: {family.cut.refused}"
  if metadata.get(f"{architecture}.block_count") in family.cut.same:
    return "llama.cpp would take as much memory for a part of it as for the whole"
  if metadata.get(f"{architecture}.embedding_length_per_layer_input"):
    return "every layer takes embeddings of the tokens"
  return "layers share keys and values" if metadata.get(f"{architecture}.attention.shared_kv_layers") else ""
