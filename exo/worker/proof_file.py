"""The proof's model as a file, for engines that read nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFWriter

from exo.inference.weights.checkpoint import EMBEDDING, Checkpoint, open_checkpoint

_LAYER = "model.layers.0."
_NAMES = {
    EMBEDDING.removesuffix(".weight"): "token_embd",
    "model.norm": "output_norm",
    f"{_LAYER}input_layernorm": "blk.0.attn_norm",
    f"{_LAYER}post_attention_layernorm": "blk.0.ffn_norm",
    **{f"{_LAYER}self_attn.{name}_proj": f"blk.0.attn_{name}"
       for name in "qkv"},
    f"{_LAYER}self_attn.o_proj": "blk.0.attn_output",
    **{f"{_LAYER}mlp.{name}_proj": f"blk.0.ffn_{name}"
       for name in ("gate", "up", "down")},
}


def gguf_of(values: dict[str, npt.NDArray[np.float32]], config: dict[str, Any], path: Path) -> Checkpoint:
  """A Llama of one layer, written to `path`."""
  writer = GGUFWriter(path, "llama")
  writer.add_block_count(1)
  writer.add_context_length(config["max_position_embeddings"])
  writer.add_embedding_length(config["hidden_size"])
  writer.add_feed_forward_length(config["intermediate_size"])
  writer.add_head_count(config["num_attention_heads"])
  writer.add_head_count_kv(config["num_key_value_heads"])
  writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
  writer.add_rope_freq_base(config["rope_theta"])
  writer.add_vocab_size(config["vocab_size"])
  for name, value in values.items():
    own = _NAMES[name.removesuffix(".weight")]
    turned = own in ("blk.0.attn_q", "blk.0.attn_k")
    writer.add_tensor(f"{own}.weight", _by_pairs(value, config["head_dim"]) if turned else value)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return open_checkpoint(path)


def _by_pairs(matrix: npt.NDArray[np.float32], head_dim: int) -> npt.NDArray[np.float32]:
  """A head's rows as GGUF has them: the two that are turned together stand side by side, rather than half a head apart."""
  heads = matrix.reshape(-1, 2, head_dim // 2, matrix.shape[1])
  return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(matrix.shape)
