"""A model's configuration in the words of mlx-lm, and what its files leave out: windows and rotary scalings.

mlx-lm ignores the sliding windows of some architectures (mistral, gemma2, phi3,
qwen2) and knows fewer rotary scalings than checkpoints have. For the architectures that `ModelConfig` describes fully,
windows and unusual rotary embeddings come from there, so that all engines compute the same.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from exo.inference.families.catalogue import line_of, mlx_facts
from exo.inference.mlx.probe import repertoire
from exo.inference.model_config import ModelConfig
from exo.inference.rope import RopeScaling, attention_factor, inverse_frequencies
from exo.inference.weights.checkpoint import HEAD, Checkpoint
from exo.inference.weights.parts import Part, part_of


def architecture(checkpoint: Checkpoint) -> str:
  """mlx-lm's name of it: of a multimodal repository the whole's, which mlx-lm's model takes the text's part of.

  Raises `UnsupportedModelError` where the engine cannot run the model.
  """
  known = repertoire()
  known.check("mlx", checkpoint.facts)
  kind = known.type_of(checkpoint.facts)
  assert kind is not None
  return kind


def model_arguments(checkpoint: Checkpoint) -> dict[str, Any]:
  """The configuration for `ModelArgs.from_dict`."""
  config, arguments = checkpoint.config, dict(checkpoint.hf_config)
  if line_of(config.model_type) is None:
    return _with_older_keys(arguments, checkpoint)
  arguments |= {
      "head_dim": config.head_dim,
      "num_key_value_heads": config.n_kv_heads,
      "tie_word_embeddings": not checkpoint.has(HEAD),
      "rope_theta": config.rope[-1].theta,
      "rope_scaling": None,
      "max_position_embeddings": config.max_context,
  }
  if config.n_experts:
    arguments |= {
        "num_experts": config.n_experts,
        "mlp_only_layers": [i for i, sparse in enumerate(config.sparse_layers) if not sparse],
        "decoder_sparse_step": 1,
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


def _with_older_keys(keys: dict[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
  """`keys` with those that mlx-lm wants under another name."""
  keys = dict(keys)
  if "num_local_experts" in keys:
    keys.setdefault("num_experts", keys["num_local_experts"])
  if isinstance(text := keys.get("text_config"), dict):
    # the two levels often contradict each other in this
    tied = not any(part_of(name) is Part.HEAD for name in checkpoint.names())
    keys["text_config"] = _with_older_keys(text | {"tie_word_embeddings": tied}, checkpoint)
    keys.setdefault("vocab_size", checkpoint.config.vocab_size)
  return keys


def ignored_windows(config: ModelConfig) -> tuple[int | None, ...]:
  """By layer, the sliding window that the model's file does not know of."""
  facts = mlx_facts(config.model_type)
  is_ours = line_of(config.model_type) is not None and not facts.own_windows
  return config.sliding_window if is_ours or facts.lacks_windows else (None, ) * config.n_layers


class Rope(nn.Module):  # type: ignore[misc]
  """Rotary embedding with frequencies of its own. `far` says whether the sequences that it is called for next are."""
  def __init__(self, rope: RopeScaling, rotary_dim: int, scales: tuple[float, float]) -> None:
    """`scales` of near sequences, and of far ones."""
    super().__init__()
    self.far = False
    self._dims, self._scales = rotary_dim, scales
    self._periods = tuple(
        mx.array((1 / inverse_frequencies(rope, rotary_dim, far)).astype(np.float32)) for far in (False, True)
    )

  def __call__(self, x: Any, offset: Any = 0) -> Any:
    scale, periods = self._scales[self.far], self._periods[self.far]
    if scale != 1:
      x = x.at[..., :self._dims].multiply(scale)
    return mx.fast.rope(x, self._dims, traditional=False, base=None, scale=1.0, offset=offset, freqs=periods)


def set_ropes(layers: list[Any], checkpoint: Checkpoint) -> None:
  """Give layers the rotary embedding of their checkpoint where it is more than a base."""
  config = checkpoint.config
  if line_of(config.model_type) is None:
    _set_near_ropes(layers, checkpoint)
    if mlx_facts(config.model_type).lacks_partial_rotary:
      for layer in layers:
        layer.self_attn.rope.dims = config.rotary_dim
    return
  made: dict[RopeScaling, Rope] = {}
  for layer, rope in zip(layers, config.rope, strict=True):
    if rope.kind not in ("default", "mrope") or rope.factors:
      if rope not in made:
        made[rope] = Rope(rope, config.rotary_dim, (attention_factor(rope, config.max_context), ) * 2)
      layer.self_attn.rope = made[rope]


def _set_near_ropes(layers: list[Any], checkpoint: Checkpoint) -> None:
  """mlx-lm turns every sequence as if it were longer than the original context, and rounds the bounds of YaRN."""
  config, raw = checkpoint.config, checkpoint.hf_config
  text = raw.get("text_config")
  text = raw | text if isinstance(text, dict) else raw
  scaling = text.get("rope_parameters") or text.get("rope_scaling") or {}
  for layer, rope in zip(layers, config.rope, strict=False):
    for module in layer.modules():
      for name, child in module.children().items():
        if type(child).__name__ == "SuScaledRoPE":
          near = scaling.get("short_mscale") or child._scale
          setattr(module, name, Rope(rope, child.dim, (float(near), float(child._scale))))
        elif type(child).__name__ == "YarnRoPE" and not rope.truncate:
          setattr(module, name, Rope(rope, child.dims, (float(child.mscale), ) * 2))
