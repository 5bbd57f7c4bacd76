"""Whether onnxruntime is there. It runs on any CPU, hence the choice where no accelerator is."""

from __future__ import annotations

import importlib.util

from exo.inference.engines import EngineProbe
from exo.topology.ring_plan import WeightMemory

_WITH_SCALES = {"8": 1.125, "4": 0.75, "none": 4.0}


def probe() -> EngineProbe:
  missing = [name for name in ("onnxruntime", "onnx") if importlib.util.find_spec(name) is None]
  if missing:
    return EngineProbe(
        False, "CPU", f"the package {' and '.join(missing)} is not installed (pip install {' '.join(missing)})"
    )
  return EngineProbe(True, "CPU", "no accelerator was found, and onnxruntime is the fastest on a CPU", preference=1)


def weight_memory(quantize: str | None) -> WeightMemory:
  """Floats become blocks of 8 bits unless told otherwise; what is quantized stays about as it is."""
  return WeightMemory(plain=_WITH_SCALES[quantize or "8"])
