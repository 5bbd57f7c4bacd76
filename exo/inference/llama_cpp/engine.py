"""The llama.cpp engine: stages of GGUF models in a process of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from exo.inference.engine import InferenceEngine, LoadOptions, StageModel
from exo.inference.llama_cpp.stage import Device, LlamaCppStage
from exo.inference.shard import Shard

if TYPE_CHECKING:
  from exo.inference.weights.checkpoint import Checkpoint


def create() -> InferenceEngine:
  device = Device()

  def load(shard: Shard, checkpoint: Checkpoint, options: LoadOptions, progress: Callable[[float], None]) -> StageModel:
    return LlamaCppStage(device, shard, checkpoint, options, progress)

  return InferenceEngine("llama_cpp", load, reads_files=True)
