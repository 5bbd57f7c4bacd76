"""What counts as numbers, in every dtype that travels between stages."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from exo.worker.step_guard import are_numbers

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.float64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_line_4_what_is_not_finite_or_too_large_is_found_wherever_it_stands(dtype: type) -> None:
  rng = np.random.default_rng(1)
  for bad in (np.nan, np.inf, -np.inf, 3e38, -3e38, 2e18):
    with np.errstate(over="ignore"):
      value = np.array(bad).astype(dtype)
    for shape in ((1, 576), (7, 33), (256, 8)):
      rows = rng.normal(size=shape).astype(dtype)
      assert are_numbers(rows)
      rows[rng.integers(shape[0]), rng.integers(shape[1])] = value
      assert not are_numbers(rows), (bad, shape)


@pytest.mark.parametrize("dtype", DTYPES)
def test_line_4_large_numbers_that_a_norm_can_square_are_numbers(dtype: type) -> None:
  largest = 65504 if dtype is np.float16 else 9.9e17
  rows = np.array([[largest, -largest, 0, -0.0, 6e-8]]).astype(dtype)
  assert are_numbers(rows) and are_numbers(rows[:0]) and are_numbers(rows[:, ::2])
