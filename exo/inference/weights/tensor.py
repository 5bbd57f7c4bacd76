"""A weight as it stands in its file: raw rows in some encoding, turned into numbers only when asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

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


def row_bytes(encoding: str, columns: int) -> int:
  """Bytes of one row of `columns` weights. Raises ValueError when they do not fill whole blocks."""
  block, size = BLOCKS[encoding]
  if columns % block:
    raise ValueError(f"{columns} columns are not a multiple of {encoding}'s block of {block}")
  return columns // block * size


@dataclass(frozen=True)
class StoredTensor:
  """`shape` is the logical one, (out, in) for matrices; `data` is uint8 of shape (*shape[:-1], bytes per row).

  `offset` is added to every weight on reading: GGUF stores Gemma's norms with their 1 already added.
  """
  name: str
  shape: tuple[int, ...]
  encoding: str
  data: Bytes
  offset: float = 0.0

  @property
  def n_bytes(self) -> int:
    return int(self.data.size)

  def rows(self, index: npt.NDArray[Any] | slice) -> StoredTensor:
    """The same tensor with its first axis indexed."""
    data = self.data[index]
    return StoredTensor(self.name, (*data.shape[:-1], self.shape[-1]), self.encoding, data, self.offset)

  def to_float32(self) -> Floats:
    """A new float32 array of `shape`."""
    raw = np.ascontiguousarray(self.data)
    if self.encoding == "F32":
      out = raw.view("<f4").astype(np.float32, copy=True)
    elif self.encoding == "F16":
      out = raw.view("<f2").astype(np.float32)
    elif self.encoding == "BF16":
      out = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    elif self.encoding == "Q8_0":  # by far the most read: every embedding lookup of a quantized model
      blocks = raw.reshape(*raw.shape[:-1], -1, 34)
      scales = blocks[..., :2].copy().view("<f2").astype(np.float32)
      out = (blocks[..., 2:].view(np.int8) * scales).reshape(self.shape)
    else:
      from gguf import GGMLQuantizationType
      from gguf.quants import dequantize
      out = dequantize(raw, GGMLQuantizationType[self.encoding])
    out = out.reshape(self.shape)
    return out + np.float32(self.offset) if self.offset else out
