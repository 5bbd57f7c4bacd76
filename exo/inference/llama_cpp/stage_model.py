"""Opens layers of a GGUF file as a model of llama.cpp's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from exo.errors import ModelFilesError
from exo.inference.llama_cpp.llama_model import LastWords, LlamaModel
from exo.inference.llama_cpp.stage_cut import StageCut, cut_of
from exo.inference.llama_cpp.stage_file import SourceTensor, StageFile
from exo.inference.shard import Shard
from exo.inference.weights.file_bytes import FileBytes
from exo.inference.weights.gguf_header import parse_gguf_header


def open_stage(library: Any, words: LastWords, path: Path, shard: Shard,
               progress: Callable[[float], None]) -> tuple[LlamaModel, StageCut]:
  """Raises `ModelFilesError`, `UnsupportedModelError`, `OutOfMemoryError`."""
  data = FileBytes(path)
  try:
    header = parse_gguf_header(data.head(), data.size)
  finally:
    data.close()
  n_words = header.tensors["token_embd.weight"].shape[0]
  try:
    cut = cut_of(header.metadata, header.tensors, shard, n_words)
  except (KeyError, IndexError, ValueError, TypeError, ArithmeticError) as error:
    raise ModelFilesError(
        f"{path.name}: what its header says of its layers does not fit together ({error!r})"
    ) from error
  sources = {name: SourceTensor(info, path) for name, info in header.tensors.items()}
  file = StageFile(cut, sources, header.kinds, str(header.metadata["general.architecture"]))
  try:
    return LlamaModel(library, words, file, progress), cut
  finally:
    file.close()
