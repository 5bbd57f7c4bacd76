"""Whether onnxruntime is there. It runs on any CPU, hence the choice where no accelerator is."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

from exo.inference.families.catalogue import line_types
from exo.inference.library_version import library_version
from exo.inference.llama_line import llama_line
from exo.inference.offer import EngineOffer
from exo.inference.quantize import Quantize, choose_quantize
from exo.inference.repertoire import Repertoire
from exo.topology.weight_memory import WeightMemory

QUANTIZE = (Quantize.EIGHT, Quantize.FOUR, Quantize.NONE)
# onnxruntime copies what it is given and packs that: what was given is there until the end, and one copy at a time beside it,
# in parts of what is held in the end
_GIVEN = 0.77
_LIBRARY_BYTES = 30 << 20


def repertoire() -> Repertoire:
  """What `decoder.py` writes as a graph."""
  return replace(llama_line(line_types(experts=False)), rotary_step=16)


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
  """Floats become blocks of 8 bits unless told otherwise; what is quantized keeps its codes, or gets wider ones."""
  plain = {Quantize.EIGHT: _packed(8, 32), Quantize.FOUR: _packed(4, 32, True), Quantize.NONE: 4.0}
  each = {
      "Q4_0": _packed(4, 32), "Q4_1": _packed(4, 32, True), "Q4_K": _packed(4, 32, True), "MLX4": _packed(4, 64, True),
      "Q5_0": _packed(8, 32), "Q8_0": _packed(8, 32), "MLX8": _packed(8, 64, True), "Q6_K": _packed(8, 16)
  }  # yapf: disable
  return WeightMemory(
      plain=plain[choose_quantize("onnx", QUANTIZE, quantize)],
      packed=_packed(8, 32, True),
      each=tuple(each.items()),
      beside=_GIVEN,
      copies=_GIVEN,
      embedding_in_file=True,
      fixed_bytes=_LIBRARY_BYTES,
      rows=1.3
  )


def _packed(bits: int, block: int, with_minimum: bool = False) -> float:
  """Bytes that onnxruntime holds for a weight: codes, and for each block its scale, which is there twice, and the sum of its
  codes; encodings with a minimum have a zero point for each block and columns for what those leave (`linear.py`).
  """
  held = bits / 8 + 3 * 4 / block
  return held * (1 + 1 / block) + bits / 8 / block if with_minimum else held
