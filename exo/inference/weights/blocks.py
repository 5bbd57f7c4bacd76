"""Quantized weights as whole numbers: every encoding of blocks brought to codes, scales and minimums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from exo.inference.weights.tensor import StoredTensor

Codes = npt.NDArray[Any]  # uint8
Floats = npt.NDArray[Any]  # float32


@dataclass(frozen=True)
class Quantized:
  """w[n, b, k] = scales[n, b] · codes[n, b, k] + minimum[n, b] for blocks b of `block` inputs.

  `codes` has shape (N, blocks, block), for stacks of matrices with their axes before, and holds whole numbers below 2**bits; `minimum` None stands for
  -2**(bits-1) · scale, the symmetric encodings.
  """
  bits: int
  codes: Codes
  scales: Floats
  minimum: Floats | None = None

  @property
  def block(self) -> int:
    return int(self.codes.shape[-1])

  @property
  def form(self) -> tuple[int, int]:
    """Matrices of one form can be stacked."""
    return self.bits, self.block

  def scaled(self, factors: Floats) -> Quantized:
    """Row n multiplied by factors[n]."""
    column = factors[:, None]
    return Quantized(
        self.bits, self.codes, self.scales * column, None if self.minimum is None else self.minimum * column
    )

  def widened(self) -> Quantized:
    """The same numbers on eight bits. Codes shifted up leave more bits for the whole part of a zero point."""
    if self.minimum is None:
      return Quantized(8, self.codes + np.uint8(128 - (1 << (self.bits - 1))), self.scales)
    spare = 8 - self.bits
    return Quantized(8, self.codes << np.uint8(spare), self.scales / (1 << spare), self.minimum)


def _half(raw: Codes) -> Floats:
  """The little-endian float16 that stands in two bytes."""
  return raw.copy().view("<f2")[..., 0].astype(np.float32)


def _nibbles(raw: Codes) -> Codes:
  """GGML's order: the low nibbles of a block come first, then the high ones."""
  return np.concatenate([raw & 15, raw >> 4], axis=-1)


def _q4_0(b: Codes) -> Quantized:
  return Quantized(4, _nibbles(b[..., 2:]), _half(b[..., :2]))


def _q4_1(b: Codes) -> Quantized:
  return Quantized(4, _nibbles(b[..., 4:]), _half(b[..., :2]), _half(b[..., 2:4]))


def _fifth_bits(raw: Codes) -> Codes:
  return np.unpackbits(raw, axis=-1, bitorder="little") << 4


def _q5_0(b: Codes) -> Quantized:
  return Quantized(5, _nibbles(b[..., 6:]) | _fifth_bits(b[..., 2:6]), _half(b[..., :2]))


def _q5_1(b: Codes) -> Quantized:
  codes = _nibbles(b[..., 8:]) | _fifth_bits(b[..., 4:8])
  return Quantized(5, codes, _half(b[..., :2]), _half(b[..., 2:4]))


def _q8_0(b: Codes) -> Quantized:
  return Quantized(8, (b[..., 2:] ^ 0x80).astype(np.uint8), _half(b[..., :2]))


def _k_scales(raw: Codes) -> tuple[Codes, Codes]:
  """The eight 6-bit scales and minimums that Q4_K and Q5_K pack into 12 bytes."""
  low, mid, high = raw[..., 0:4], raw[..., 4:8], raw[..., 8:12]
  scales = np.concatenate([low & 63, (high & 15) | (low >> 6 << 4)], axis=-1)
  minimums = np.concatenate([mid & 63, (high >> 4) | (mid >> 6 << 4)], axis=-1)
  return scales, minimums


def _k_blocks(b: Codes, codes: Codes) -> tuple[Codes, Floats, Floats]:
  """(codes, scale, minimum) of the blocks of 32 in superblocks of 256, whose header `b` begins with."""
  scales, minimums = _k_scales(b[..., 4:16])
  d, m = _half(b[..., :2])[..., None] * scales, -_half(b[..., 2:4])[..., None] * minimums
  rows = b.shape[0]
  return codes.reshape(rows, -1, 32), d.reshape(rows, -1).astype(np.float32), m.reshape(rows, -1).astype(np.float32)


def _q4_k(b: Codes) -> Quantized:
  packed = b[..., 16:].reshape(*b.shape[:-1], 4, 32)
  codes = np.stack([packed & 15, packed >> 4], axis=-2)
  return Quantized(4, *_k_blocks(b, codes))


def _q5_k(b: Codes) -> Quantized:
  packed = b[..., 48:].reshape(*b.shape[:-1], 4, 32)
  low = np.stack([packed & 15, packed >> 4], axis=-2).reshape(*b.shape[:-1], 8, 32)
  high = (b[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
  return Quantized(5, *_k_blocks(b, low | (high << 4)))


def _q6_k(b: Codes) -> Quantized:
  low = b[..., :128].reshape(*b.shape[:-1], 2, 1, 64) >> np.array([0, 4], np.uint8)[:, None] & 15
  high = b[..., 128:192].reshape(*b.shape[:-1], 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
  codes = low.reshape(*b.shape[:-1], 2, 4, 32) | (high << 4)
  scales = _half(b[..., 208:])[..., None] * b[..., 192:208].view(np.int8)
  rows = b.shape[0]
  return Quantized(6, codes.reshape(rows, -1, 16), scales.reshape(rows, -1).astype(np.float32))


_READERS: dict[str, tuple[int, Callable[[Codes], Quantized]]] = {
    "Q4_0": (18, _q4_0),
    "Q4_1": (20, _q4_1),
    "Q5_0": (22, _q5_0),
    "Q5_1": (24, _q5_1),
    "Q8_0": (34, _q8_0),
    "Q4_K": (144, _q4_k),
    "Q5_K": (176, _q5_k),
    "Q6_K": (210, _q6_k),
}


def read_blocks(stored: StoredTensor) -> Quantized | None:
  """The matrix as it is quantized in its file, `None` when it is stored as floats.

  Encodings: https://github.com/ggml-org/ggml (ggml-common.h) and MLX's affine groups.
  """
  if stored.groups is not None:
    return Quantized(stored.groups.bits, *stored.groups.unpack(stored))
  if stored.encoding not in _READERS:
    return None
  size, reader = _READERS[stored.encoding]
  raw = np.ascontiguousarray(stored.data)
  return reader(raw.reshape(raw.shape[0], -1, size))
