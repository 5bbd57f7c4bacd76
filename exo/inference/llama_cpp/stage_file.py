"""The GGUF file of a stage, which is nowhere on disk: a header of its own, and spans of the model's files behind it."""

from __future__ import annotations

import hashlib
import math
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from exo.errors import ModelFilesError
from exo.inference.llama_cpp.stage_cut import Piece, StageCut
from exo.inference.weights.gguf_header import ENCODINGS, GgufTensor
from exo.inference.whole_blocks import whole_blocks

_ALIGNMENT, _VERSION = 32, 3
_COPY_BYTES = 1 << 22
_NUMBERS = {encoding: number for number, encoding in ENCODINGS.items()}
_BOOL, _U32, _F32, _STRING, _ARRAY = 7, 4, 6, 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_FLOATS = {"F32": np.float32, "F16": np.float16, "F64": np.float64}


@dataclass(frozen=True, slots=True)
class SourceTensor:
  """A tensor of the whole model and the file in which it lies."""
  info: GgufTensor
  path: Path


@dataclass(frozen=True, slots=True)
class _Span:
  """`n_bytes` that are in the file `path` from `start` on, or in `data`, or zeros."""
  n_bytes: int
  path: Path | None = None
  start: int = 0
  data: bytes = b""


class StageFile:
  """Read it as any file of `size` bytes; it holds descriptors until it is closed. For one thread."""
  def __init__(
      self, cut: StageCut, sources: Mapping[str, SourceTensor], kinds: Mapping[str, int], architecture: str
  ) -> None:
    """`kinds` are GGUF's of the values that the metadata have in the whole model. Raises `ModelFilesError`."""
    placed = [(name, sources[piece.source].info, piece) for name, piece in cut.tensors.items()]
    shapes = [_shape(info, piece) for _, info, piece in placed]
    sizes = [_n_bytes(info, shape) for (_, info, _), shape in zip(placed, shapes, strict=True)]
    starts = [0, *accumulate(whole_blocks(size, _ALIGNMENT) for size in sizes)]
    infos = b"".join(
        _info(name, shape, info.encoding, start)
        for (name, info, _), shape, start in zip(placed, shapes, starts, strict=False)
    )
    values = {"general.architecture": architecture, **cut.metadata, "tokenizer.ggml.model": "none"}
    head = b"GGUF" + struct.pack("<IQQ", _VERSION, len(placed), len(values))
    head += b"".join(_entry(key, value, kinds.get(key)) for key, value in values.items()) + infos
    spans = [_Span(whole_blocks(len(head), _ALIGNMENT), data=head)]
    for (_, info, piece), size in zip(placed, sizes, strict=True):
      spans.append(_span(info, piece, sources[piece.source].path, size))
      if gap := whole_blocks(size, _ALIGNMENT) - size:
        spans.append(_Span(gap))
    self._spans: Sequence[_Span] = spans
    self._ends = list(accumulate(span.n_bytes for span in spans))
    self.size = self._ends[-1]
    self._descriptors: dict[Path, int] = {}

  def read_into(self, target: memoryview, position: int) -> int:
    """Fill as much of `target` as there is from `position` on; returns the number of bytes. Raises `OSError`."""
    count = max(0, min(len(target), self.size - position))
    at, done = self._at(position), 0
    while done < count:
      span, begin = self._spans[at], self._ends[at] - self._spans[at].n_bytes
      inside = position + done - begin
      part = target[done:done + min(count - done, span.n_bytes - inside)]
      self._fill(part, span, inside)
      done, at = done + len(part), at + 1
    return count

  @property
  def name(self) -> str:
    """The same for the same content, which files that have changed do not have."""
    digest = hashlib.sha256(self._spans[0].data)
    for span in self._spans[1:]:
      digest.update(repr((span.n_bytes, str(span.path), span.start)).encode() + span.data)
    for path in sorted({span.path for span in self._spans if span.path is not None}):
      found = path.stat()
      digest.update(repr((found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)).encode())
    return f"{digest.hexdigest()[:32]}.gguf"

  def write(self, descriptor: int) -> None:
    """All of it, from the start of that file. Raises `OSError`."""
    buffer = memoryview(bytearray(_COPY_BYTES))
    position = 0
    while count := self.read_into(buffer, position):
      done = 0
      while done < count:
        done += os.pwrite(descriptor, buffer[done:count], position + done)
      position += count

  def _at(self, position: int) -> int:
    low, high = 0, len(self._ends)
    while low < high:
      middle = (low + high) // 2
      low, high = (middle + 1, high) if self._ends[middle] <= position else (low, middle)
    return low

  def _fill(self, part: memoryview, span: _Span, inside: int) -> None:
    if span.path is None:
      data = span.data[inside:inside + len(part)]
      part[:len(data)] = data
      part[len(data):] = bytes(len(part) - len(data))
      return
    if span.path not in self._descriptors:
      self._descriptors[span.path] = os.open(span.path, os.O_RDONLY | os.O_CLOEXEC)
    done = 0
    while done < len(part):
      got = os.preadv(self._descriptors[span.path], [part[done:]], span.start + inside + done)
      if not got:
        raise OSError(f"{span.path.name} is cut off")
      done += got

  def close(self) -> None:
    for descriptor in self._descriptors.values():
      os.close(descriptor)
    self._descriptors.clear()


def _shape(info: GgufTensor, piece: Piece) -> tuple[int, ...]:
  return info.shape if piece.rows is None else (min(piece.rows, info.shape[0]), *info.shape[1:])


def _n_bytes(info: GgufTensor, shape: tuple[int, ...]) -> int:
  return info.n_bytes // info.shape[0] * shape[0]


def _span(info: GgufTensor, piece: Piece, path: Path, size: int) -> _Span:
  if piece.constant is None:
    return _Span(size, path, info.start)
  if not piece.constant:  # which are zeros in every encoding
    return _Span(size)
  if info.encoding not in _FLOATS:
    raise ModelFilesError(f"{info.name} is of encoding {info.encoding}, of which no ones can be made")
  return _Span(size, data=np.full(math.prod(info.shape), piece.constant, _FLOATS[info.encoding]).tobytes())


def _text(value: str) -> bytes:
  data = value.encode()
  return struct.pack("<Q", len(data)) + data


def _info(name: str, shape: tuple[int, ...], encoding: str, start: int) -> bytes:
  return _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), _NUMBERS[encoding], start)


def _entry(key: str, value: Any, kind: int | None) -> bytes:
  """A key with its value, of the kind that it had in the whole model if that fits."""
  if isinstance(value, list):
    element = _kind(value[0]) if kind is None or (value and isinstance(value[0], bool)) else kind
    packed = b"".join(map(_text, value)
                      ) if element == _STRING else struct.pack(f"<{len(value)}{_SCALARS[element]}", *value)
    return _text(key) + struct.pack("<IIQ", _ARRAY, element, len(value)) + packed
  if kind is None:
    kind = _kind(value)
  packed = _text(value) if kind == _STRING else struct.pack(f"<{_SCALARS[kind]}", value)
  return _text(key) + struct.pack("<I", kind) + packed


def _kind(value: Any) -> int:
  if isinstance(value, bool):
    return _BOOL
  return _STRING if isinstance(value, str) else _F32 if isinstance(value, float) else _U32
