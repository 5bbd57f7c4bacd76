"""A GGUF file as any checkpoint: its tensors by name, its tokenizer, its template. What the names are is a subclass's affair."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exo.errors import ModelFilesError
from exo.gguf_names import parts_of
from exo.inference.families.catalogue import why_uncut
from exo.inference.families.known_deviations import FoundDeviation, deviations_of
from exo.inference.said_sampling import SaidSampling, said_by_gguf
from exo.inference.weights.block_map import BlockMap
from exo.inference.weights.checkpoint import Checkpoint, check_present
from exo.inference.weights.file_bytes import FileBytes
from exo.inference.weights.gguf_header import GgufHeader, GgufTensor, architecture_of
from exo.inference.weights.tensor import StoredTensor

if TYPE_CHECKING:
  from exo.inference.tokenizer import Tokenizer

_MOST = 1 << 31
TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


class GgufFile(Checkpoint):
  container = "gguf"

  def __init__(self, path: Path, data: FileBytes, header: GgufHeader, further: Sequence[FileBytes] = ()) -> None:
    """`data` is the file's and `further` those of the parts behind it, all closed with this. Raises `UnsupportedModelError`."""
    self._paths = parts_of(path)
    self.path, self._files, self._header = self._paths[0], [data, *further], header
    self._blocks = [BlockMap.beside(part) for part in self._paths]
    self.architecture = architecture_of(header)
    self.whole_only = why_uncut(header.metadata)

  @cached_property
  @abstractmethod
  def _tensors(self) -> dict[str, GgufTensor]:
    """By the names that they have here."""

  def own(self, key: str, default: Any = None) -> Any:
    """One of the architecture's metadata."""
    return self._header.metadata.get(f"{self.architecture}.{key}", default)

  @property
  def deviations(self) -> tuple[FoundDeviation, ...]:
    return deviations_of(self.architecture, True, self.own)

  def number(self, key: str, default: int | None = None) -> int:
    """One of them that counts something. Raises `ModelFilesError` for any other kind of value, and without a default for none."""
    return self._count(key, self.own(key, default))

  def numbers(self, key: str, default: int) -> list[int]:
    """The same of what may be listed by layer."""
    value = self.own(key, default)
    return [self._count(key, one) for one in (value if isinstance(value, list) else [value])]

  def _count(self, key: str, value: Any) -> int:
    if value is None:
      raise ModelFilesError(f"{self.path.name} lacks {self.architecture}.{key}")
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MOST:
      raise ModelFilesError(
          f"{self.path.name}: {self.architecture}.{key} is {repr(value)[:40]}, which is not a plausible number"
      )
    return value

  @property
  def head_dims(self) -> tuple[int, ...]:
    """How many numbers the keys and values of a head have: of layers with windows they may be others."""
    keys = (f"attention.{of}_length{kind}" for of in ("key", "value") for kind in ("", "_swa"))
    return (self.config.head_dim, *(found for key in keys if (found := self.number(key, 0))))

  @property
  def embedding(self) -> GgufTensor:
    """Raises `ModelFilesError`."""
    found = self._header.tensors.get("token_embd.weight")
    if found is None:
      raise ModelFilesError(f"{self.path.name} has no token embedding")
    return found

  @property
  def chat_template(self) -> str | None:
    template = self._header.metadata.get("tokenizer.chat_template")
    return template if isinstance(template, str) else None

  @cached_property
  def sampling(self) -> SaidSampling:
    return said_by_gguf(self._header.metadata)

  @property
  def header(self) -> GgufHeader:
    return self._header

  def names(self) -> Iterable[str]:
    return self._tensors.keys()

  def tensor_bytes(self, name: str) -> int:
    return self._info(name).n_bytes

  def tensor_shape(self, name: str) -> tuple[int, ...]:
    return self._info(name).shape

  def encoding(self, name: str) -> str:
    return self._info(name).encoding

  def _info(self, name: str) -> GgufTensor:
    try:
      return self._tensors[name]
    except KeyError:
      raise ModelFilesError(f"{self.path.name} has no tensor {name}") from None

  def _read(self, info: GgufTensor, name: str, offset: float = 0.0) -> StoredTensor:
    check_present(self._blocks[info.part], self._paths[info.part], name, info.start, info.start + info.n_bytes)
    rows = int(np.prod(info.shape[:-1], dtype=np.int64))
    data = self._files[info.part].span(info.start,
                                       info.start + info.n_bytes).reshape(*info.shape[:-1], info.n_bytes // rows)
    return StoredTensor(name, info.shape, info.encoding, data, offset)

  def spans(self, name: str) -> list[tuple[Path, int, int]]:
    info = self._info(name)
    return [(self._paths[info.part], info.start, info.start + info.n_bytes)]

  def tensor(self, name: str) -> StoredTensor:
    return self._read(self._info(name), name)

  def tokenizer(self) -> Tokenizer:
    from exo.inference.gguf_tokenizer import gguf_tokenizer
    return gguf_tokenizer(self._header.metadata, self.path)

  def let_go(self) -> None:
    for file in self._files:
      file.let_go()

  def close(self) -> None:
    for file in self._files:
      file.close()
