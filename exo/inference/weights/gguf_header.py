"""The header of a GGUF file: metadata and where each tensor lies. Format: GGUF version 2 and 3, from the GGML project.

An own reader, since this header comes from strangers and must be bounded before anything is allocated, is read from
files of which only some ranges are on disk, and lists vocabularies of 260,000 words (`gguf.GGUFReader` takes 3 s for
49,000; this takes 0.03 s).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from typing import Any

from exo.errors import ModelFilesError
from exo.inference.weights.other_contents import other_contents
from exo.inference.weights.tensor import row_bytes

MAX_HEADER_BYTES = 256 * 2**20
_MAX_KEYS = 1 << 16
_MAX_TENSORS = 1 << 20
_MAX_DIMS = 4
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
# GGML's numbers of its encodings
ENCODINGS = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K",
    14: "Q6_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8",
    25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4"
}  # yapf: disable


class GgufCutOffError(ModelFilesError):
  """The header goes on beyond the bytes that are here."""


@dataclass(frozen=True, slots=True)
class GgufTensor:
  """`shape` is (…, out, in); `start` and `n_bytes` count from the beginning of its file, which is the model's `part`th, from 0."""
  name: str
  shape: tuple[int, ...]
  encoding: str
  start: int
  n_bytes: int
  part: int = 0


@dataclass(frozen=True)
class GgufHeader:
  """`kinds` are GGUF's numbers for the kinds of the values in `metadata`, of a list that of its elements."""
  metadata: dict[str, Any]
  tensors: dict[str, GgufTensor]
  header_bytes: int
  kinds: dict[str, int] = field(default_factory=dict)


def architecture_of(header: GgufHeader) -> str:
  """GGUF's name of it; "" where the file says none."""
  return str(header.metadata.get("general.architecture", ""))


class _Cursor:
  def __init__(self, data: memoryview) -> None:
    self.data, self.at = data, 0

  def take(self, fmt: struct.Struct) -> Any:
    try:
      value = fmt.unpack_from(self.data, self.at)[0]
    except struct.error:
      raise GgufCutOffError("the GGUF header ends too early: the file is cut off or damaged") from None
    self.at += fmt.size
    return value

  def skip(self, count: int) -> memoryview:
    end = self.at + count
    if count < 0 or end > min(len(self.data), MAX_HEADER_BYTES):
      raise GgufCutOffError("the GGUF header ends too early: the file is cut off or damaged")
    part, self.at = self.data[self.at:end], end
    return part


_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


def _string(cursor: _Cursor) -> str:
  return bytes(cursor.skip(cursor.take(_U64))).decode("utf-8", errors="replace")


def _skip_strings(cursor: _Cursor, count: int) -> None:
  data, at, size_at = cursor.data, cursor.at, _U64.unpack_from
  try:
    for _ in range(count):
      at += 8 + size_at(data, at)[0]
  except (struct.error, OverflowError):
    at = MAX_HEADER_BYTES + 1
  cursor.skip(at - cursor.at)


def _array(cursor: _Cursor, is_skipped: bool) -> tuple[int, list[Any]]:
  kind, count = cursor.take(_U32), cursor.take(_U64)
  if kind == _STRING:
    if count * 8 > len(cursor.data) - cursor.at:
      raise GgufCutOffError("the GGUF header claims more strings than the file could hold")
    if is_skipped:
      _skip_strings(cursor, count)
      return kind, []
    return kind, [_string(cursor) for _ in range(count)]
  if kind not in _SCALARS:
    raise ModelFilesError(f"the GGUF header holds an array of unknown kind {kind}")
  fmt = _SCALARS[kind]
  raw = cursor.skip(count * struct.calcsize(fmt))
  return kind, [] if is_skipped else list(struct.unpack(f"<{count}{fmt[1]}", raw))


def _value(cursor: _Cursor, kind: int, is_skipped: bool) -> tuple[int, Any]:
  """(kind, of a list that of its elements, and value)."""
  if kind == _STRING:
    return kind, _string(cursor)
  if kind == _ARRAY:
    return _array(cursor, is_skipped)
  if kind not in _SCALARS:
    raise ModelFilesError(f"the GGUF header holds a value of unknown kind {kind}")
  return kind, cursor.take(struct.Struct(_SCALARS[kind]))


def parse_gguf_header(data: memoryview, file_size: int, *, words: bool = False) -> GgufHeader:
  """Read the header from the beginning of a file of `file_size` bytes (`data` may be shorter than the file). Lists of the tokenizer's, of
  hundreds of thousands, are empty unless `words` are wanted.

  Every tensor must be of a known encoding, lie within the file and overlap no other; names must be unique.
  Raises `ModelFilesError` otherwise.
  """
  cursor = _Cursor(data)
  if bytes(cursor.skip(4)) != b"GGUF":
    if what := other_contents(data):
      raise ModelFilesError(f"this is {what}")
    raise ModelFilesError("this is not a GGUF file (its first four bytes are not GGUF)")
  version = cursor.take(_U32)
  if version not in (2, 3):
    raise ModelFilesError(_of_version(version))
  n_tensors, n_keys = cursor.take(_U64), cursor.take(_U64)
  if n_tensors > _MAX_TENSORS or n_keys > _MAX_KEYS:
    raise ModelFilesError(f"the GGUF header claims {n_tensors} tensors and {n_keys} keys, which no real model has")
  metadata, kinds = dict[str, Any](), dict[str, int]()
  for _ in range(n_keys):
    key = _string(cursor)
    kinds[key], metadata[key] = _value(cursor, cursor.take(_U32), not words and key.startswith("tokenizer."))
  infos = [_tensor_info(cursor) for _ in range(n_tensors)]
  alignment = metadata.get("general.alignment", 32)
  if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 16:
    raise ModelFilesError(f"the GGUF header asks for an alignment of {alignment!r}")
  data_start = -(-cursor.at // alignment) * alignment
  tensors: dict[str, GgufTensor] = {}
  for name, shape, encoding, offset in infos:
    if name in tensors:
      raise ModelFilesError(f"the GGUF header names tensor {name!r} twice")
    tensors[name] = GgufTensor(name, shape, encoding, data_start + offset, _n_bytes(name, shape, encoding))
  _check_spans(sorted(tensors.values(), key=lambda tensor: tensor.start), data_start, file_size)
  return GgufHeader(metadata, tensors, cursor.at, kinds)


def _of_version(version: int) -> str:
  if int.from_bytes(version.to_bytes(4, "little"), "big") in (1, 2, 3):
    return "this GGUF file is big-endian, made for another kind of processor: take one that is little-endian, as nearly all are"
  if version == 1:
    return "this GGUF file is of version 1, which was written in 2023 for a few weeks: convert the model anew, or take a newer file"
  return f"GGUF version {version} is not known (2 and 3 are)"


def _tensor_info(cursor: _Cursor) -> tuple[str, tuple[int, ...], str, int]:
  name, n_dims = _string(cursor), cursor.take(_U32)
  if not 1 <= n_dims <= _MAX_DIMS:
    raise ModelFilesError(f"GGUF tensor {name!r} has {n_dims} dimensions")
  shape = tuple(cursor.take(_U64) for _ in range(n_dims))[::-1]
  encoding = ENCODINGS.get(kind := cursor.take(_U32))
  if encoding is None:
    raise ModelFilesError(
        f"GGUF tensor {name!r} has encoding number {kind}, which exo does not know: take it in one of {', '.join(sorted(ENCODINGS.values()))}"
    )
  return name, shape, encoding, cursor.take(_U64)


def _n_bytes(name: str, shape: tuple[int, ...], encoding: str) -> int:
  if min(shape) < 1 or math.prod(shape) > 1 << 42:
    raise ModelFilesError(f"GGUF tensor {name!r} has the impossible shape {shape}")
  try:
    return math.prod(shape[:-1]) * row_bytes(encoding, shape[-1])
  except ValueError as error:
    raise ModelFilesError(f"GGUF tensor {name!r}: {error}") from error


def _check_spans(tensors: list[GgufTensor], data_start: int, file_size: int) -> None:
  end = data_start
  for tensor in tensors:
    if tensor.start < end:
      raise ModelFilesError(f"GGUF tensor {tensor.name!r} overlaps another")
    end = tensor.start + tensor.n_bytes
  if end > file_size:
    raise ModelFilesError(
        f"the GGUF file is cut off: its tensors need {end} bytes, it has {file_size}. Delete it and fetch it again."
    )
