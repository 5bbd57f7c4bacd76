"""How large a model is, part by part, from the headers of its files."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from exo.inference.shard import Shard
from exo.inference.weights.parts import Part, part_of, shard_tensors
from exo.topology.model_size import MIN_KV_TOKENS, ModelSize, PackedWeights

if TYPE_CHECKING:
  from exo.inference.model_config import ModelConfig
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
  found: dict[str, _Counted] = {}
  for name in shard_tensors(checkpoint, Shard("", 0, config.n_layers - 1, config.n_layers)):
    size, weights, part = checkpoint.tensor_bytes(name), checkpoint.tensor_weights(name), part_of(name)
    n_bytes[part] += size
    found.setdefault(_packing(checkpoint.encoding(name), size, weights), _Counted()).add(part, size, weights)
  layers = [n_bytes[layer] for layer in range(config.n_layers)]
  layers[-1] += n_bytes[Part.NORM]  # whichever stage has the last layer has the norm after it
  embedding, head = n_bytes[Part.EMBEDDING], n_bytes[Part.HEAD]
  return ModelSize(
      tuple(layers), embedding, head or embedding, kv_bytes(config.kv_elements_per_token), not head,
      sum(counted.weights.total() for counted in found.values()), n_bytes[Part.SHARED],
      tuple(counted.packed(packing, config.n_layers, not head) for packing, counted in sorted(found.items())),
      _row_bytes(config), kv_bytes(config.state_elements)
  )


def _packing(encoding: str, n_bytes: int, n_weights: int) -> str:
  """MLX's packing has a name for each width: scales and biases of its groups take up to one bit more a weight."""
  return f"{encoding}{math.ceil(8 * n_bytes / n_weights) - 1}" if encoding == "MLX" and n_weights else encoding


class _Counted:
  """The weights that are packed in one way."""
  def __init__(self) -> None:
    self.weights: Counter[int | Part] = Counter()
    self._bytes = self._largest = 0

  def add(self, part: int | Part, n_bytes: int, n_weights: int) -> None:
    self.weights[part] += n_weights
    self._bytes += n_bytes
    if isinstance(part, int):
      self._largest = max(self._largest, n_weights)

  def packed(self, packing: str, n_layers: int, tied: bool) -> PackedWeights:
    w = self.weights
    layers = [w[layer] for layer in range(n_layers)]
    layers[-1] += w[Part.NORM]
    head = w[Part.EMBEDDING] if tied else w[Part.HEAD]
    per_weight = self._bytes / max(1, w.total())
    return PackedWeights(packing, per_weight, tuple(layers), w[Part.EMBEDDING], head, w[Part.SHARED], self._largest)


def _row_bytes(config: ModelConfig) -> int:
  """Of one token, in float32: hidden states, what the widest operators make of them, and scores of its attention to a short text."""
  wide = max(config.intermediate_size, config.n_experts_per_token * config.moe_intermediate_size)
  return 4 * (4 * config.hidden_size + 6 * wide + 2 * MIN_KV_TOKENS * config.n_heads)
