"""What a machine offers to the ring: model, chip, memory and arithmetic speed.

Probing never fails and never imports an engine: whatever cannot be found out is "Unknown" or zero.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from exo.sizes import shown_mb
from exo.system_figures import host_name, memory

_PROBE_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class DeviceFlops:
  """Peak arithmetic speed in TFLOPS by number format; 0 where unknown."""
  fp32: float = 0.0
  fp16: float = 0.0
  int8: float = 0.0


@dataclass(frozen=True, slots=True)
class DeviceCapabilities:
  """`memory` is what the node offers to the ring, in MB (its total, or `--max-memory`)."""
  model: str = "Unknown device"
  chip: str = "Unknown chip"
  memory: int = 0
  flops: DeviceFlops = DeviceFlops()

  def __str__(self) -> str:
    flops = f", {self.flops.fp16:.3g} TFLOPS fp16" if self.flops.fp16 else ""
    return f"{self.model}, {self.chip}, {shown_mb(self.memory)}{flops}"


# TFLOPS as published by the makers (dense, without sparsity); the longest key found in a chip's name wins.
CHIP_FLOPS: dict[str, DeviceFlops] = {
    "Apple M1": DeviceFlops(2.29, 4.58, 9.16),
    "Apple M1 Pro": DeviceFlops(5.30, 10.60, 21.20),
    "Apple M1 Max": DeviceFlops(10.60, 21.20, 42.40),
    "Apple M1 Ultra": DeviceFlops(21.20, 42.40, 84.80),
    "Apple M2": DeviceFlops(3.55, 7.10, 14.20),
    "Apple M2 Pro": DeviceFlops(5.68, 11.36, 22.72),
    "Apple M2 Max": DeviceFlops(13.49, 26.98, 53.96),
    "Apple M2 Ultra": DeviceFlops(26.98, 53.96, 107.92),
    "Apple M3": DeviceFlops(3.55, 7.10, 14.20),
    "Apple M3 Pro": DeviceFlops(4.97, 9.94, 19.88),
    "Apple M3 Max": DeviceFlops(14.20, 28.40, 56.80),
    "Apple M3 Ultra": DeviceFlops(28.40, 56.80, 113.60),
    "Apple M4": DeviceFlops(4.26, 8.52, 17.04),
    "Apple M4 Pro": DeviceFlops(8.52, 17.04, 34.08),
    "Apple M4 Max": DeviceFlops(17.04, 34.08, 68.16),
    "RTX 3060": DeviceFlops(12.7, 25.5, 51.0),
    "RTX 3070": DeviceFlops(20.3, 40.6, 81.3),
    "RTX 3080": DeviceFlops(29.8, 59.5, 119.0),
    "RTX 3090": DeviceFlops(35.6, 71.2, 142.3),
    "RTX 4060": DeviceFlops(15.1, 30.2, 121.0),
    "RTX 4070": DeviceFlops(29.1, 58.3, 233.2),
    "RTX 4080": DeviceFlops(48.7, 97.5, 390.0),
    "RTX 4090": DeviceFlops(82.6, 165.2, 660.6),
    "RTX 5090": DeviceFlops(104.8, 209.5, 838.0),
    "A100": DeviceFlops(19.5, 312.0, 624.0),
    "H100": DeviceFlops(66.9, 989.0, 1979.0),
    "H200": DeviceFlops(66.9, 989.0, 1979.0),
}


def flops_of(chip: str) -> DeviceFlops:
  """The published speed of a chip by its name, zeros where it is not in the table."""
  matches = [key for key in CHIP_FLOPS if key.lower() in chip.lower()]
  return CHIP_FLOPS[max(matches, key=len)] if matches else DeviceFlops()


def _command(*argv: str) -> str:
  if shutil.which(argv[0]) is None:
    return ""
  try:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S, check=False)
  except (OSError, subprocess.SubprocessError):
    return ""
  return done.stdout.strip() if done.returncode == 0 else ""


def _read(path: str) -> str:
  try:
    return Path(path).read_text(errors="replace").strip("\0\n ")
  except OSError:
    return ""


def _total_memory_mb() -> int:
  return memory().total // 2**20


def _linux_chip() -> str:
  for line in _read("/proc/cpuinfo").splitlines():
    key, _, value = line.partition(":")
    if key.strip() in ("model name", "Model", "Hardware"):
      return value.strip()
  return platform.machine() or "Unknown chip"


def _nvidia() -> list[tuple[str, int]]:
  """(name, memory in MB) of each NVIDIA GPU, if its driver answers."""
  found = []
  for line in _command("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits").splitlines():
    name, _, memory = line.rpartition(",")
    if not name or not memory.strip().isdigit():
      return []
    found.append((name.strip(), int(memory)))
  return found


def gpu_memories_mb() -> list[int]:
  """What each GPU with memory of its own has of it, where a driver tells. Blocks for up to a few seconds; never raises."""
  return [memory for _, memory in _nvidia()] if platform.system() != "Darwin" else []


def probe_device() -> DeviceCapabilities:
  """This machine's capabilities. Blocks for up to a few seconds (it asks the system's own tools); never raises."""
  memory = _total_memory_mb()
  if platform.system() == "Darwin":
    chip = _command("sysctl", "-n", "machdep.cpu.brand_string") or "Unknown chip"
    model = _command("sysctl", "-n", "hw.model") or "Mac"
    return DeviceCapabilities(model, chip, memory, flops_of(chip))
  model = _read("/sys/devices/virtual/dmi/id/product_name") or _read("/proc/device-tree/model") or host_name()
  if gpus := _nvidia():
    name, gpu_memory = gpus[0]
    return DeviceCapabilities(model or "Linux machine", name, gpu_memory, flops_of(name))
  chip = _linux_chip()
  return DeviceCapabilities(model or "Linux machine", chip, memory, flops_of(chip))
