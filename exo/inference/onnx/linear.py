"""Linear layers for onnxruntime: every encoding of weights brought to MatMulNBits, exactly or nearly so.

MatMulNBits computes y = x · (scale · (q - zero point)) by blocks along the input, in int8 arithmetic. GGML's encodings
with a float minimum (w = d·q + m) have no whole zero point; rounding it costs up to 30 % in likelihood. Here the whole
part of -m/d is the zero point, and what remains, r = m + d·zp with |r| ≤ d/2, is carried by extra input columns: one per
block, fed with that block's mean of x, whose weights are 32 r, quantized to the same width. That leaves an error of 1/13
of the encoding's own (measured on SmolLM2), and it is one product instead of two.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from exo.inference.onnx.graph import MICROSOFT, GraphBuilder
from exo.inference.weights.blocks import Codes, Floats, Quantized, read_blocks
from exo.inference.weights.rounding import round_between, round_symmetric
from exo.inference.weights.tensor import StoredTensor
from exo.inference.whole_blocks import blocks_for

_PLAIN = ("F32", "F16", "BF16", "F64")
_BLOCK = 32


def _quantize(values: Floats, bits: int) -> Quantized:
  """Round floats to blocks of 32: symmetric at 8 bits, with a minimum at 4. Short last blocks are filled with zeros."""
  rows, columns = values.shape
  blocks = blocks_for(columns, _BLOCK)
  padded = np.zeros((rows, blocks * _BLOCK), np.float32)
  padded[:, :columns] = values
  b = padded.reshape(rows, blocks, _BLOCK)
  if bits == 8:
    signed, scales = round_symmetric(b, 8)
    return Quantized(8, (signed + 128).astype(np.uint8), scales)
  low, high = np.minimum(b.min(axis=-1), 0), np.maximum(b.max(axis=-1), 0)
  codes, scales = round_between(b, low, high, 4)
  return Quantized(4, codes.astype(np.uint8), scales, low)


def read_quantized(stored: StoredTensor, bits: int | None) -> Quantized | None:
  """The matrix as blocks of whole numbers; None for plain floats when `bits` is None (they stay floats)."""
  blocks = read_blocks(stored)
  if blocks is not None:
    return blocks if blocks.bits in (4, 8) else blocks.widened()
  if stored.encoding in _PLAIN and bits is None:
    return None
  # rows that do not fill their last block have no means of blocks: they take the symmetric form
  return _quantize(stored.to_float32(), 8 if stored.shape[1] % _BLOCK else bits or 8)


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
  extra = blocks_for(blocks, block)
  padded: Floats = np.zeros((rows, extra * block), np.float32)
  padded[:, :blocks] = remainder
  padded = padded.reshape(rows, extra, block)
  steps = np.abs(padded).max(axis=-1) / (half - 0.5)
  rest = np.clip(np.rint(padded / np.where(steps == 0, 1, steps)[..., None]), -half, half - 1) + half
  return (
      np.concatenate([codes, rest.astype(np.uint8)], axis=1),
      np.concatenate([scales, steps], axis=1),
      np.concatenate([zero_points, np.full((rows, extra), half)], axis=1).astype(np.uint8),
  )
