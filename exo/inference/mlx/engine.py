"""The mlx engine: any architecture of mlx-lm, cut into stages. The default on Apple Silicon.

MLX is imported when the engine is made, after the BLAS that it should use (`library.py`).
"""

from __future__ import annotations

from exo.inference.engine import InferenceEngine
from exo.inference.mlx.library import load_blas


def create() -> InferenceEngine:
  load_blas()
  from exo.inference.mlx.stage import MlxStage
  return InferenceEngine("mlx", MlxStage)
