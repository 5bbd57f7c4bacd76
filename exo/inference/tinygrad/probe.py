"""What tinygrad could drive here, found out from device files alone: neither tinygrad nor a driver is loaded."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
from pathlib import Path

from exo.inference.families.catalogue import line_types
from exo.inference.library_version import library_version
from exo.inference.llama_line import llama_line
from exo.inference.offer import EngineOffer
from exo.inference.quantize import Quantize, choose_quantize
from exo.inference.repertoire import Repertoire
from exo.topology.weight_memory import WeightMemory

QUANTIZE = (Quantize.NONE, Quantize.EIGHT, Quantize.FOUR)
CLANG_ADVICE = "tinygrad compiles for a CPU with clang: install the package clang (Debian, Ubuntu, Fedora, Arch)"
_LIBRARY_BYTES = 60 << 20  # with the pieces that weights are made of, and kernels
_INTEL = "0x8086"


def find_gpu(root: Path = Path("/")) -> tuple[str, tuple[str, ...]] | None:
  """(what it is, tinygrad's names of the devices to try in order) of a GPU that tinygrad drives; None without one."""
  if sys.platform == "darwin":
    return "Apple GPU (Metal)" if platform.machine() == "arm64" else "GPU (Metal)", ("METAL", )
  if (root / "dev/nvidiactl").exists() and _nvidia(root):
    return "NVIDIA GPU", ("CUDA", "NV")
  if (root / "dev/kfd").exists() and _amd(root):
    return "AMD GPU", ("AMD", )
  if (root / "dev/kgsl-3d0").exists():
    return "Qualcomm GPU", ("QCOM", )
  if _intel(root) and any((root / "etc/OpenCL/vendors").glob("intel*.icd")):
    return "Intel GPU", ("CL", )
  return None


def _nvidia(root: Path) -> int:
  return len(list((root / "dev").glob("nvidia[0-9]*")))


def _amd(root: Path) -> int:
  nodes = (root / "sys/class/kfd/kfd/topology/nodes").glob("*/gpu_id")
  return sum(_read(file) not in ("", "0") for file in nodes)  # a processor is a node too


def _intel(root: Path) -> int:
  return sum(_read(file) == _INTEL for file in (root / "sys/class/drm").glob("renderD*/device/vendor"))


def _read(file: Path) -> str:
  try:
    return file.read_text().strip()
  except OSError:
    return ""


def devices(wanted: str = "") -> tuple[str, ...]:
  """tinygrad's names of the devices to try, best first; `wanted` is a short name of `EngineOffer.devices`, "" any."""
  gpu = find_gpu()
  if gpu is None:
    return ("CPU", )
  number = wanted.removeprefix("gpu")
  if number.isdigit() and int(number) > 0:
    return tuple(f"{name}:{int(number)}" for name in gpu[1])
  return (*gpu[1], "CPU")


def count_gpus(root: Path = Path("/")) -> int:
  """How many GPUs of the kind that `find_gpu` finds there are."""
  gpu = find_gpu(root)
  if gpu is None:
    return 0
  counted = {"CUDA": _nvidia, "AMD": _amd, "CL": _intel}.get(gpu[1][0])
  return counted(root) if counted else 1


def repertoire() -> Repertoire:
  """What `decoder.py` has kernels for."""
  return llama_line(line_types(), experts=True)


def probe(quantize: str | None = None) -> EngineOffer:
  gpu = find_gpu()
  device = gpu[0] if gpu else "CPU"
  missing, reason, rank = "", "there is clang to compile for this CPU", 10
  if importlib.util.find_spec("tinygrad") is None:
    missing = "is not installed (pip install tinygrad)"
  elif gpu:
    reason, rank = "there is a GPU that tinygrad drives", 30
  elif shutil.which("clang") is None:
    missing = f"lacks its compiler ({CLANG_ADVICE})"
  names = tuple(f"gpu{i}" for i in range(count_gpus())) if gpu else ("cpu", )
  version = library_version("tinygrad")
  weights = _weight_memory(quantize)
  return EngineOffer("tinygrad", device, reason, rank, version, missing, repertoire(), weights, devices=names)


def _weight_memory(quantize: str | None) -> WeightMemory:
  """Everything is float32 on a CPU and float16 on a GPU, or codes with a float32 scale for each block of 32, made piece by piece."""
  floats = 2.0 if find_gpu() else 4.0
  by_bits = {Quantize.EIGHT: 1.125, Quantize.FOUR: 0.625, Quantize.NONE: floats}
  held = by_bits[choose_quantize("tinygrad", QUANTIZE, quantize)]
  return WeightMemory(plain=held, packed=held, embedding_in_file=True, fixed_bytes=_LIBRARY_BYTES, rows=0.5)
