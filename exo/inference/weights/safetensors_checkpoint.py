"""A Hugging Face folder: `config.json` and one or more safetensors files, each read by tensor.

The header is read here rather than by the `safetensors` package because bfloat16 has no numpy type, MLX's quantized
weights come as words of raw bits, and files may be there only in part.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exo.errors import ModelFilesError
from exo.inference.families.catalogue import line_of
from exo.inference.families.config_form import one_form
from exo.inference.said_sampling import SaidSampling, said_by_generation_config
from exo.inference.weights.block_map import BlockMap
from exo.inference.weights.checkpoint import HEAD, Checkpoint, check_present
from exo.inference.weights.file_bytes import FileBytes
from exo.inference.weights.microscaling import as_blocks, logical_shape, microscaled
from exo.inference.weights.other_contents import other_contents
from exo.inference.weights.tensor import AffineGroups, StoredTensor

if TYPE_CHECKING:
  from exo.inference.tokenizer import Tokenizer

MAX_HEADER_BYTES = 100 * 2**20
_MAX_JSON_BYTES = 64 * 2**20
_EXPERT = re.compile(r"(.+\.mlp)\.experts\.(\d+)\.((?:gate|up|down)_proj\.weight)")
# how a larger repository calls the tensors of a language model that is also published alone
_TEXT = re.compile(r"(?:language_model\.(model\.|lm_head\.)|model\.language_model\.|(lm_head\.))(.+)")
_ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2,
    "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1
}


@dataclass(frozen=True, slots=True)
class SafetensorsEntry:
  """`start` and `n_bytes` count from the file's beginning; `dtype` is safetensors' name."""
  name: str
  shape: tuple[int, ...]
  dtype: str
  start: int
  n_bytes: int


def parse_safetensors_header(data: memoryview, file_size: int, file_name: str) -> dict[str, SafetensorsEntry]:
  """Where each tensor lies in a file of `file_size` bytes; `data` is its beginning.

  Spans must lie within the file, overlap nowhere and fit their shapes. Raises `ModelFilesError` otherwise.
  """
  if file_size < 8 or len(data) < 8:
    raise ModelFilesError(f"{file_name} is too short to be a safetensors file")
  length = int.from_bytes(data[:8], "little")
  if not 2 <= length <= min(MAX_HEADER_BYTES, file_size - 8) or len(data) < 8 + length:
    if what := other_contents(data):
      raise ModelFilesError(f"{file_name} is {what}")
    raise ModelFilesError(f"{file_name} claims a header of {length} bytes: it is cut off or damaged")
  try:
    header = json.loads(bytes(data[8:8 + length]))
  except (ValueError, RecursionError) as error:
    raise ModelFilesError(f"{file_name}: its header is not JSON") from error
  if not isinstance(header, dict):
    raise ModelFilesError(f"{file_name}: its header is not an object")
  entries = {
      name: _entry(name, value, 8 + length, file_name)
      for name, value in header.items() if name != "__metadata__"
  }
  end = 8 + length
  for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.n_bytes)):
    if entry.start < end:
      raise ModelFilesError(f"{file_name}: tensor {entry.name!r} overlaps another")
    end = entry.start + entry.n_bytes
  if end > file_size:
    raise ModelFilesError(
        f"{file_name} is cut off: its tensors need {end} bytes, it has {file_size}. Delete it and fetch it again."
    )
  return entries


def _entry(name: str, value: Any, base: int, file_name: str) -> SafetensorsEntry:
  try:
    dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
    numbers = [*shape, begin, end]
  except (TypeError, KeyError, ValueError) as error:
    raise ModelFilesError(f"{file_name}: the entry of tensor {name!r} is malformed") from error
  if dtype not in _ITEM_BYTES:
    raise ModelFilesError(f"{file_name}: tensor {name!r} is of the unknown type {dtype!r}")
  if any(isinstance(n, bool) or not isinstance(n, int) or not 0 <= n < 1 << 48 for n in numbers) or len(shape) > 8:
    raise ModelFilesError(f"{file_name}: the entry of tensor {name!r} is malformed")
  if end - begin != math.prod(shape) * _ITEM_BYTES[dtype]:
    raise ModelFilesError(f"{file_name}: tensor {name!r} has {end - begin} bytes, which its shape and type contradict")
  return SafetensorsEntry(name, tuple(shape), dtype, base + begin, end - begin)


def read_json(path: Path) -> dict[str, Any]:
  """A JSON object from a model's folder, `{}` where there is no such file. Raises `ModelFilesError` when it is broken."""
  if not path.is_file():
    return {}
  if path.stat().st_size > _MAX_JSON_BYTES:
    raise ModelFilesError(f"{path.name} is implausibly large")
  try:
    value = json.loads(path.read_text("utf-8-sig"))  # some editors put a mark before all
  except (ValueError, RecursionError, OSError) as error:
    raise ModelFilesError(f"{path.name} is not valid JSON: {error}") from error
  if not isinstance(value, dict):
    raise ModelFilesError(f"{path.name} does not hold a JSON object")
  return value


class SafetensorsCheckpoint(Checkpoint):
  container = "safetensors"

  def __init__(self, path: Path) -> None:
    self.path = path
    self._published = read_json(path / "config.json")
    self._config = one_form(self._published)
    self._bytes: dict[Path, FileBytes] = {}
    self._blocks: dict[Path, BlockMap | None] = {}
    self._entries: dict[str, tuple[Path, SafetensorsEntry]] = {}
    index = self._index()
    for file in self._files(index):
      found = self._open(file)
      for name, entry in parse_safetensors_header(found.head(), found.size, file.name).items():
        if name in self._entries:
          raise ModelFilesError(f"{file.name} and {self._entries[name][0].name} both hold tensor {name!r}")
        self._entries[name] = (file, entry)
    if lacking := [name for name in index if name not in self._entries]:
      files = sorted({index[name] for name in lacking})
      raise ModelFilesError(f"{path.name} lacks {', '.join(files[:3])}{' …' if len(files) > 3 else ''}")
    self._as_text_alone()
    self._microscaled = microscaled({name: (entry.dtype, entry.shape) for name, (_, entry) in self._entries.items()})
    self._packed = {name: name.removesuffix(".weight") for name in self._entries if self._is_packed(name)}
    self._hidden = {f"{module}.{part}" for module in self._packed.values() for part in ("scales", "biases")}
    self._hidden |= set(self._microscaled.values())

  def _as_text_alone(self) -> None:
    """Of a repository with other parts beside a language model that is also published alone: that model, as it is there."""
    text = self._config.get("text_config")
    if not isinstance(text, dict) or line_of(str(text.get("model_type"))) is None:
      return
    self._entries = {
        f"{match[1] or match[2] or 'model.'}{match[3]}": found
        for name, found in self._entries.items() if (match := _TEXT.fullmatch(name)) is not None
    }
    packing = {key: value for key, value in self._config.items() if key in ("quantization", "quantization_config")}
    # the two levels often contradict each other in this
    self._config = packing | text | {"tie_word_embeddings": HEAD not in self._entries}

  def _is_packed(self, name: str) -> bool:
    """Whether a weight is one of MLX's: words of codes, with scales and biases beside them."""
    module = name.removesuffix(".weight")
    return name not in self._microscaled and module != name and self._entries[name][
        1].dtype == "U32" and f"{module}.scales" in self._entries

  def _index(self) -> dict[str, str]:
    """Which file holds each tensor, as the folder says; empty where it says nothing."""
    index = read_json(self.path / "model.safetensors.index.json").get("weight_map", {})
    if not isinstance(index, dict) or not all(isinstance(v, str) and Path(v).name == v for v in index.values()):
      raise ModelFilesError("model.safetensors.index.json: weight_map must name files of this folder")
    return index

  def _files(self, index: Mapping[str, str]) -> list[Path]:
    """Those that the index names; all that are here where it names others, as after a conversion into fewer files."""
    named = [self.path / name for name in sorted(set(index.values()))]
    if named and all(file.is_file() for file in named):
      return named
    return sorted(file for file in self.path.glob("*.safetensors") if not file.name.startswith("._"))

  def _open(self, file: Path) -> FileBytes:
    self._blocks[file] = BlockMap.beside(file)
    self._bytes[file] = FileBytes(file)
    return self._bytes[file]

  @property
  def hf_config(self) -> dict[str, Any]:
    config = dict(self._config)
    text = self._published.get("text_config", self._published)
    if isinstance(text, dict) and "vocab_size" not in text:
      embedding = next((e for n, (_, e) in self._entries.items() if n.endswith("embed_tokens.weight")), None)
      if embedding is not None:  # rather than what the type's authors assume
        config["vocab_size"] = embedding.shape[0]
        if isinstance(inner := config.get("text_config"), dict):
          config["text_config"] = inner | {"vocab_size": embedding.shape[0]}
    return config

  def names(self) -> Iterable[str]:
    return self._entries.keys() - self._hidden if self._hidden else self._entries.keys()

  def has(self, name: str) -> bool:
    return name in self._entries or self._stacked(name) is not None

  def _entry(self, name: str) -> tuple[Path, SafetensorsEntry]:
    try:
      return self._entries[name]
    except KeyError:
      raise ModelFilesError(f"{self.path.name} has no tensor {name}") from None

  def tensor_bytes(self, name: str) -> int:
    own = self._entry(name)[1].n_bytes
    if name in self._microscaled:
      return own + self._entry(self._microscaled[name])[1].n_bytes
    if name not in self._packed:
      return own
    module = self._packed[name]
    return own + self._entry(f"{module}.scales")[1].n_bytes + self._entry(f"{module}.biases")[1].n_bytes

  def tensor_shape(self, name: str) -> tuple[int, ...]:
    shape = self._entry(name)[1].shape or (1, )
    if name in self._microscaled:
      return logical_shape(shape, self._entry(name)[1].dtype)
    return (*shape[:-1], shape[-1] * 32 // self._settings(self._packed[name])[0]) if name in self._packed else shape

  def encoding(self, name: str) -> str:
    if name in self._microscaled:
      return "MXFP4"
    if name not in self._packed:
      return self._entry(name)[1].dtype
    self._settings(self._packed[name])
    return "MLX"

  def tensor(self, name: str) -> StoredTensor:
    if name in self._packed:
      return self._tensor_of_groups(name, self._packed[name])
    if name in self._microscaled:
      return as_blocks(self._raw(name), self._raw(self._microscaled[name]), self.tensor_shape(name))
    if name not in self._entries and (found := self._stacked(name)):
      stack, expert = found
      return self.tensor(stack).part(expert)
    return self._raw(name)

  def spans(self, name: str) -> list[tuple[Path, int, int]]:
    if name in self._packed:
      parts = [f"{self._packed[name]}.{part}" for part in ("weight", "scales", "biases")]
    elif name in self._microscaled:
      parts = [name, self._microscaled[name]]
    elif name not in self._entries and (found := self._stacked(name)):
      parts = [found[0]]
    else:
      parts = [name]
    entries = [self._entry(part) for part in parts]
    return [(file, entry.start, entry.start + entry.n_bytes) for file, entry in entries]

  def _raw(self, name: str) -> StoredTensor:
    file, entry = self._entry(name)
    check_present(self._blocks[file], file, name, entry.start, entry.start + entry.n_bytes)
    raw = self._bytes[file].span(entry.start, entry.start + entry.n_bytes)
    rows = entry.shape[:-1] if entry.shape else ()
    shape = entry.shape or (1, )
    return StoredTensor(name, shape, entry.dtype, raw.reshape(*rows, raw.size // max(1, math.prod(rows))))

  def _stacked(self, name: str) -> tuple[str, int] | None:
    """MLX stacks a layer's experts: (the stack's name, which of it) for Hugging Face's name of one expert."""
    match = _EXPERT.fullmatch(name)
    if match is None:
      return None
    stack = f"{match[1]}.switch_mlp.{match[3]}"
    return (stack, int(match[2])) if stack in self._entries else None

  def _tensor_of_groups(self, name: str, module: str) -> StoredTensor:
    codes, scales, biases = (self._raw(f"{module}.{part}") for part in ("weight", "scales", "biases"))
    groups, columns = self._groups(module, codes.shape[-1], scales)
    if biases.encoding != scales.encoding or codes.shape[:-1] != scales.shape[:-1] or biases.shape != scales.shape:
      raise ModelFilesError(f"{self.path.name}: codes, scales and biases of {module} do not belong together")
    data = np.concatenate([codes.data, scales.data, biases.data], axis=-1)
    return StoredTensor(name, (*codes.shape[:-1], columns), "MLX", data, groups=groups)

  def _groups(self, module: str, words: int, scales: StoredTensor) -> tuple[AffineGroups, int]:
    """How a module is packed, and how many weights a row has; a module may differ from the rest."""
    bits, size = self._settings(module)
    columns = words * 32 // bits
    if scales.encoding not in ("F16", "BF16", "F32") or columns != scales.shape[-1] * size:
      raise ModelFilesError(f"{self.path.name}: the packing of {module} does not fit config.json's quantization")
    return AffineGroups(bits, size, scales.encoding), columns

  def _settings(self, module: str) -> tuple[int, int]:
    """(bits, group size) of a packed module."""
    settings = self._config.get("quantization") or self._config.get("quantization_config") or {}
    if not isinstance(settings, dict):
      raise ModelFilesError(f"{self.path.name}: config.json's quantization is not an object")
    own = settings.get(module)
    chosen = {**settings, **own} if isinstance(own, dict) else settings
    bits, size, mode = chosen.get("bits", 4), chosen.get("group_size", 64), chosen.get("mode", "affine")
    if mode != "affine" or bits not in (2, 3, 4, 5, 6, 8) or size not in (32, 64, 128):
      raise ModelFilesError(
          f"{self.path.name}: {module} is packed as {mode!r}, {bits} bits, groups of {size}; of MLX's packings exo reads "
          "affine groups of 32, 64 or 128 with 2 to 8 bits, and MXFP4"
      )
    return bits, size

  @property
  def chat_template(self) -> str | None:
    from exo.inference.hf_tokenizer import chat_template_of
    return chat_template_of(self.path)

  @cached_property
  def sampling(self) -> SaidSampling:
    from exo.inference.generation_config import read_generation_config
    config, fault = read_generation_config(self.path)
    return SaidSampling(ignored=(fault, )) if fault else said_by_generation_config(config)

  def tokenizer(self) -> Tokenizer:
    from exo.inference.hf_tokenizer import hf_tokenizer
    return hf_tokenizer(self.path)

  def let_go(self) -> None:
    for found in self._bytes.values():
      found.let_go()

  def close(self) -> None:
    for found in self._bytes.values():
      found.close()
    self._bytes.clear()
