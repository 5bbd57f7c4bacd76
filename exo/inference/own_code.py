"""Repositories that bring code of their own. It is never run; where a library here knows the type, nobody needs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exo.inference.families.config_form import is_described, text_type_of
from exo.inference.mlx.model_types import modules, package_folder


def needs_own_code(config: Mapping[str, Any]) -> bool:
  """Whether a `config.json` names code of its repository, and no engine has the type that it is for."""
  if not (config.get("auto_map") or config.get("trust_remote_code")):
    return False
  text = config.get("text_config")
  inner = text.get("model_type") if isinstance(text, Mapping) else None
  kinds = [str(kind) for kind in (config.get("model_type"), inner) if kind]
  package = package_folder()
  known = modules(package) if package is not None else {}
  return not any(is_described(text_type_of(kind)) or kind in known for kind in kinds)
