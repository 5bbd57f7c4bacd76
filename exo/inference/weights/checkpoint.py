"""A model's files, read by tensor: the interface, and the choice of reader by what lies at a path."""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exo.errors import ModelFilesError
from exo.gguf_names import is_gguf, is_weights_of_text, parts_of
from exo.inference.families.catalogue import translated
from exo.inference.families.known_deviations import FoundDeviation, deviations_of
from exo.inference.model_config import ModelConfig
from exo.inference.model_facts import ModelFacts, facts_of
from exo.inference.said_sampling import SaidSampling
from exo.inference.weights.block_map import BlockMap
from exo.inference.weights.model_size import model_size
from exo.inference.weights.tensor import StoredTensor
from exo.topology.model_size import ModelSize

if TYPE_CHECKING:
  from exo.inference.tokenizer import Tokenizer

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


class Checkpoint(ABC):
  """One model on disk. Names, shapes and values are those of Hugging Face's classes, whatever the file's own.

  Opening reads headers only; `tensor` maps the bytes of that tensor and reads no other.
  """
  path: Path
  container = ""  # "safetensors" or "gguf", where it is a file at all
  #: whether its layers' tensors have names of their own, which engines that read the file itself need not know
  is_plain = False
  #: why engines that read the file itself can run no part of the model's layers, "" where nothing speaks against it
  whole_only = ""

  @property
  @abstractmethod
  def hf_config(self) -> dict[str, Any]:
    """The configuration in the form of Hugging Face's `config.json`."""

  @abstractmethod
  def names(self) -> Iterable[str]:
    """Every tensor's name."""

  @abstractmethod
  def tensor_bytes(self, name: str) -> int:
    """The tensor's size in the file."""

  def tensor_shape(self, name: str) -> tuple[int, ...]:
    """The tensor's logical shape, without touching its bytes where the reader can."""
    return self.tensor(name).shape

  def encoding(self, name: str) -> str:
    """How the tensor is packed, as in `StoredTensor`, without touching its bytes where the reader can."""
    return self.tensor(name).encoding

  def tensor_weights(self, name: str) -> int:
    """How many numbers the tensor has."""
    return math.prod(self.tensor_shape(name))

  @abstractmethod
  def tensor(self, name: str) -> StoredTensor:
    """The tensor, memory-mapped. Raises `ModelFilesError` when it is not there, or not on this machine yet."""

  def spans(self, name: str) -> list[tuple[Path, int, int]]:
    """The bytes [start, end) of files that `tensor(name)` reads. Raises `ModelFilesError` when there is no such tensor."""
    raise ModelFilesError(f"{self.path.name} has no tensor {name}")

  @property
  def chat_template(self) -> str | None:
    """The model's own, without the rest of its tokenizer being read. Raises `ModelFilesError`."""
    return None

  @property
  def sampling(self) -> SaidSampling:
    """What its files say of how answers should be drawn; nothing that is wrong with that is raised."""
    return SaidSampling()

  @abstractmethod
  def tokenizer(self) -> Tokenizer:
    """The model's tokenizer with its chat template."""

  def let_go(self) -> None:  # noqa: B027 - where nothing is read from files, nothing is to be done
    """Hold nothing in memory of what has been read of the files; tensors already handed out stay valid. A load calls it as it
    goes on, since a whole file's pages would else be there beside what was made of them.
    """

  @abstractmethod
  def close(self) -> None:
    """Give back the files. Tensors already handed out stay valid."""

  @cached_property
  def config(self) -> ModelConfig:
    return ModelConfig.from_hf(self.hf_config, is_whole=self.container == "gguf")

  @property
  def deviations(self) -> tuple[FoundDeviation, ...]:
    """What engines are known to compute otherwise than the model's authors."""
    text = self.hf_config.get("text_config")
    values = self.hf_config | text if isinstance(text, dict) else self.hf_config
    return deviations_of(self.config.model_type, False, values.get)

  @cached_property
  def facts(self) -> ModelFacts:
    return facts_of(self)

  @cached_property
  def size(self) -> ModelSize:
    return model_size(self)

  def has(self, name: str) -> bool:
    return name in self._name_set

  @cached_property
  def _name_set(self) -> frozenset[str]:
    return frozenset(self.names())

  @cached_property
  def fingerprint(self) -> str:
    """Equal for equal checkpoints: a hash of the configuration and of every tensor's name and size."""
    digest = hashlib.sha256(json.dumps(self.hf_config, sort_keys=True, default=str).encode())
    for name in sorted(self.names()):
      digest.update(f"{name} {self.tensor_bytes(name)}\n".encode())
    return digest.hexdigest()[:16]


def check_present(blocks: BlockMap | None, file: Path, name: str, start: int, end: int) -> None:
  """Raises `ModelFilesError` for bytes of a file that is here only in part and lacks them; None is the map of a whole one."""
  if blocks is not None and not blocks.has(start, end):
    raise ModelFilesError(f"tensor {name} is not on this machine: of {file.name} only other parts have been fetched")


def open_checkpoint(path: Path) -> Checkpoint:
  """The checkpoint at `path`: a GGUF file, or any part of one that is split, or a folder with a GGUF file or with `config.json` and
  safetensors.

  Raises `ModelFilesError` with what was looked for.
  """
  from exo.inference.weights.safetensors_checkpoint import SafetensorsCheckpoint
  if path.is_file():
    if not is_gguf(path.name):
      raise ModelFilesError(f"{path.name} is not a model: a GGUF file or a folder with safetensors is wanted")
    return _open_gguf(path)
  if (path / "config.json").is_file() and any(path.glob("*.safetensors")):
    return SafetensorsCheckpoint(path)
  ggufs = sorted(file for file in path.iterdir() if is_weights_of_text(file.name)) if path.is_dir() else []
  if len({tuple(parts_of(file)) for file in ggufs}) == 1:
    return _open_gguf(ggufs[0])
  if ggufs:
    raise ModelFilesError(f"{path.name} holds {len(ggufs)} GGUF files: name one of them")
  raise ModelFilesError(f"{path.name} holds no model: neither config.json with *.safetensors nor a *.gguf file")


def _open_gguf(path: Path) -> Checkpoint:
  from exo.inference.weights.gguf_checkpoint import GgufCheckpoint
  from exo.inference.weights.gguf_header import architecture_of
  from exo.inference.weights.gguf_parts import open_parts
  from exo.inference.weights.plain_gguf import PlainGguf
  (data, *further), header = open_parts(path)
  try:
    kind = GgufCheckpoint if architecture_of(header) in translated() else PlainGguf
    return kind(path, data, header, further)
  except BaseException:
    for file in (data, *further):
      file.close()
    raise
