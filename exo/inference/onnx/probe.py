"""Whether onnxruntime is there. It runs on any CPU, hence the choice where no accelerator is."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

from exo.inference.library_version import library_version
from exo.inference.llama_line import llama_line
from exo.inference.offer import EngineOffer
from exo.inference.quantize import Quantize, choose_quantize
from exo.inference.repertoire import Repertoire
from exo.topology.model_size import WeightMemory

QUANTIZE = (Quantize.EIGHT, Quantize.FOUR, Quantize.NONE)
_WITH_SCALES = {Quantize.EIGHT: 1.125, Quantize.FOUR: 0.75, Quantize.NONE: 4.0}
_MODELS = ("gemma2", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3")


def repertoire() -> Repertoire:
  """What `decoder.py` writes as a graph."""
  return replace(llama_line(_MODELS), rotary_step=16)


def probe(quantize: str | None = None) -> EngineOffer:
  missing = [name for name in ("onnxruntime", "onnx") if importlib.util.find_spec(name) is None]
  if missing:
    wanted = f"is not installed (pip install {' '.join(missing)})"
    return EngineOffer("onnx", "CPU", "", 0, missing=wanted, repertoire=repertoire())
  reason = "no accelerator was found, and onnxruntime is the fastest on a CPU"
  version = library_version("onnxruntime")
  return EngineOffer(
      "onnx", "CPU", reason, 20, version, "", repertoire(), _weight_memory(quantize), rounds=quantize is None
  )


def _weight_memory(quantize: str | None) -> WeightMemory:
  """Floats become blocks of 8 bits unless told otherwise; what is quantized stays about as it is."""
  return WeightMemory(plain=_WITH_SCALES[choose_quantize("onnx", QUANTIZE, quantize)])
