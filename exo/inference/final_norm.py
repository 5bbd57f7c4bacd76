"""The norm before the head, on the host: what embeddings are made of, for engines that have it only inside their head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from exo.errors import UnsupportedModelError

if TYPE_CHECKING:
  from exo.inference.weights.checkpoint import Checkpoint

NORM = "model.norm.weight"


class FinalNorm:
  """RMS norm (Zhang and Sennrich, 2019) with the weight of the checkpoint. Cheap to make: the weight is read when used."""
  def __init__(self, checkpoint: Checkpoint) -> None:
    self._checkpoint = checkpoint

  def __call__(self, hidden: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """(tokens, hidden size), normed, in float32. Raises `UnsupportedModelError` where the model has no such norm."""
    if not self._checkpoint.has(NORM):
      raise UnsupportedModelError("models of this type give no embeddings: their last norm is not known")
    config = self._checkpoint.config
    weight = self._checkpoint.tensor(NORM).to_float32() + np.float32(config.norm_offset)
    x = hidden.astype(np.float32)
    mean_square = np.square(x).mean(axis=-1, keepdims=True)
    normed: npt.NDArray[np.float32] = x / np.sqrt(mean_square + np.float32(config.norm_eps)) * weight
    return normed
