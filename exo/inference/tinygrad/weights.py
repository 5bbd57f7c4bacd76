"""Weights in the layout of the kernels: panels of LANES rows, each read front to back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tinygrad import dtypes

from exo.inference.tinygrad.device import NUMPY_TYPES, Array, ComputeDevice
from exo.inference.tinygrad.kernels import BLOCK, LANES
from exo.inference.weights.rounding import round_symmetric, round_to_extreme
from exo.inference.weights.tensor import StoredTensor
from exo.inference.whole_blocks import whole_blocks

Floats = npt.NDArray[np.float32]
_WEIGHTS_AT_ONCE = 1 << 21  # bounds what unpacking needs besides the result


@dataclass(frozen=True)
class Matrix:
  """(outputs, inputs) on the device, outputs rounded up to whole panels. `codes` are floats where `bits` is None."""
  outputs: int
  inputs: int
  bits: int | None
  codes: Array
  scales: Array | None
  bias: Array | None = None


class MatrixWriter:
  """Puts matrices of any encoding on the device."""
  def __init__(self, device: ComputeDevice, bits: int | None) -> None:
    self._device, self._bits = device, bits

  def matrix(self, parts: Sequence[StoredTensor], biases: Sequence[StoredTensor] = (), copies: int = 1) -> Matrix:
    """The parts stacked. With `copies`, that many equal shapes follow each other, each of whole panels (experts)."""
    rows, inputs = sum(part.shape[0] for part in parts), parts[0].shape[1]
    per_copy = whole_blocks(rows // copies, LANES)
    outputs = per_copy * copies
    bits = self._bits if inputs % BLOCK == 0 else None
    device = self._device
    size = outputs * inputs
    if bits is None:
      codes, scales = device.weight(size, device.dialect.weights), None
    else:
      codes = device.weight(size * bits // 8, dtypes.int8 if bits == 8 else dtypes.uint8)
      scales = device.weight(size // BLOCK)
    self._fill(parts, rows // copies, codes, scales, bits)
    bias: Array | None = None
    if biases:
      bias = device.weight(outputs)
      bias.write(np.concatenate([b.to_float32() for b in biases]))
    return Matrix(outputs, inputs, bits, codes, scales, bias)

  def vector(self, stored: StoredTensor, offset: float) -> Array:
    array = self._device.weight(stored.shape[0])
    array.write(stored.to_float32() + np.float32(offset))
    return array

  def _fill(
      self, parts: Sequence[StoredTensor], rows_per_copy: int, codes: Array, scales: Array | None, bits: int | None
  ) -> None:
    inputs = parts[0].shape[1]
    outputs = codes.size * (8 // bits if bits else 1) // inputs
    target = codes.host if codes.host is not None else np.empty(codes.size, NUMPY_TYPES[codes.dtype])
    target_scales = None
    if scales is not None:
      target_scales = scales.host if scales.host is not None else np.empty(scales.size, np.float32)
    panels = target.reshape(outputs // LANES, -1)
    scale_panels = None if target_scales is None else target_scales.reshape(outputs // LANES, -1)
    kept: Floats = np.empty((0, inputs), np.float32)  # rows that do not fill a panel yet
    panel = in_copy = 0

    def put(block: Floats) -> None:
      nonlocal panel
      n = len(block) // LANES
      grouped = block.reshape(n, LANES, inputs)
      if bits is None:
        panels[panel:panel + n].reshape(n, inputs, LANES)[:] = grouped.transpose(0, 2, 1)
      else:
        packed, factor = quantize(grouped, bits)
        panels[panel:panel + n] = packed.reshape(n, -1)
        assert scale_panels is not None
        scale_panels[panel:panel + n] = factor.reshape(n, -1)
      panel += n

    at_once = max(LANES, _WEIGHTS_AT_ONCE // inputs)
    for part in parts:
      for start in range(0, part.shape[0], at_once):
        rows = part.rows(slice(start, start + at_once)).to_float32()
        while len(rows):
          taken = rows[:rows_per_copy - in_copy]
          rows = rows[len(taken):]
          in_copy += len(taken)
          block = np.concatenate([kept, taken]) if len(kept) else taken
          if in_copy == rows_per_copy:
            block = np.pad(block, ((0, -len(block) % LANES), (0, 0)))
            in_copy = 0
          whole = len(block) // LANES * LANES
          put(block[:whole])
          kept = block[whole:]
    assert panel * LANES == outputs
    if codes.host is None:
      codes.write(target)
    if scales is not None and scales.host is None and target_scales is not None:
      scales.write(target_scales)


def quantize(panels: Floats, bits: int) -> tuple[npt.NDArray[Any], Floats]:
  """Panels (n, LANES, inputs) as symmetric codes (n, blocks, codes, LANES) and scales (n, blocks, LANES).

  At 4 bits as GGML's Q4_0: the largest value becomes -8 of -8..7, and a byte holds weights k and k + BLOCK / 2.
  """
  n, lanes, inputs = panels.shape
  blocks = panels.reshape(n, lanes, inputs // BLOCK, BLOCK).transpose(0, 2, 3, 1)
  if bits == 8:
    codes, scales = round_symmetric(blocks, 8, axis=2)
    return codes.astype(np.int8), scales.astype(np.float32)
  codes, scales = round_to_extreme(blocks, 4, axis=2)
  nibbles = (codes + 8).astype(np.uint8)
  half = BLOCK // 2
  return nibbles[:, :, :half] | (nibbles[:, :, half:] << 4), scales.astype(np.float32)
