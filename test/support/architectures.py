"""Small models of mlx-lm's architectures, filled with random numbers, as checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from exo.inference.mlx import library
from exo.inference.tokenizer import Tokenizer
from exo.inference.weights.checkpoint import Checkpoint
from exo.inference.weights.tensor import StoredTensor

LAYERS, HIDDEN, VOCABULARY = 4, 64, 128
_MAX_WEIGHTS = 3_000_000

# configuration keys, as any architecture may call them, and what makes a small model of it
_SMALL: dict[str, Any] = {
    **dict.fromkeys(("num_hidden_layers", "n_layers", "n_layer", "num_layers", "num_transformer_layers"), LAYERS),
    **dict.fromkeys(("hidden_size", "dim", "d_model", "n_embd", "model_dim", "width"), HIDDEN),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "ff_intermediate_size", "n_inner", "d_ff", "ffn_hidden_size"), 128),
    **dict.fromkeys(("num_attention_heads", "n_heads", "n_head", "num_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_kv_heads", "multi_query_num_kv_heads"), 2),
    **dict.fromkeys(("vocab_size", "padded_vocab_size", "n_vocab"), VOCABULARY),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "layernorm_epsilon"), 1e-5),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_seq_length"), 512),
    **dict.fromkeys(("sliding_window", "sliding_window_size", "attention_window_size"), 8),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts", "ffn_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "num_experts_per_token", "moe_top_k", "top_k_experts"), 2),
    **dict.fromkeys((
        "moe_intermediate_size", "expert_ffn_hidden_size", "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", "shared_intermediate_size"
    ), 32),
    "head_dim": 16,
    "v_head_dim": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "rope_theta": 10000.0,
    "rotary_dim": 8,
    "rope_dim": 16,
    "partial_rotary_factor": 0.5,
    "n_group": 1,
    "topk_group": 1,
    "num_expert_group": 1,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "routed_scaling_factor": 1.0,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "decoder_sparse_step": 1,
    "norm_topk_prob": True,
    "mlp_only_layers": [],
    "tie_word_embeddings": False,
    "attention_bias": False,
    "query_pre_attn_scalar": 16,
    "sliding_window_pattern": 2,
    "hidden_act": "silu",
    "logits_scaling": 1.0,
    "attention_multiplier": 0.25,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logit_scale": 1.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rope_traditional": False,
    "use_qk_norm": True,
    "bias": False,
    "mlp_bias": False,
    "use_bias": False,
    "use_qkv_bias": False,
    "rope_scaling": None,
    "n_groups": 1,
    "post_norm": True,
    "qk_norm": True,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "use_parallel_residual": True,
    "dim_model_base": 64,
    "scale_emb": 1.0,
    "scale_depth": 1.4,
    "use_conv_bias": True,
    "time_step_limit": [0.0, 100.0],
    "conv_bias": True,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "hidden_dim": 128,
    "num_kv_reuse_layers": 1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    "expand": 2,
    "state_size": 16,
    "conv_kernel": 4,
    "time_step_rank": 4,
    "d_state": 16,
}

# of architectures whose configuration nests the text's
_TEXT: dict[str, dict[str, Any]] = {
    "llama4": {
        **_SMALL, "model_type": "llama4_text", "attention_chunk_size": 8, "interleave_moe_layer_step": 2,
        "intermediate_size": 64, "intermediate_size_mlp": 128, "num_experts_per_tok": 1, "floor_scale": 8
    }
}


def architectures() -> list[str]:
  """Every model file of this mlx-lm that has a model in it."""
  folder = Path(str(library.cache_module().__file__)).parent
  return sorted(file.stem for file in folder.glob("*.py") if "class ModelArgs" in file.read_text())


def small_arguments(architecture: str) -> dict[str, Any]:
  """A configuration of the architecture with small numbers for all keys that this file knows."""
  arguments = library.model_classes(architecture)[1]
  names = {field.name for field in dataclasses.fields(arguments)}
  found = {name: value for name, value in _SMALL.items() if name in names} | {"model_type": architecture}
  return found | {"text_config": _TEXT[architecture]} if architecture in _TEXT else found


class SmallCheckpoint(Checkpoint):
  """`more` are keys beside those of `_SMALL`. Raises whatever the architecture raises when its configuration wants still more."""
  def __init__(self, architecture: str, **more: Any) -> None:
    import mlx.core as mx
    from mlx.utils import tree_flatten
    mx.random.seed(1)
    self.path = Path(architecture)
    self._arguments = small_arguments(architecture) | more
    model_class, argument_class = library.model_classes(architecture)
    model = model_class(argument_class.from_dict(self._arguments))
    parameters = dict(tree_flatten(model.parameters()))
    if (count := sum(value.size for value in parameters.values())) > _MAX_WEIGHTS:
      raise ValueError(f"{architecture} has {count} weights even so")
    # architectures begin with some weights at zero, which would hide what a stage lacks
    rng = np.random.default_rng(1)
    self._arrays = {
        name: np.array(value.astype(mx.float32)) + rng.normal(0, 0.05, value.shape).astype(np.float32)
        for name, value in parameters.items()
    }

  @property
  def hf_config(self) -> dict[str, Any]:
    general = (
        "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size", "head_dim"
    )
    return {key: _SMALL[key] for key in general} | self._arguments

  def names(self) -> Iterable[str]:
    return self._arrays.keys()

  def tensor_bytes(self, name: str) -> int:
    return self._arrays[name].nbytes

  def tensor_shape(self, name: str) -> tuple[int, ...]:
    return self._arrays[name].shape or (1, )

  def tensor(self, name: str) -> StoredTensor:
    values = np.atleast_1d(self._arrays[name])
    return StoredTensor(name, values.shape, "F32", np.ascontiguousarray(values).view(np.uint8))

  def tokenizer(self) -> Tokenizer:
    raise NotImplementedError

  def close(self) -> None:
    pass
