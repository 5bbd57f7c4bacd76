"""Linear layers for onnxruntime: every encoding of weights brought to MatMulNBits, exactly or nearly so.

MatMulNBits computes y = x · (scale · (q - zero point)) by blocks along the input, in int8 arithmetic. GGML's encodings
with a float minimum (w = d·q + m) have no whole zero point; rounding it costs up to 30 % in likelihood. Here the whole
part of -m/d is the zero point, and what remains, r = m + d·zp with |r| ≤ d/2, is carried by extra input columns: one per
block, fed with that block's mean of x, whose weights are 32 r, quantized to the same width. That leaves an error of 1/13
of the encoding's own (measured on SmolLM2), and it is one product instead of two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from exo.inference.onnx.graph import MICROSOFT, GraphBuilder
from exo.inference.weights.tensor import AffineGroups, StoredTensor

Codes = npt.NDArray[Any]  # uint8
Floats = npt.NDArray[Any]  # float32
_PLAIN = ("F32", "F16", "BF16", "F64")


@dataclass(frozen=True)
class Quantized:
  """w[n, b, k] = scales[n, b] · codes[n, b, k] + minimum[n, b] for blocks b of `block` inputs.

  `codes` has shape (N, blocks, block) and holds whole numbers below 2**bits; `minimum` None stands for
  -2**(bits-1) · scale, the symmetric encodings.
  """
  bits: int
  codes: Codes
  scales: Floats
  minimum: Floats | None = None

  @property
  def block(self) -> int:
    return int(self.codes.shape[2])

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
  codes = _nibbles(b[..., 6:]) | _fifth_bits(b[..., 2:6])
  return Quantized(8, codes + np.uint8(112), _half(b[..., :2]))


def _q5_1(b: Codes) -> Quantized:
  codes = _nibbles(b[..., 8:]) | _fifth_bits(b[..., 4:8])
  return _widened(codes, _half(b[..., :2]), _half(b[..., 2:4]))


def _widened(codes: Codes, scales: Floats, minimum: Floats) -> Quantized:
  """Five bits on eight: codes times 8 leaves three more bits for the whole part of the zero point."""
  return Quantized(8, codes * np.uint8(8), scales / 8, minimum)


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
  return _widened(*_k_blocks(b, low | (high << 4)))


def _q6_k(b: Codes) -> Quantized:
  low = b[..., :128].reshape(*b.shape[:-1], 2, 1, 64) >> np.array([0, 4], np.uint8)[:, None] & 15
  high = b[..., 128:192].reshape(*b.shape[:-1], 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
  codes = low.reshape(*b.shape[:-1], 2, 4, 32) | (high << 4)
  scales = _half(b[..., 208:])[..., None] * b[..., 192:208].view(np.int8)
  rows = b.shape[0]
  return Quantized(8, (codes + np.uint8(96)).reshape(rows, -1, 16), scales.reshape(rows, -1).astype(np.float32))


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


def _quantize(values: Floats, bits: int) -> Quantized:
  """Round floats to blocks of 32: symmetric at 8 bits, with a minimum at 4. Short last blocks are filled with zeros."""
  rows, columns = values.shape
  blocks = -(-columns // 32)
  padded = np.zeros((rows, blocks * 32), np.float32)
  padded[:, :columns] = values
  b = padded.reshape(rows, blocks, 32)
  if bits == 8:
    scales = np.abs(b).max(axis=-1) / 127
    codes = np.rint(b / np.where(scales == 0, 1, scales)[..., None]) + 128
    return Quantized(8, codes.astype(np.uint8), scales)
  low, high = np.minimum(b.min(axis=-1), 0), np.maximum(b.max(axis=-1), 0)
  scales = (high - low) / 15
  codes = np.clip(np.rint((b - low[..., None]) / np.where(scales == 0, 1, scales)[..., None]), 0, 15)
  return Quantized(4, codes.astype(np.uint8), scales, low)


def _affine(stored: StoredTensor, groups: AffineGroups) -> Quantized:
  """MLX's groups as they are at 4 and 8 bits; other widths on eight."""
  codes, scales, biases = groups.unpack(stored)
  if groups.bits in (4, 8):
    return Quantized(groups.bits, codes, scales, biases)
  spare = 8 - groups.bits
  return Quantized(8, codes << np.uint8(spare), scales / (1 << spare), biases)


def read_quantized(stored: StoredTensor, bits: int | None) -> Quantized | None:
  """The matrix as blocks of whole numbers; None for plain floats when `bits` is None (they stay floats)."""
  if stored.groups is not None:
    return _affine(stored, stored.groups)
  if stored.encoding in _READERS:
    size, reader = _READERS[stored.encoding]
    raw = np.ascontiguousarray(stored.data)
    return reader(raw.reshape(raw.shape[0], -1, size))
  if stored.encoding in _PLAIN and bits is None:
    return None
  # rows that do not fill their last block have no means of blocks: they take the symmetric form
  return _quantize(stored.to_float32(), 8 if stored.shape[1] % 32 else bits or 8)


def _pack_bits(codes: Codes, bits: int) -> Codes:
  """MatMulNBits' layout: at 4 bits two neighbours share a byte, the earlier in the low half."""
  return codes if bits == 8 else codes[..., 0::2] | (codes[..., 1::2] << 4)


class LinearLayers:
  """Adds linear layers to a graph; layers that read the same value share its block sums."""
  def __init__(self, graph: GraphBuilder, bits: int | None) -> None:
    self._graph, self._bits = graph, bits
    self._augmented: dict[tuple[str, int], str] = {}

  def add(
      self,
      x: str,
      matrices: Sequence[StoredTensor],
      biases: Sequence[StoredTensor] = (),
      row_scale: Floats | None = None
  ) -> str:
    """x · [matrices stacked]ᵀ (+ biases), in one product where their encodings allow it.

    `row_scale`, one factor for each output, multiplies weights and biases.
    """
    parts = [read_quantized(matrix, self._bits) for matrix in matrices]
    bias = np.concatenate([b.to_float32() for b in biases]) if biases else None
    if bias is not None and row_scale is not None:
      bias = bias * row_scale
    columns = matrices[0].shape[1]
    if all(part is None for part in parts):
      weight = np.concatenate([m.to_float32() for m in matrices])
      return self._plain(x, weight if row_scale is None else weight * row_scale[:, None], bias)
    groups: list[list[Quantized]] = []
    row = 0
    for part, matrix in zip(parts, matrices, strict=True):
      quantized = part or read_quantized(matrix, 8)
      assert quantized is not None
      if row_scale is not None:
        quantized = quantized.scaled(row_scale[row:row + matrix.shape[0]])
      row += matrix.shape[0]
      if groups and groups[-1][0].form == quantized.form:
        groups[-1].append(quantized)
      else:
        groups.append([quantized])
    outputs, row = [], 0
    for group in groups:
      rows = sum(part.codes.shape[0] for part in group)
      outputs.append(self._quantized(x, columns, group, None if bias is None else bias[row:row + rows]))
      row += rows
    return outputs[0] if len(outputs) == 1 else self._graph.node("Concat", outputs, axis=-1)

  def _plain(self, x: str, weight: Floats, bias: Floats | None) -> str:
    y = self._graph.node("MatMul", [x, self._graph.weight(weight.T)])
    return y if bias is None else self._graph.node("Add", [y, self._graph.weight(bias)])

  def _quantized(self, x: str, columns: int, group: list[Quantized], bias: Floats | None) -> str:
    graph, (bits, block) = self._graph, group[0].form
    codes = np.concatenate([part.codes for part in group])
    scales = np.concatenate([part.scales for part in group])
    zero_points: Codes | None = None
    if any(part.minimum is not None for part in group):
      half = 1 << (bits - 1)
      minimum = np.concatenate([-half * p.scales if p.minimum is None else p.minimum for p in group])
      codes, scales, zero_points = _with_remainders(codes, scales, minimum, bits, block)
      x, columns = self._with_block_means(x, block), columns + columns // block
    inputs = [x, graph.weight(_pack_bits(codes, bits)), graph.weight(scales.astype(np.float32)), "", "", ""]
    if zero_points is not None:
      if bits == 4 and zero_points.shape[1] % 2:
        zero_points = np.concatenate([zero_points, np.zeros((zero_points.shape[0], 1), np.uint8)], axis=1)
      inputs[3] = graph.weight(_pack_bits(zero_points, bits))
    if bias is not None:
      inputs[5] = graph.weight(bias.astype(np.float32))
    while not inputs[-1]:
      inputs.pop()
    return graph.node(
        "MatMulNBits",
        inputs,
        domain=MICROSOFT,
        K=columns,
        N=codes.shape[0],
        bits=bits,
        block_size=block,
        accuracy_level=4
    )

  def _with_block_means(self, x: str, block: int) -> str:
    """x with the means of its blocks behind it: (…, K) becomes (…, K + K / block). Pooling is the fewest operators."""
    if (x, block) not in self._augmented:
      means = self._graph.node("AveragePool", [x], kernel_shape=[block], strides=[block])
      self._augmented[x, block] = self._graph.node("Concat", [x, means], axis=-1)
    return self._augmented[x, block]


def _with_remainders(codes: Codes, scales: Floats, minimum: Floats, bits: int,
                     block: int) -> tuple[Codes, Floats, Codes]:
  """(codes, scales, zero points) with the columns that carry what rounding the zero points leaves."""
  top, half = (1 << bits) - 1, 1 << (bits - 1)
  rows, blocks = scales.shape
  zero_points = np.clip(np.rint(-minimum / np.where(scales == 0, 1, scales)), 0, top)
  remainder = (minimum + zero_points * scales) * block  # what is fed in are means, not sums
  extra = -(-blocks // block)
  padded = np.zeros((rows, extra * block), np.float32)
  padded[:, :blocks] = remainder
  padded = padded.reshape(rows, extra, block)
  steps = np.abs(padded).max(axis=-1) / (half - 0.5)
  rest = np.clip(np.rint(padded / np.where(steps == 0, 1, steps)[..., None]), -half, half - 1) + half
  return (
      np.concatenate([codes, rest.astype(np.uint8)], axis=1),
      np.concatenate([scales, steps], axis=1),
      np.concatenate([zero_points, np.full((rows, extra), half)], axis=1).astype(np.uint8),
  )
