"""A weight as it stands in its file: raw rows in some encoding, turned into numbers only when asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from exo.errors import ModelFilesError

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

# encoding: (weights per block, bytes per block); the names are GGML's
BLOCKS: dict[str, tuple[int, int]] = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
}
# of further encodings the engines' own code knows no more than their size
UNREAD_BLOCKS: dict[str, tuple[int, int]] = {
    "F64": (1, 8), "I8": (1, 1), "I16": (1, 2), "I32": (1, 4), "I64": (1, 8), "Q2_K": (256, 84), "Q3_K": (256, 110), "IQ1_S": (256, 50),
    "IQ1_M": (256, 56), "IQ2_XXS": (256, 66), "IQ2_XS": (256, 74), "IQ2_S": (256, 82), "IQ3_XXS": (256, 98), "IQ3_S": (256, 110),
    "IQ4_NL": (32, 18), "IQ4_XS": (256, 136), "TQ1_0": (256, 54), "TQ2_0": (256, 66), "MXFP4": (32, 17)
}  # yapf: disable
# what engines' own code can take apart
READABLE = frozenset({*BLOCKS, "F64", "MLX"})


@dataclass(frozen=True, slots=True)
class AffineGroups:
  """MLX's packing of one row: all its codes, then a scale and then a bias for each group of `group_size` weights.

  w = scale · code + bias; codes are `bits` wide, laid end to end from the lowest bit of the first byte. In the file the
  three are tensors of their own; `StoredTensor.data` holds them side by side, so that rows can be taken.
  """
  bits: int
  group_size: int
  scale_encoding: str

  def row_parts(self, columns: int) -> tuple[int, int]:
    """(bytes of the codes, bytes of the scales, which the biases have too)."""
    return columns * self.bits // 8, columns // self.group_size * BLOCKS[self.scale_encoding][1]

  def unpack(self, stored: StoredTensor) -> tuple[Bytes, Floats, Floats]:
    """(codes of shape (…, groups, group size), scales (…, groups), biases (…, groups))."""
    codes, size = self.row_parts(stored.shape[-1])
    data, groups = stored.data, stored.shape[-1] // self.group_size
    scales, biases = (
        StoredTensor(stored.name, (*stored.shape[:-1], groups), self.scale_encoding, part).to_float32()
        for part in (data[..., codes:codes + size], data[..., codes + size:])
    )
    return self._codes(data[..., :codes]).reshape(*stored.shape[:-1], groups, self.group_size), scales, biases

  def _codes(self, raw: Bytes) -> Bytes:
    if self.bits == 8:
      return raw
    if self.bits == 4:
      return np.stack([raw & 15, raw >> 4], axis=-1)
    bits = np.unpackbits(np.ascontiguousarray(raw), axis=-1, bitorder="little")
    wide = bits.reshape(*raw.shape[:-1], -1, self.bits)
    return np.packbits(wide, axis=-1, bitorder="little")


def row_bytes(encoding: str, columns: int) -> int:
  """Bytes of one row of `columns` weights. Raises ValueError when they do not fill whole blocks."""
  block, size = BLOCKS.get(encoding) or UNREAD_BLOCKS[encoding]
  if columns % block:
    raise ValueError(f"{columns} columns are not a multiple of {encoding}'s block of {block}")
  return columns // block * size


@dataclass(frozen=True)
class StoredTensor:
  """`shape` is the logical one, (out, in) for matrices; `data` is uint8 of shape (*shape[:-1], bytes per row).

  `offset` is added to every weight on reading: GGUF stores Gemma's norms with their 1 already added. `groups` describes
  the rows of encoding "MLX".
  """
  name: str
  shape: tuple[int, ...]
  encoding: str
  data: Bytes
  offset: float = 0.0
  groups: AffineGroups | None = None

  @property
  def n_bytes(self) -> int:
    return int(self.data.size)

  def rows(self, index: npt.NDArray[Any] | slice) -> StoredTensor:
    """The same tensor with its first axis indexed."""
    data = self.data[index]
    return StoredTensor(self.name, (*data.shape[:-1], self.shape[-1]), self.encoding, data, self.offset, self.groups)

  def part(self, index: int) -> StoredTensor:
    """One of the tensors that are stacked along the first axis."""
    if not 0 <= index < self.shape[0]:
      raise ModelFilesError(f"tensor {self.name} holds {self.shape[0]} parts, there is no number {index}")
    return StoredTensor(self.name, self.shape[1:], self.encoding, self.data[index], self.offset, self.groups)

  def to_float32(self) -> Floats:
    """A new float32 array of `shape`."""
    if self.groups is not None:
      codes, scales, biases = self.groups.unpack(self)
      return (codes * scales[..., None] + biases[..., None]).reshape(self.shape)
    raw = np.ascontiguousarray(self.data)
    if self.encoding == "F32":
      out = raw.view("<f4").astype(np.float32, copy=True)
    elif self.encoding == "F16":
      out = raw.view("<f2").astype(np.float32)
    elif self.encoding == "F64":
      out = raw.view("<f8").astype(np.float32)
    elif self.encoding == "BF16":
      out = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    elif self.encoding == "Q8_0":  # by far the most read: every embedding lookup of a quantized model
      blocks = raw.reshape(*raw.shape[:-1], -1, 34)
      scales = blocks[..., :2].copy().view("<f2").astype(np.float32)
      out = (blocks[..., 2:].view(np.int8) * scales).reshape(self.shape)
    else:
      from gguf import GGMLQuantizationType
      from gguf.quants import dequantize
      try:
        out = dequantize(raw, GGMLQuantizationType[self.encoding])
      except (KeyError, NotImplementedError) as error:
        raise ModelFilesError(
            f"tensor {self.name} is of type {self.encoding}, which is no weight's that exo knows"
        ) from error
    out = out.reshape(self.shape)
    return out + np.float32(self.offset) if self.offset else out
