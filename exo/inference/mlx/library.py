"""Bringing MLX and the model files of mlx-lm into this process, in the right order and without their side effects."""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from exo.errors import UnsupportedModelError
from exo.inference.mlx.model_types import modules, package_folder
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
  folder = package_folder()
  assert folder is not None
  if "mlx_lm" not in sys.modules:
    package = ModuleType("mlx_lm")
    package.__path__ = [str(folder)]
    package.__spec__ = importlib.util.find_spec("mlx_lm")
    sys.modules["mlx_lm"] = package
  return folder


def model_classes(model_type: str) -> tuple[Any, Any]:
  """(`Model`, `ModelArgs`) of an architecture. Raises `UnsupportedModelError` for one that mlx-lm does not have."""
  name = modules(_package()).get(model_type)
  if name is None:
    raise UnsupportedModelError(f"the mlx engine has no model of type {model_type!r}")
  try:
    module = importlib.import_module(f"mlx_lm.models.{name}")
    return module.Model, module.ModelArgs
  except (
      ImportError, AttributeError, SystemExit
  ) as error:  # some want a package of their own and end the process without it
    raise UnsupportedModelError(f"mlx-lm's model of type {model_type!r} cannot be imported: {error}") from error


def cache_module() -> Any:
  """`mlx_lm.models.cache`."""
  _package()
  return importlib.import_module("mlx_lm.models.cache")
