"""How long a sequence may become in a stage, and how many tokens of KV all of them together."""

from __future__ import annotations

import math
from dataclasses import dataclass

from exo.inference.engine import LoadOptions
from exo.inference.model_config import ModelConfig
from exo.inference.shard import Shard


@dataclass(frozen=True, slots=True)
class KvBudget:
  """`token_bytes` are the keys and values of one token in all layers of the stage; `model_context` the longest sequence
  that the model knows; `spare` is the room that caches leave empty at most, as a share of what they use.
  """
  options: LoadOptions
  token_bytes: int
  model_context: int
  spare: float = 0.0

  @classmethod
  def of(
      cls,
      shard: Shard,
      config: ModelConfig,
      options: LoadOptions,
      element_bytes: float,
      spare: float = 0.0
  ) -> KvBudget:
    """Of an engine that keeps keys and values in numbers of so many bytes."""
    token_bytes = math.ceil(shard.layer_count * config.kv_elements_per_token * element_bytes)
    return cls(options, max(1, token_bytes), config.max_context, spare)

  @property
  def most_token_bytes(self) -> int:
    """What one token takes at most."""
    return math.ceil(self.token_bytes * (1 + self.spare))

  @property
  def max_context(self) -> int:
    """The model's, unless less is asked for. No sequence is longer than all memory: tables and arrays are as long as this."""
    asked = min(self.model_context, self.options.max_context or self.model_context)
    return min(asked, max(2, self.options.memory_bytes // self.token_bytes))

  def left_bytes(self, weight_bytes: int, at_once: bool = False) -> int:
    """Bytes for caches beside the weights; `at_once`: they are taken while the shard is loaded."""
    memory_bytes = self.options.memory_bytes
    if at_once and self.options.free_bytes is not None:
      memory_bytes = min(memory_bytes, self.options.free_bytes)
    left = max(0, memory_bytes - weight_bytes)
    return left if self.options.kv_memory_bytes is None else min(left, self.options.kv_memory_bytes)

  def tokens(self, weight_bytes: int, at_once: bool = False) -> int:
    """How many fit beside the weights."""
    left = self.left_bytes(weight_bytes, at_once)
    tokens = left // self.most_token_bytes
    return tokens if self.options.max_kv_tokens is None else min(tokens, self.options.max_kv_tokens)
