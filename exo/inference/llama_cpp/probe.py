"""Whether a library of llama.cpp is here that works. It is first for GGUF files on CPUs: it holds them as they are, and knows them all."""

from __future__ import annotations

from exo.errors import EngineUnavailableError
from exo.inference.llama_cpp.library_choice import chosen_library
from exo.inference.offer import EngineOffer
from exo.inference.quantize import Quantize
from exo.inference.repertoire import Repertoire
from exo.topology.weight_memory import WeightMemory

# with the process; what is between operators is measured when a stage is loaded, and what is more than this goes off its caches
WEIGHTS = WeightMemory(fixed_bytes=120 << 20, rows=2.0, cache=1.0)


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
    return EngineOffer("llama_cpp", "CPU", "", 0, missing=missing, repertoire=repertoire(), preferred=True)
  return EngineOffer(
      "llama_cpp",
      "CPU",
      f"llama.cpp is here ({library.file})",
      0,
      library.file.version or library.version,
      repertoire=repertoire(),
      weights=WEIGHTS,
      preferred=True
  )


def _missing(quantize: str | None) -> str:
  return "" if quantize in (None, Quantize.NONE) else "has no --quantize: a GGUF file says how its weights are packed"
