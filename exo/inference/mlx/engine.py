"""The mlx engine: any architecture of mlx-lm, cut into stages. The default on Apple Silicon.

MLX is imported when the engine is made, after the BLAS that it should use (`library.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from exo.inference.engine import InferenceEngine, LoadOptions, StageModel
from exo.inference.mlx.library import load_blas
from exo.inference.shard import Shard

if TYPE_CHECKING:
  from exo.inference.weights.checkpoint import Checkpoint


class MlxEngine(InferenceEngine):
  name = "mlx"

  def load(
      self,
      shard: Shard,
      checkpoint: Checkpoint,
      options: LoadOptions,
      progress: Callable[[float], None],
  ) -> StageModel:
    from exo.inference.mlx.stage import MlxStage
    return MlxStage(shard, checkpoint, options, progress)


def create() -> InferenceEngine:
  load_blas()
  return MlxEngine()
