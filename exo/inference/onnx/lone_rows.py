"""Whether onnxruntime computes one row by itself otherwise than among others.

Where a processor has no AVX-512, its products with weights of 4 bits take another kernel for a single row than for two and more, whose
sums are rounded in another order: a token would depend on who else is in the step. Two rows and more are alike there, so a lone row
is computed twice, as two (a third more time for a product that is bound by memory), and its twin is thrown away.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from exo.inference.onnx.graph import MICROSOFT, GraphBuilder

_SHAPES = ((64, 32), (608, 96))  # (K, N) of products that are tried; every one that was tried showed it


@cache
def lone_rows_differ() -> bool:
  """Found out once, in milliseconds, on this processor."""
  return any(_differ(columns, rows, with_zeros) for columns, rows in _SHAPES for with_zeros in (False, True))


def _differ(columns: int, rows: int, with_zeros: bool) -> bool:
  random, graph, blocks = np.random.default_rng(1), GraphBuilder(), columns // 32
  weights = [random.integers(0, 256, (rows, blocks, 16)).astype(np.uint8), random.random((rows, blocks), np.float32)]
  if with_zeros:
    weights.append(random.integers(0, 256, (rows, (blocks + 1) // 2)).astype(np.uint8))
  inputs = [graph.input("x", "float32", ["M", columns]), *map(graph.weight, weights)]
  y = graph.node("MatMulNBits", inputs, domain=MICROSOFT, K=columns, N=rows, bits=4, block_size=32, accuracy_level=4)
  graph.output(y, "float32", ["M", rows])
  session, x = graph.session(1), random.standard_normal((2, columns)).astype(np.float32)
  both, alone = session.run(None, {"x": x})[0], session.run(None, {"x": x[:1]})[0]
  return not np.array_equal(both[:1], alone)
