"""Bringing MLX and the model files of mlx-lm into this process, in the right order and without their side effects."""

from __future__ import annotations

import ast
import ctypes
import functools
import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from exo.errors import UnsupportedModelError
from exo.inference.mlx.probe import BLAS_ADVICE, find_blas
from exo.log import log

_blas: list[ctypes.CDLL] = []


@functools.cache
def load_blas() -> None:
  """Load an optimized BLAS with global symbols, so that MLX finds them before those of the one it comes with.

  MLX's wheel for Linux brings the reference BLAS: 7 GFLOP/s on a core where OpenBLAS has 113. Must run before the first
  product; does nothing on macOS, whose own library is fast.
  """
  if sys.platform == "darwin":
    return
  name = find_blas()
  if name is None:
    log(0, "MLX will be many times slower than it could be: no optimized BLAS was found; %s", BLAS_ADVICE)
    return
  try:
    _blas.append(ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL))
  except OSError as error:
    log(0, "%s cannot be loaded (%s): MLX will be many times slower than it could be", name, error)


def set_threads(threads: int) -> None:
  """How many threads a product may use. MLX itself computes in one."""
  for library in _blas:
    for symbol in ("openblas_set_num_threads", "MKL_Set_Num_Threads", "bli_thread_set_num_threads"):
      if hasattr(library, symbol):
        getattr(library, symbol)(ctypes.c_int(threads))
        return


def _package() -> Path:
  """Make `mlx_lm.models` importable without running `mlx_lm/__init__.py`, and return the package's folder.

  That module lowers this process's limit of open files for good and imports transformers; models need neither.
  """
  spec = importlib.util.find_spec("mlx_lm") if "mlx_lm" not in sys.modules else sys.modules["mlx_lm"].__spec__
  assert spec is not None and spec.submodule_search_locations is not None
  if "mlx_lm" not in sys.modules:
    package = ModuleType("mlx_lm")
    package.__path__ = list(spec.submodule_search_locations)
    package.__spec__ = spec
    sys.modules["mlx_lm"] = package
  return Path(next(iter(spec.submodule_search_locations)))


def _aliases(package: Path) -> dict[str, str]:
  """Model types that share another's file: mlx-lm's own table, read from the source that is not to be run."""
  for node in ast.parse((package / "utils.py").read_text("utf-8")).body:
    if isinstance(node,
                  ast.Assign) and any(isinstance(t, ast.Name) and t.id == "MODEL_REMAPPING" for t in node.targets):
      return {str(key): str(value) for key, value in ast.literal_eval(node.value).items()}
  return {}


def model_classes(model_type: str) -> tuple[Any, Any]:
  """(`Model`, `ModelArgs`) of an architecture. Raises `UnsupportedModelError` for one that mlx-lm does not have."""
  package = _package()
  name = _aliases(package).get(model_type, model_type)
  if re.fullmatch(r"[\w-]+", name) and (package / "models" / f"{name}.py").is_file():
    try:
      module = importlib.import_module(f"mlx_lm.models.{name}")
    except (ImportError, SystemExit) as error:  # some want a package of their own and end the process without it
      raise UnsupportedModelError(f"mlx-lm's model of type {model_type!r} cannot be imported: {error}") from error
    if hasattr(module, "Model") and hasattr(module, "ModelArgs"):
      return module.Model, module.ModelArgs
  raise UnsupportedModelError(f"the mlx engine has no model of type {model_type!r}: this version of mlx-lm lacks it")


def cache_module() -> Any:
  """`mlx_lm.models.cache`."""
  _package()
  return importlib.import_module("mlx_lm.models.cache")
