"""All families that there are: the files beside this one."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from exo.inference.families.family import Family, Line, MlxLm

_FOLDERS = (Path(__file__).parent, )
_NO_FAMILIES = ("family", "catalogue", "config_form", "known_deviations")


@cache
def families() -> tuple[Family, ...]:
  """In the order of their files' names."""
  names = [found.name for found in pkgutil.iter_modules(list(map(str, _FOLDERS))) if found.name not in _NO_FAMILIES]
  modules = [importlib.import_module(f"exo.inference.families.{name}") for name in sorted(names)]
  return tuple(family for of in modules for family in of.FAMILIES)


@cache
def _by_architecture() -> dict[str, Family]:
  return {architecture: family for family in families() for architecture in family.architectures}


@cache
def _by_type() -> dict[str, Family]:
  return {kind: family for family in families() for kind in family.types}


def family_of(architecture: str) -> Family | None:
  """By GGUF's name of an architecture; None for one that no test has compared."""
  return _by_architecture().get(architecture)


def family_of_type(model_type: str) -> Family | None:
  """By the type of a language model in `config.json`; None for one that has no file here, of which a library's own word counts."""
  return _by_type().get(model_type)


def mlx_facts(model_type: str) -> MlxLm:
  """What mlx-lm's model of a type wants or lacks; nothing that is known, for most."""
  family = _by_type().get(model_type)
  return MlxLm() if family is None else family.mlx


def line_of(model_type: str) -> Line | None:
  """How a type differs from Llama; None for one that is no member of that line."""
  family = _by_type().get(model_type)
  return None if family is None else family.line


def line_types(experts: bool = True) -> tuple[str, ...]:
  """Types of the Llama line, with such as have experts or without."""
  found = [kind for kind, family in _by_type().items() if family.line and (experts or not family.line.experts)]
  return tuple(sorted(found))


@cache
def translated() -> Mapping[str, str]:
  """By GGUF's architecture, the type as which a file's tensors are read by their names in the Llama line."""
  return {family.architectures[0]: family.types[0] for family in families() if family.line and family.architectures}


def converted_as(model_type: str) -> str:
  """The architecture of another family that a converter to GGUF gives models of this type; "" where it has one of its own."""
  family = _by_type().get(model_type)
  return "" if family is None else family.converted_as


def each_with_mlx() -> Iterator[tuple[str, MlxLm]]:
  """Types with what is known of mlx-lm's model of theirs."""
  for kind, family in _by_type().items():
    yield kind, family.mlx


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
  return _crosses(
      metadata.get(f"{architecture}.embedding_length_per_layer_input"),
      metadata.get(f"{architecture}.attention.shared_kv_layers")
  )


def why_config_uncut(text: Mapping[str, Any]) -> str:
  """The same of a language model with this `config.json`, as far as that alone tells."""
  return _crosses(text.get("hidden_size_per_layer_input"), text.get("num_kv_shared_layers"))


def _crosses(inputs_of_layers: Any, sharing_layers: Any) -> str:
  if inputs_of_layers:
    return "every layer takes embeddings of the tokens"
  return "layers share keys and values" if sharing_layers else ""
