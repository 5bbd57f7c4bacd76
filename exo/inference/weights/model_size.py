"""How large a model is, part by part, from the headers of its files."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from exo.inference.shard import Shard
from exo.inference.weights.parts import Part, part_of, shard_tensors
from exo.topology.model_size import ModelSize

if TYPE_CHECKING:
  from exo.inference.weights.checkpoint import Checkpoint

_KV_ELEMENT_BYTES = 4  # the engines on a CPU keep float32; others need less


def kv_bytes(elements: int) -> int:
  """Of so many numbers in a cache."""
  return elements * _KV_ELEMENT_BYTES


def model_size(checkpoint: Checkpoint) -> ModelSize:
  """Bytes by part and the number of weights, as they are in the files: a stage's are those of its `shard_tensors`. (Where a
  tied model's files have a head as well, the last stage counts one of the two: engines hold no more.)
  """
  config = checkpoint.config
  n_bytes: Counter[int | Part] = Counter()
  weights = 0
  for name in shard_tensors(checkpoint, Shard("", 0, config.n_layers - 1, config.n_layers)):
    n_bytes[part_of(name)] += checkpoint.tensor_bytes(name)
    weights += checkpoint.tensor_weights(name)
  layers = [n_bytes[layer] for layer in range(config.n_layers)]
  layers[-1] += n_bytes[Part.NORM]  # whichever stage has the last layer has the norm after it
  embedding, head = n_bytes[Part.EMBEDDING], n_bytes[Part.HEAD]
  return ModelSize(
      tuple(layers), embedding, head or embedding, kv_bytes(config.kv_elements_per_token), not head, weights,
      n_bytes[Part.SHARED]
  )
