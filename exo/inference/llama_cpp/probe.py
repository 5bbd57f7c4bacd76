"""Whether a library of llama.cpp is here, found out without loading it. For now the engine is used for what no other can run."""

from __future__ import annotations

from exo.inference.library_version import library_version
from exo.inference.llama_cpp.library_file import LibraryFile, library_files
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
  file = next(library_files(), None)
  missing = _missing(quantize, file)
  if missing or file is None:
    return EngineOffer("llama_cpp", "CPU", "", 0, missing=missing, repertoire=repertoire(), last_resort=True)
  version = library_version("xllamacpp" if "xllamacpp" in file.origin else "llama-cpp-python")
  return EngineOffer(
      "llama_cpp",
      "CPU",
      f"llama.cpp is here ({file.origin})",
      0,
      version,
      repertoire=repertoire(),
      weights=WEIGHTS,
      last_resort=True
  )


def _missing(quantize: str | None, file: LibraryFile | None) -> str:
  if file is None:
    return "is not installed (pip install xllamacpp)"
  return "" if quantize in (None, Quantize.NONE) else "has no --quantize: a GGUF file says how its weights are packed"
