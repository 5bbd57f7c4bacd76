"""Floats rounded to whole numbers, block by block. Engines differ in what their kernels multiply, not in how it is found.

`values` hold blocks along `axis`, scales have its shape without that axis; all in float32. With `xp`, the arrays are those of
another library that calls these functions as numpy does.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def _scaled(values: Any, scales: Any, axis: int, xp: Any) -> Any:
  """In whole steps; blocks of nothing but zeros have none."""
  return xp.round(values / xp.expand_dims(xp.where(scales == 0, 1, scales), axis))


def round_symmetric(values: Any, bits: int, axis: int = -1) -> tuple[Any, Any]:
  """(codes, scales), values ≈ scales · codes, with codes as far below zero as above it."""
  scales = np.abs(values).max(axis=axis) / ((1 << (bits - 1)) - 1)
  return _scaled(values, scales, axis, np), scales


def round_to_extreme(values: Any, bits: int, axis: int = -1) -> tuple[Any, Any]:
  """As `round_symmetric`, but the value of the greatest magnitude becomes the least code, -2**(bits-1), as in GGML's Q4_0."""
  least = -(1 << (bits - 1))
  extreme = np.take_along_axis(values, np.expand_dims(np.abs(values).argmax(axis=axis), axis), axis=axis)
  scales = extreme.squeeze(axis) / least
  return np.clip(_scaled(values, scales, axis, np), least, -least - 1), scales


def round_between(values: Any, low: Any, high: Any, bits: int, xp: Any = np) -> tuple[Any, Any]:
  """(codes, scales), values ≈ low + scales · codes, with codes from 0 to 2**bits-1 for values from `low` to `high`."""
  top = (1 << bits) - 1
  scales = (high - low) / top
  return xp.clip(_scaled(values - xp.expand_dims(low, -1), scales, -1, xp), 0, top), scales
