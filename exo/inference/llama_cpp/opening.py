"""How llama.cpp is given the weights of a stage: by the original's name, by a virtual file, or by a file that was made for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from exo.errors import ModelFilesError
from exo.gguf_names import parts_of
from exo.inference.llama_cpp.llama_model import FileOnDisk
from exo.inference.llama_cpp.stage_cut import StageCut, cut_of
from exo.inference.llama_cpp.stage_file import SourceTensor, StageFile
from exo.inference.shard import Shard
from exo.inference.weight_mode import WeightMode
from exo.inference.weights.gguf_header import GgufHeader
from exo.inference.weights.gguf_parts import read_parts
from exo.made_files import MadeFiles, UsedFile

SaidOpening = tuple[str, bool, str | None, bool]  # an `Opening` in plain values

_EMBEDDING = "token_embd.weight"
_NOT_OF_LAYERS = ("general.", "tokenizer.", "split.", "GGUF.")


@dataclass(slots=True)
class OpenedFile:
  """`file` is what a `LlamaModel` is made of. `used`, where there is one, lies on disk and stays until this is closed."""
  file: StageFile | FileOnDisk
  used: UsedFile | None = None

  @property
  def n_bytes(self) -> int:
    """Of the weights, with those that stand in for others."""
    return self.file.size if isinstance(self.file, StageFile) else self.file.path.stat().st_size

  def let_go(self) -> None:
    """Of what is only needed while the model is loaded."""
    if isinstance(self.file, StageFile):
      self.file.close()

  def close(self) -> None:
    self.let_go()
    if self.used is not None:
      self.used.close()


@dataclass(frozen=True, slots=True)
class Opening:
  """`virtual`: the C library has streams that read what Python makes. `folder` is where files are made otherwise, None where none may be.
  `plain`: weights are not laid out anew, whatever the library would do."""
  weights: WeightMode
  virtual: bool
  folder: Path | None
  plain: bool = False

  @classmethod
  def of(cls, weights: str, virtual: bool, folder: str | None, plain: bool) -> Opening:
    """As `SaidOpening` has it."""
    return cls(WeightMode(weights), virtual, None if folder is None else Path(folder), plain)

  def open(self, path: Path, header: GgufHeader, cut: StageCut) -> OpenedFile:
    """Raises `ModelFilesError` where a file would have to be made, and cannot be."""
    architecture = str(header.metadata["general.architecture"])
    mapped = self.weights is WeightMode.MAPPED
    if not mapped and self.virtual:
      return OpenedFile(_stage_file(path, header, cut, architecture))
    if _is_the_original(header, cut, architecture):
      # it knows words, which are of no use here, and may be such as the library does not read
      instead: dict[str, str | int] = {"tokenizer.ggml.model": "none"}
      instead[f"{architecture}.vocab_size"] = header.tensors[_EMBEDDING].shape[0]
      return OpenedFile(FileOnDisk(path, instead, mapped))
    if self.folder is None:
      raise ModelFilesError(f"a stage of {path.name} has to be a file of its own, and there is no folder for such")
    stage = _stage_file(path, header, cut, architecture)
    try:
      used = MadeFiles(self.folder).use(path, stage.name, stage.size, stage.write)
    finally:
      stage.close()
    return OpenedFile(FileOnDisk(used.path, {}, mapped), used)


def read_cut(path: Path, shard: Shard) -> tuple[GgufHeader, StageCut]:
  """Raises `ModelFilesError`, `UnsupportedModelError`."""
  header = read_parts(path)
  n_words = header.tensors[_EMBEDDING].shape[0]
  try:
    return header, cut_of(header.metadata, header.tensors, shard, n_words)
  except (KeyError, IndexError, ValueError, TypeError, ArithmeticError) as error:
    raise ModelFilesError(
        f"{path.name}: what its header says of its layers does not fit together ({error!r})"
    ) from error


def _stage_file(path: Path, header: GgufHeader, cut: StageCut, architecture: str) -> StageFile:
  paths = parts_of(path)
  sources = {name: SourceTensor(info, paths[info.part]) for name, info in header.tensors.items()}
  return StageFile(cut, sources, header.kinds, architecture)


def _is_the_original(header: GgufHeader, cut: StageCut, architecture: str) -> bool:
  """Whether the stage is all of the file as it is. Of a table that is never read it does not matter what stands in it."""
  for name in header.tensors:
    piece = cut.tensors.get(name)
    if piece is None or piece.source != name or piece.rows is not None:
      return False
    if piece.constant is not None and name != _EMBEDDING:
      return False
  own = {key: value for key, value in header.metadata.items() if not key.startswith(_NOT_OF_LAYERS)}
  size = f"{architecture}.vocab_size"
  return {**cut.metadata, size: 0} == {**own, size: 0} and len(cut.tensors) == len(header.tensors)
