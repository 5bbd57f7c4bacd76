"""Whether MLX can run here, found out without importing it. On Apple Silicon it is the engine to use."""

from __future__ import annotations

import importlib.util
import platform
import re
import sys
from pathlib import Path

from exo.inference.families.catalogue import each_with_mlx, line_types
from exo.inference.library_version import library_version
from exo.inference.mlx.model_types import modules, package_folder
from exo.inference.offer import EngineOffer
from exo.inference.quantize import Quantize, choose_quantize
from exo.inference.repertoire import Repertoire
from exo.inference.weights.tensor import READABLE
from exo.topology.weight_memory import WeightMemory

QUANTIZE = (Quantize.NONE, Quantize.EIGHT, Quantize.FOUR)
# optimized BLAS libraries with the C interface, best first, by the name that the system's linker knows
BLAS_LIBRARIES = ("libopenblas.so.0", "libopenblasp.so.0", "libmkl_rt.so.2", "libblis.so.4", "libopenblas.so")
BLAS_ADVICE = "install libopenblas0-pthread (Debian, Ubuntu) or openblas (Fedora, Arch)"
_LIBRARY_BYTES = 30 << 20
_LINKER_CACHE = Path("/etc/ld.so.cache")
_LIBRARY_FOLDERS = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib")


def find_blas() -> str | None:
  """The name under which an optimized BLAS can be loaded. The linker's cache is read, nothing is loaded."""
  try:
    known = _LINKER_CACHE.read_bytes()
  except OSError:  # musl has none
    known = b""
  for name in BLAS_LIBRARIES:
    if re.search(rb"[\0/]" + re.escape(name.encode()) + rb"\0", known) or any((Path(folder) / name).exists()
                                                                              for folder in _LIBRARY_FOLDERS):
      return name
  return None


def on_apple_silicon() -> bool:
  return sys.platform == "darwin" and platform.machine() == "arm64"


def _has_backend() -> bool:
  """The package `mlx` is an empty shell on Linux until one of its backends is installed beside it."""
  spec = importlib.util.find_spec("mlx")
  folders = [] if spec is None else list(spec.submodule_search_locations or ())
  return any(Path(folder, "lib").is_dir() and any(Path(folder, "lib").glob("libmlx.*")) for folder in folders)


def repertoire() -> Repertoire:
  """Every architecture of the installed mlx-lm; nothing where there is none."""
  package = package_folder()
  if package is None:
    return Repertoire()
  known = dict(each_with_mlx())
  return Repertoire(
      text_models=line_types(),
      models=tuple(sorted(modules(package))),
      encodings=tuple(sorted({*READABLE, "MXFP4"})),
      uncut=tuple(sorted(kind for kind, facts in known.items() if facts.uncut)),
      unread=tuple((kind, end) for kind, facts in known.items() for end in facts.unread),
      wrong=tuple((kind, facts.wrong) for kind, facts in known.items() if facts.wrong)
  )


def probe(quantize: str | None = None) -> EngineOffer:
  apple = on_apple_silicon()
  device = "Apple GPU (Metal)" if apple else "CPU"
  missing = [name for name in ("mlx", "mlx_lm") if importlib.util.find_spec(name) is None]
  if missing or not _has_backend():
    wanted = "mlx mlx-lm" if apple else "'mlx[cpu]' mlx-lm"
    return EngineOffer("mlx", device, "", 0, missing=f"is not installed (pip install {wanted})")
  if apple:
    reason, rank = "this is Apple Silicon, whose GPU MLX drives", 40
  elif find_blas() is None:
    reason, rank = f"MLX runs on this CPU, but without an optimized BLAS it is many times slower: {BLAS_ADVICE}", 5
  else:
    reason, rank = "MLX runs on this CPU, with an optimized BLAS", 15
  version = f"{library_version('mlx')}, mlx-lm {library_version('mlx-lm')}"
  devices = ("gpu0", ) if apple else ("cpu", )
  return EngineOffer("mlx", device, reason, rank, version, "", repertoire(), _weight_memory(quantize), devices=devices)


def _weight_memory(quantize: str | None) -> WeightMemory:
  """On a CPU everything is float32, laid out anew one matrix after the other; on Metal as in the file, GGML's blocks and what
  `--quantize` rounds with scales and biases of two bytes. Caches have room to grow, and batches empty columns.
  """
  chosen = choose_quantize("mlx", QUANTIZE, quantize)
  if not on_apple_silicon():
    return WeightMemory(plain=4.0, packed=4.0, copies=1.0, fixed_bytes=_LIBRARY_BYTES, rows=1.0, cache=1.5)
  bits = {"Q4_0": 4, "Q4_1": 4, "Q4_K": 4, "Q5_0": 5, "Q5_1": 5, "Q5_K": 5, "Q8_0": 8, "Q6_K": 8}
  return WeightMemory(
      plain={Quantize.EIGHT: 1.125, Quantize.FOUR: 0.625, Quantize.NONE: 0.0}[chosen],
      each=tuple((encoding, n / 8 + 0.125) for encoding, n in bits.items()),
      copies=1.0,
      fixed_bytes=_LIBRARY_BYTES,
      rows=0.5,
      cache=0.75
  )
