"""Linear layers for onnxruntime: every encoding of weights brought to MatMulNBits, exactly or nearly so.

MatMulNBits computes y = x · (scale · (q - zero point)) by blocks along the input, in int8 arithmetic. GGML's encodings
with a float minimum (w = d·q + m) have no whole zero point; rounding it costs up to 30 % in likelihood. Here the whole
part of -m/d is the zero point, and what remains, r = m + d·zp with |r| ≤ d/2, is carried by extra input columns: one per
block, fed with that block's mean of x, whose weights are 32 r, quantized to the same width. That leaves an error of 1/13
of the encoding's own (measured on SmolLM2), and it is one product instead of two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from exo.inference.onnx.graph import MICROSOFT, GraphBuilder
from exo.inference.weights.blocks import Codes, Floats, Quantized, read_blocks
from exo.inference.weights.rounding import round_between, round_symmetric
from exo.inference.weights.tensor import StoredTensor
from exo.inference.whole_blocks import blocks_for

_PLAIN = ("F32", "F16", "BF16", "F64")
_BLOCK = 32
_WEIGHTS_AT_ONCE = 1 << 21


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


@dataclass(frozen=True, slots=True)
class _Part:
  """A matrix that becomes some of a product's outputs, each multiplied by its number in `scale` where there is one."""
  stored: StoredTensor
  bits: int
  scale: Floats | None

  def rows(self, start: int, end: int) -> Quantized:
    found = read_quantized(self.stored.rows(slice(start, end)), self.bits)
    assert found is not None
    return found if self.scale is None else found.scaled(self.scale[start:end])


class LinearLayers:
  """Adds linear layers to a graph; layers that read the same value share its block sums."""
  def __init__(self, graph: GraphBuilder, bits: int | None) -> None:
    self._graph, self._bits = graph, bits
    self._augmented: dict[tuple[str, int], str] = {}

  def are_narrow(self, matrices: Sequence[StoredTensor]) -> bool:
    """Whether some of them would have weights of 4 bits in a product."""
    found = [read_quantized(matrix.rows(slice(0, 1)), self._bits) for matrix in matrices]
    return any(part is not None and part.bits == 4 for part in found)

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
    bias = np.concatenate([b.to_float32() for b in biases]) if biases else None
    if bias is not None and row_scale is not None:
      bias = bias * row_scale
    if all(read_quantized(matrix.rows(slice(0, 1)), self._bits) is None for matrix in matrices):
      return self._plain(x, matrices, bias, row_scale)
    groups: list[tuple[tuple[int, int], list[_Part]]] = []  # by form, neighbours together
    row = 0
    for matrix in matrices:
      part = _Part(matrix, self._bits or 8, None if row_scale is None else row_scale[row:row + matrix.shape[0]])
      row += matrix.shape[0]
      form = part.rows(0, 1).form
      if groups and groups[-1][0] == form:
        groups[-1][1].append(part)
      else:
        groups.append((form, [part]))
    outputs, row = [], 0
    for form, parts in groups:
      rows = sum(part.stored.shape[0] for part in parts)
      outputs.append(self._quantized(x, form, parts, None if bias is None else bias[row:row + rows]))
      row += rows
    return outputs[0] if len(outputs) == 1 else self._graph.node("Concat", outputs, axis=-1)

  def _plain(self, x: str, matrices: Sequence[StoredTensor], bias: Floats | None, row_scale: Floats | None) -> str:
    rows, columns = sum(matrix.shape[0] for matrix in matrices), matrices[0].shape[1]
    weight = np.empty((columns, rows), np.float32)
    for i, start, end, at in _pieces(matrices):
      values = matrices[i].rows(slice(start, end)).to_float32()
      span = slice(at, at + end - start)
      weight[:, span] = (values if row_scale is None else values * row_scale[span, None]).T
    y = self._graph.node("MatMul", [x, self._graph.weight(weight)])
    return y if bias is None else self._graph.node("Add", [y, self._graph.weight(bias)])

  def _quantized(self, x: str, form: tuple[int, int], parts: list[_Part], bias: Floats | None) -> str:
    graph, (bits, block) = self._graph, form
    columns = parts[0].stored.shape[1]
    with_zeros = any(part.rows(0, 1).minimum is not None for part in parts)
    made: list[npt.NDArray[Any]] = []
    rows = sum(part.stored.shape[0] for part in parts)
    for i, start, end, at in _pieces([part.stored for part in parts]):
      pieces = _packed(parts[i].rows(start, end), with_zeros)
      made = made or [np.empty((rows, *piece.shape[1:]), piece.dtype) for piece in pieces]
      for whole, piece in zip(made, pieces, strict=True):
        whole[at:at + end - start] = piece
    if with_zeros:
      x, columns = self._with_block_means(x, block), columns + columns // block
    names = [graph.weight(array) for array in made]
    graph.packed_bytes += 2 * made[1].nbytes  # scales once more, in the order of its kernels, and a sum for each block
    inputs = [
        x, *names[:2], names[2] if with_zeros else "", "",
        "" if bias is None else graph.weight(bias.astype(np.float32))
    ]
    while not inputs[-1]:
      inputs.pop()
    return graph.node(
        "MatMulNBits", inputs, domain=MICROSOFT, K=columns, N=rows, bits=bits, block_size=block, accuracy_level=4
    )

  def _with_block_means(self, x: str, block: int) -> str:
    """x with the means of its blocks behind it: (…, K) becomes (…, K + K / block). Pooling is the fewest operators."""
    if (x, block) not in self._augmented:
      means = self._graph.node("AveragePool", [x], kernel_shape=[block], strides=[block])
      self._augmented[x, block] = self._graph.node("Concat", [x, means], axis=-1)
    return self._augmented[x, block]


def _pieces(matrices: Sequence[StoredTensor]) -> Iterator[tuple[int, int, int, int]]:
  """(number of a matrix, its rows from and to, where they go in the stack of all) of so few weights that what is reckoned with
  them takes little memory.
  """
  at_once, below = max(1, _WEIGHTS_AT_ONCE // matrices[0].shape[1]), 0
  for i, matrix in enumerate(matrices):
    for start in range(0, matrix.shape[0], at_once):
      end = min(start + at_once, matrix.shape[0])
      yield i, start, end, below + start
    below += matrix.shape[0]


def _packed(part: Quantized, with_zeros: bool) -> tuple[npt.NDArray[Any], ...]:
  """(codes, scales) as the operator wants them, and behind them zero points where they are asked for."""
  codes, scales = part.codes, part.scales
  if not with_zeros:
    return _pack_bits(codes, part.bits), scales.astype(np.float32)
  minimum = -(1 << (part.bits - 1)) * scales if part.minimum is None else part.minimum
  codes, scales, zero_points = _with_remainders(codes, scales, minimum, part.bits, part.block)
  if part.bits == 4 and zero_points.shape[1] % 2:
    zero_points = np.concatenate([zero_points, np.zeros((zero_points.shape[0], 1), np.uint8)], axis=1)
  return _pack_bits(codes, part.bits), scales.astype(np.float32), _pack_bits(zero_points, part.bits)


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
