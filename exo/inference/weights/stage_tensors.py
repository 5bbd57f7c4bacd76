"""A checkpoint as one stage reads it: what it needs, under the names of the Llama line."""

from __future__ import annotations

from collections.abc import Iterator

from exo.errors import ModelFilesError, UnsupportedModelError
from exo.inference.model_config import ModelConfig
from exo.inference.model_facts import ModelFacts
from exo.inference.shard import Shard
from exo.inference.weights.checkpoint import EMBEDDING, HEAD, Checkpoint
from exo.inference.weights.parts import Part, part_of, parts_needed
from exo.inference.weights.tensor import StoredTensor


class StageTensors:
  """The tensors that `shard_tensors` names, hence those that are fetched and planned for; a stage that asks for another is
  told so even where all are on this machine.
  """
  def __init__(self, checkpoint: Checkpoint, shard: Shard) -> None:
    self._checkpoint, self._shard = checkpoint, shard
    has_head = any(part_of(name) is Part.HEAD for name in checkpoint.names())
    self._needed = parts_needed(shard, has_head, checkpoint.config.tied)

  @property
  def config(self) -> ModelConfig:
    return self._checkpoint.config

  @property
  def facts(self) -> ModelFacts:
    return self._checkpoint.facts

  def has(self, name: str) -> bool:
    """Whether the model has such a tensor, in whichever stage."""
    return self._checkpoint.has(name)

  def tensor(self, name: str) -> StoredTensor:
    """As `Checkpoint.tensor`."""
    if part_of(name) not in self._needed:
      raise ModelFilesError(f"tensor {name} is none of the stage {self._shard}")
    return self._checkpoint.tensor(name)

  def let_go(self) -> None:
    """As `Checkpoint.let_go`."""
    self._checkpoint.let_go()

  def head(self) -> StoredTensor:
    """What hidden states become logits with: (words, hidden size)."""
    return self.tensor(HEAD if self.has(HEAD) else EMBEDDING)

  def projection(self, layer: int, fused: str, *separate: str) -> tuple[list[StoredTensor], list[StoredTensor]]:
    """(weights, biases) of the projections that read one value, stored together as `fused` or apart.

    Raises `UnsupportedModelError` where some have a bias and some have none.
    """
    names = list(self._named(f"model.layers.{layer}.", fused, separate))
    biases = [self.tensor(f"{name}.bias") for name in names if self.has(f"{name}.bias")]
    if biases and len(biases) != len(names):
      raise UnsupportedModelError(f"layer {layer}: some of {', '.join(names)} have a bias and some have none")
    return [self.tensor(f"{name}.weight") for name in names], biases

  def _named(self, prefix: str, fused: str, separate: tuple[str, ...]) -> Iterator[str]:
    if self.has(f"{prefix}{fused}.weight"):
      yield prefix + fused
    else:
      yield from (prefix + name for name in separate)
