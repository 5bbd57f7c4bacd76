"""A GGUF file of the Llama line, read as if it were a Hugging Face checkpoint: names, configuration and row order translated."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from exo.errors import UnsupportedModelError
from exo.inference.families.catalogue import converted_as, translated
from exo.inference.weights.gguf_file import TOP_NAMES, GgufFile
from exo.inference.weights.gguf_header import GgufTensor
from exo.inference.weights.tensor import StoredTensor

_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
# Mixtral's converter calls it a llama, and Hugging Face calls its parts otherwise than everybody's
_MIXTRAL = {
    "mlp.gate": "block_sparse_moe.gate",
    "mlp.experts.gate_proj": "block_sparse_moe.experts.w1",
    "mlp.experts.down_proj": "block_sparse_moe.experts.w2",
    "mlp.experts.up_proj": "block_sparse_moe.experts.w3",
}


def gguf_type(model_type: str) -> str:
  """The model type under which a GGUF file of this type is read."""
  return converted_as(model_type) or model_type


def is_translated(model_type: str) -> bool:
  """Whether GGUF files of models of this type are read by this module."""
  return gguf_type(model_type) in translated().values()


_BLOCK = re.compile(r"blk\.(\d{1,6})\.(.+)\.(weight|bias)")


def _hf_name(name: str, architecture: str) -> str | None:
  """Hugging Face's name of a GGUF tensor; None for those that are configuration (rotary factors)."""
  if name in TOP_NAMES:
    return TOP_NAMES[name]
  match = _BLOCK.fullmatch(name)
  if match is None:
    return None
  layer, part, kind = match.groups()
  if architecture.startswith("gemma") and part == "ffn_norm":
    return f"model.layers.{layer}.pre_feedforward_layernorm.{kind}"
  if architecture == "phi3" and part == "ffn_up":
    return f"model.layers.{layer}.mlp.gate_up_proj.{kind}"
  if part not in _LAYER:
    return None
  inner = _LAYER[part]
  return f"model.layers.{layer}.{_MIXTRAL.get(inner, inner) if architecture == 'llama' else inner}.{kind}"


def _experts(name: str, stack: GgufTensor) -> dict[str, GgufTensor]:
  """GGUF stacks a layer's experts; Hugging Face names each."""
  count, size = stack.shape[0], stack.n_bytes // stack.shape[0]
  return {
      name.replace(".experts.", f".experts.{i}."): replace(
          stack, shape=stack.shape[1:], start=stack.start + i * size, n_bytes=size
      )
      for i in range(count)
  }


class GgufCheckpoint(GgufFile):
  """One that is translated."""
  @cached_property
  def _tensors(self) -> dict[str, GgufTensor]:
    found: dict[str, GgufTensor] = {}
    for tensor in self._header.tensors.values():
      name = _hf_name(tensor.name, self.architecture)
      if name is not None:
        found |= _experts(name, tensor) if ".experts." in name else {name: tensor}
    return found

  @cached_property
  def hf_config(self) -> dict[str, Any]:
    arch, get = self.architecture, self.own
    hidden, heads = self.number("embedding_length"), self.number("attention.head_count")
    kv_heads = self.numbers("attention.head_count_kv", heads)
    if len(set(kv_heads)) != 1:
      raise UnsupportedModelError(f"{self.path.name} has another number of KV heads in each layer")
    head_dim = self.number("attention.key_length", 0) or (hidden // heads if heads else 0)
    config: dict[str, Any] = {
        "model_type": "mixtral" if arch == "llama" and get("expert_count") else translated()[arch],
        "hidden_size": hidden,
        "num_hidden_layers": self.number("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads[0],
        "head_dim": head_dim,
        "intermediate_size": get("feed_forward_length", 0),
        "vocab_size": self.embedding.shape[0],
        "max_position_embeddings": get("context_length", 8192),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon", 1e-6),
        "rope_theta": get("rope.freq_base", 10000.0),
        "rope_scaling": self._rope_scaling(get),
        "tie_word_embeddings": "lm_head.weight" not in self._tensors,
        "hidden_act": "gelu_pytorch_tanh" if arch.startswith("gemma") else "silu",
    }
    rotary = get("rope.dimension_count")
    if isinstance(rotary, int) and head_dim and rotary != head_dim:
      config["partial_rotary_factor"] = rotary / head_dim
    if arch.startswith("gemma"):
      config |= self._gemma(get, head_dim, heads, hidden)
    elif (window := get("attention.sliding_window")) and arch != "phi3":
      config |= {"sliding_window": window}
    if get("expert_count"):
      config |= {
          "num_experts": get("expert_count"),
          "num_local_experts": get("expert_count"),  # as Mixtral calls it
          "num_experts_per_tok": get("expert_used_count"),
          "moe_intermediate_size": get("expert_feed_forward_length", get("feed_forward_length")),
          "norm_topk_prob": True,
      }
    return config

  def _gemma(self, get: Any, head_dim: int, heads: int, hidden: int) -> dict[str, Any]:
    extra: dict[str, Any] = {
        "sliding_window": get("attention.sliding_window", 4096),
        "attn_logit_softcapping": get("attn_logit_softcapping"),
        "final_logit_softcapping": get("final_logit_softcapping"),
        "query_pre_attn_scalar": head_dim,
    }
    layers = get("block_count")
    # the 27B models scale by the width of a head's share of the hidden state instead (Gemma's published configurations)
    if (self.architecture, layers) in (("gemma2", 46), ("gemma3", 62)):
      extra["query_pre_attn_scalar"] = hidden // max(1, heads)
    if self.architecture == "gemma3":
      extra["rope_local_base_freq"] = get("rope.local.freq_base", get("rope.freq_base_swa", 10000.0))
      extra["sliding_window_pattern"] = 6
    return extra

  def _rope_scaling(self, get: Any) -> dict[str, Any] | None:
    factors = self._header.tensors.get("rope_freqs.weight")
    if factors is not None:
      return {"rope_type": "default", "factors": self._read(factors, "rope_freqs").to_float32().ravel().tolist()}
    short, long = (self._header.tensors.get(f"rope_factors_{kind}.weight") for kind in ("short", "long"))
    if short is not None and long is not None:
      return {
          "rope_type": "longrope",
          "short_factor": self._read(short, "short").to_float32().ravel().tolist(),
          "long_factor": self._read(long, "long").to_float32().ravel().tolist(),
          "original_max_position_embeddings": get("rope.scaling.original_context_length"),
          "attention_factor": get("rope.scaling.attn_factor"),
      }
    kind = get("rope.scaling.type")
    if kind in (None, "none"):
      return None
    return {
        "rope_type": kind,
        "factor": get("rope.scaling.factor", 1.0),
        "original_max_position_embeddings": get("rope.scaling.original_context_length"),
    }

  def tensor(self, name: str) -> StoredTensor:
    info = self._info(name)
    # Gemma's converter adds the 1 that Hugging Face's norm adds when it runs
    norm = self.architecture.startswith("gemma") and name.endswith("norm.weight")
    stored = self._read(info, name, -1.0 if norm else 0.0)
    if self.architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias")):
      return _rope_rows(stored, self.config.n_heads if ".q_proj." in name else self.config.n_kv_heads)
    return stored


def _rope_rows(stored: StoredTensor, heads: int) -> StoredTensor:
  """GGUF's llama stores the rows of Q and K so that rotary pairs lie side by side; Hugging Face's order has halves."""
  vector = len(stored.shape) == 1
  rows = stored.shape[0]
  index: npt.NDArray[np.int64] = np.arange(rows).reshape(heads, rows // heads // 2, 2).transpose(0, 2, 1).reshape(-1)
  if not vector:
    return stored.rows(index)
  values = stored.to_float32()[index]
  return StoredTensor(stored.name, stored.shape, "F32", values.view(np.uint8), 0.0)
