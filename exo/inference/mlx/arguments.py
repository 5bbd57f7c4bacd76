"""A model's configuration in the words of mlx-lm, and what its files leave out: windows and rotary scalings.

mlx-lm reads the older keys at the top level, ignores the sliding windows of some architectures (mistral, gemma2, phi3,
qwen2) and knows fewer rotary scalings than checkpoints have. For the architectures that `ModelConfig` describes fully,
windows and unusual rotary embeddings come from there, so that all engines compute the same.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from exo.inference.model_config import ModelConfig
from exo.inference.rope import RopeScaling, attention_factor, inverse_frequencies
from exo.inference.weights.checkpoint import HEAD, Checkpoint

# architectures whose windows and rotary embeddings are ours; gemma3_text has windows of its own
DESCRIBED = frozenset({"llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gemma3_text", "phi3"})
_OWN_WINDOWS = frozenset({"gemma3_text"})


def architecture(checkpoint: Checkpoint) -> str:
  """mlx-lm's name of it: of a multimodal repository the whole's, which mlx-lm's model takes the text's part of."""
  kind = checkpoint.config.model_type
  return kind if kind in DESCRIBED else str(checkpoint.hf_config.get("model_type") or kind)


def model_arguments(checkpoint: Checkpoint) -> dict[str, Any]:
  """The configuration for `ModelArgs.from_dict`."""
  config, arguments = checkpoint.config, dict(checkpoint.hf_config)
  if config.model_type not in DESCRIBED:
    return _with_older_keys(arguments)
  arguments |= {
      "head_dim": config.head_dim,
      "num_key_value_heads": config.n_kv_heads,
      "tie_word_embeddings": not checkpoint.has(HEAD),
      "rope_theta": config.rope[-1].theta,
      "rope_scaling": None,
      "max_position_embeddings": config.max_context,
  }
  for key in ("attn_logit_softcapping", "final_logit_softcapping"):  # absent means mlx-lm's own default
    if arguments.get(key) is None:
      arguments.pop(key, None)
  if config.model_type == "gemma3_text":
    full = next((i for i, window in enumerate(config.sliding_window) if window is None), config.n_layers)
    arguments["sliding_window_pattern"] = full + 1
    if full:
      arguments["rope_local_base_freq"] = config.rope[0].theta
    arguments["rope_theta"] = config.rope[min(full, config.n_layers - 1)].theta
  else:
    arguments |= {"layer_types": None, "sliding_window": None}
  return arguments


def _with_older_keys(arguments: dict[str, Any]) -> dict[str, Any]:
  newer = arguments.get("rope_parameters")
  if isinstance(newer, dict) and "rope_theta" in newer:
    arguments.setdefault("rope_theta", newer["rope_theta"])
    if newer.get("rope_type", "default") != "default":
      arguments.setdefault("rope_scaling", {key: value for key, value in newer.items() if key != "rope_theta"})
  return arguments


def ignored_windows(config: ModelConfig) -> tuple[int | None, ...]:
  """By layer, the sliding window that the model's file does not know of."""
  if config.model_type not in DESCRIBED or config.model_type in _OWN_WINDOWS:
    return (None, ) * config.n_layers
  return config.sliding_window


class Rope(nn.Module):  # type: ignore[misc]
  """Rotary embedding with frequencies of its own."""
  def __init__(self, rope: RopeScaling, rotary_dim: int, max_context: int) -> None:
    super().__init__()
    self._dims = rotary_dim
    self._periods = mx.array((1 / inverse_frequencies(rope, rotary_dim, max_context)).astype(np.float32))
    self._scale = attention_factor(rope, max_context)

  def __call__(self, x: Any, offset: Any = 0) -> Any:
    if self._scale != 1:
      x = x.at[..., :self._dims].multiply(self._scale)
    return mx.fast.rope(x, self._dims, traditional=False, base=None, scale=1.0, offset=offset, freqs=self._periods)


def set_ropes(layers: list[Any], config: ModelConfig) -> None:
  """Give layers the rotary embedding of their checkpoint where it is more than a base."""
  if config.model_type not in DESCRIBED:
    return
  made: dict[RopeScaling, Rope] = {}
  for layer, rope in zip(layers, config.rope, strict=True):
    if rope.kind not in ("default", "mrope") or rope.factors:
      if rope not in made:
        made[rope] = Rope(rope, config.rotary_dim, config.max_context)
      layer.self_attn.rope = made[rope]
