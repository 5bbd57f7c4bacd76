"""A shard: the consecutive layers of a model that one stage holds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shard:
  """Layers `start_layer..end_layer`, both inclusive, of the `n_layers` of `model_id`."""
  model_id: str
  start_layer: int
  end_layer: int
  n_layers: int

  def __post_init__(self) -> None:
    if not 0 <= self.start_layer <= self.end_layer < self.n_layers:
      raise ValueError(f"layers {self.start_layer}..{self.end_layer} are not a range of {self.n_layers} layers")

  @property
  def is_first(self) -> bool:
    """It holds the embedding and is fed with token ids."""
    return self.start_layer == 0

  @property
  def is_last(self) -> bool:
    """It holds the final norm and the head and gives logits."""
    return self.end_layer == self.n_layers - 1

  @property
  def layer_count(self) -> int:
    return self.end_layer - self.start_layer + 1

  @property
  def layers(self) -> range:
    return range(self.start_layer, self.end_layer + 1)

  def __str__(self) -> str:
    return f"{self.model_id}[{self.start_layer}..{self.end_layer} of {self.n_layers}]"
