"""Whether a library of llama.cpp is here that works. For now the engine is used for what no other can run."""

from __future__ import annotations

from exo.errors import EngineUnavailableError
from exo.inference.llama_cpp.library_choice import chosen_library
from exo.inference.llama_cpp.virtual_file import has_virtual_files
from exo.inference.offer import EngineOffer
from exo.inference.quantize import Quantize
from exo.inference.repertoire import Repertoire
from exo.topology.weight_memory import WeightMemory

_LIBRARY_BYTES = 120 << 20  # with the process, and what lies between operators


def repertoire() -> Repertoire:
  """Whatever the library knows: it is told by the file."""
  return Repertoire(reads_files=True, containers=("gguf", ))


def probe(quantize: str | None = None) -> EngineOffer:
  """Blocks, the first time for a fraction of a second, in which a process of its own tries the library."""
  missing = _missing(quantize)
  try:
    library = chosen_library() if not missing else None
  except EngineUnavailableError as error:
    library, missing = None, error.message
  if library is None:
    return EngineOffer("llama_cpp", "CPU", "", 0, missing=missing, repertoire=repertoire(), last_resort=True)
  weights = WeightMemory(fixed_bytes=_LIBRARY_BYTES, rows=2.0, cache=1.0)
  return EngineOffer(
      "llama_cpp",
      "CPU",
      f"llama.cpp is here ({library.file})",
      0,
      library.file.version or library.version,
      repertoire=repertoire(),
      weights=weights,
      last_resort=True
  )


def _missing(quantize: str | None) -> str:
  if not has_virtual_files():
    return "needs a C library with fopencookie, as Linux has it"
  return "" if quantize in (None, Quantize.NONE) else "has no --quantize: a GGUF file says how its weights are packed"
