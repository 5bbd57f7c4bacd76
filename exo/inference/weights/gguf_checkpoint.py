"""A GGUF file read as if it were a Hugging Face checkpoint: names, configuration and row order translated."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from exo.errors import ModelFilesError, UnsupportedModelError
from exo.inference.weights.block_map import BlockMap
from exo.inference.weights.checkpoint import Checkpoint, check_present
from exo.inference.weights.file_bytes import FileBytes
from exo.inference.weights.gguf_header import GgufHeader, GgufTensor, parse_gguf_header
from exo.inference.weights.tensor import StoredTensor

if TYPE_CHECKING:
  from exo.inference.tokenizer import Tokenizer

# GGUF's architecture: Hugging Face's model_type
_MODEL_TYPES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "phi3": "phi3",
}
_READS = (
    f"from GGUF exo reads {', '.join(_MODEL_TYPES)}. Take it as safetensors, of which the engine mlx reads many more families"
)
_AS_LLAMA = ("mistral", "mixtral")  # which the converter calls so, too
_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
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
  return "llama" if model_type in _AS_LLAMA else model_type


def unread_architecture(model_type: str) -> str | None:
  """Why exo reads no GGUF files of models of this type; None where it does."""
  if gguf_type(model_type) in _MODEL_TYPES.values():
    return None
  return f"its GGUF file is of type {model_type!r}; {_READS}"


_BLOCK = re.compile(r"blk\.(\d+)\.(.+)\.(weight|bias)")


def _hf_name(name: str, architecture: str) -> str | None:
  """Hugging Face's name of a GGUF tensor; None for those that are configuration (rotary factors)."""
  if name in _TOP:
    return _TOP[name]
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


class GgufCheckpoint(Checkpoint):
  container = "gguf"

  def __init__(self, path: Path) -> None:
    self.path = path
    self._bytes = FileBytes(path)
    self._blocks = BlockMap.beside(path)
    self._header: GgufHeader = parse_gguf_header(self._bytes.head(), self._bytes.size)
    self._architecture = str(self._header.metadata.get("general.architecture", ""))
    if self._architecture not in _MODEL_TYPES:
      raise UnsupportedModelError(f"{path.name} is of architecture {self._architecture!r}; {_READS}")
    self._tensors: dict[str, GgufTensor] = {}
    for tensor in self._header.tensors.values():
      name = _hf_name(tensor.name, self._architecture)
      if name is not None:
        self._tensors |= _experts(name, tensor) if ".experts." in name else {name: tensor}

  @property
  def chat_template(self) -> str | None:
    template = self._header.metadata.get("tokenizer.chat_template")
    return template if isinstance(template, str) else None

  @property
  def header(self) -> GgufHeader:
    return self._header

  @cached_property
  def hf_config(self) -> dict[str, Any]:
    meta, arch = self._header.metadata, self._architecture

    def get(key: str, default: Any = None) -> Any:
      return meta.get(f"{arch}.{key}", default)

    required = ("embedding_length", "block_count", "attention.head_count")
    if any(not isinstance(get(key), int) for key in required):
      raise ModelFilesError(f"{self.path.name} lacks one of {', '.join(f'{arch}.{key}' for key in required)}")
    hidden, heads = get("embedding_length"), get("attention.head_count")
    kv_heads = get("attention.head_count_kv", heads)
    if isinstance(kv_heads, list):
      if len(set(kv_heads)) != 1:
        raise UnsupportedModelError(f"{self.path.name} has another number of KV heads in each layer")
      kv_heads = kv_heads[0]
    head_dim = get("attention.key_length", hidden // heads if heads else 0)
    embedding = self._tensors.get("model.embed_tokens.weight")
    if embedding is None:
      raise ModelFilesError(f"{self.path.name} has no token embedding")
    config: dict[str, Any] = {
        "model_type": "mixtral" if arch == "llama" and get("expert_count") else _MODEL_TYPES[arch],
        "hidden_size": hidden,
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": get("feed_forward_length", 0),
        "vocab_size": embedding.shape[0],
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
    if (self._architecture, layers) in (("gemma2", 46), ("gemma3", 62)):
      extra["query_pre_attn_scalar"] = hidden // heads
    if self._architecture == "gemma3":
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

  def names(self) -> Iterable[str]:
    return self._tensors.keys()

  def tensor_bytes(self, name: str) -> int:
    return self._info(name).n_bytes

  def tensor_shape(self, name: str) -> tuple[int, ...]:
    return self._info(name).shape

  def encoding(self, name: str) -> str:
    return self._info(name).encoding

  def _info(self, name: str) -> GgufTensor:
    try:
      return self._tensors[name]
    except KeyError:
      raise ModelFilesError(f"{self.path.name} has no tensor {name}") from None

  def _read(self, info: GgufTensor, name: str, offset: float = 0.0) -> StoredTensor:
    check_present(self._blocks, self.path, name, info.start, info.start + info.n_bytes)
    rows = int(np.prod(info.shape[:-1], dtype=np.int64))
    data = self._bytes.span(info.start, info.start + info.n_bytes).reshape(*info.shape[:-1], info.n_bytes // rows)
    return StoredTensor(name, info.shape, info.encoding, data, offset)

  def spans(self, name: str) -> list[tuple[Path, int, int]]:
    info = self._info(name)
    return [(self.path, info.start, info.start + info.n_bytes)]

  def tensor(self, name: str) -> StoredTensor:
    info = self._info(name)
    # Gemma's converter adds the 1 that Hugging Face's norm adds when it runs
    norm = self._architecture.startswith("gemma") and name.endswith("norm.weight")
    stored = self._read(info, name, -1.0 if norm else 0.0)
    if self._architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias")
                                                       ):
      return _rope_rows(stored, self.config.n_heads if ".q_proj." in name else self.config.n_kv_heads)
    return stored

  def tokenizer(self) -> Tokenizer:
    from exo.inference.gguf_tokenizer import gguf_tokenizer
    return gguf_tokenizer(self._header.metadata, self.path.name)

  def let_go(self) -> None:
    self._bytes.let_go()

  def close(self) -> None:
    self._bytes.close()


def _rope_rows(stored: StoredTensor, heads: int) -> StoredTensor:
  """GGUF's llama stores the rows of Q and K so that rotary pairs lie side by side; Hugging Face's order has halves."""
  vector = len(stored.shape) == 1
  rows = stored.shape[0]
  index: npt.NDArray[np.int64] = np.arange(rows).reshape(heads, rows // heads // 2, 2).transpose(0, 2, 1).reshape(-1)
  if not vector:
    return stored.rows(index)
  values = stored.to_float32()[index]
  return StoredTensor(stored.name, stored.shape, "F32", values.view(np.uint8), 0.0)
