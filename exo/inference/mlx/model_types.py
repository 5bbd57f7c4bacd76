"""Which architectures the installed mlx-lm has: each is a file of its package, read here as text and not run."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from exo.inference.families.catalogue import each_with_mlx

_MODEL, _ARGUMENTS = re.compile(rb"\bModel\b"), re.compile(rb"\bModelArgs\b")


def package_folder() -> Path | None:
  """Where `mlx_lm` is installed; None where it is not."""
  module = sys.modules.get("mlx_lm")
  spec = importlib.util.find_spec("mlx_lm") if module is None else module.__spec__
  folders = [] if spec is None else list(spec.submodule_search_locations or ())
  return Path(folders[0]) if folders else None


@functools.cache
def modules(package: Path) -> Mapping[str, str]:
  """By model type, the name of its file in `mlx_lm.models`: its own, or another's by mlx-lm's table of those that share one."""
  own = {
      file.stem: file.stem
      for file in (package / "models").glob("*.py")
      if _MODEL.search(text := file.read_bytes()) and _ARGUMENTS.search(text)
  }
  others = _aliases(package) | {kind: facts.called for kind, facts in each_with_mlx() if facts.called}
  return own | {kind: name for kind, name in others.items() if name in own}


def _aliases(package: Path) -> dict[str, str]:
  for node in ast.parse((package / "utils.py").read_text("utf-8")).body:
    if isinstance(node,
                  ast.Assign) and any(isinstance(t, ast.Name) and t.id == "MODEL_REMAPPING" for t in node.targets):
      return {str(key): str(value) for key, value in ast.literal_eval(node.value).items()}
  return {}
