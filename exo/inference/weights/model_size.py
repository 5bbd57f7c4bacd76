"""How large a model is, part by part, from the headers of its files."""

from __future__ import annotations

from exo.inference.weights.checkpoint import Checkpoint
from exo.inference.weights.parts import Part, part_of
from exo.topology.model_size import ModelSize

_KV_ELEMENT_BYTES = 4  # the engines on a CPU keep float32; others need less


def model_size(checkpoint: Checkpoint) -> ModelSize:
  """Bytes by part and the number of weights, as they are in the files."""
  config = checkpoint.config
  layers = [0] * config.n_layers
  embedding = head = weights = 0
  for name in checkpoint.names():
    size, part = checkpoint.tensor_bytes(name), part_of(name)
    weights += checkpoint.tensor_weights(name) if part is not Part.UNUSED else 0
    if isinstance(part, int):
      if part < config.n_layers:
        layers[part] += size
    elif part is Part.EMBEDDING:
      embedding += size
    elif part is Part.HEAD:
      head += size
  tied = not head
  return ModelSize(
      tuple(layers), embedding, embedding if tied else head, config.kv_elements_per_token * _KV_ELEMENT_BYTES, tied,
      weights
  )
