"""A GGUF file of any architecture, whose layers' tensors keep the names that they have in it: for engines that read the file itself."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from exo.errors import UnsupportedModelError
from exo.inference.families.catalogue import family_of, why_uncut
from exo.inference.model_config import ModelConfig
from exo.inference.weights.file_bytes import FileBytes
from exo.inference.weights.gguf_file import TOP_NAMES, GgufFile
from exo.inference.weights.gguf_header import GgufHeader, GgufTensor

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")


class PlainGguf(GgufFile):
  is_plain = True

  def __init__(self, path: Path, data: FileBytes, header: GgufHeader) -> None:
    """As `GgufFile`; raises `UnsupportedModelError` for what is no language model."""
    super().__init__(path, data, header)
    family = family_of(self.architecture)
    if family is not None and family.writes_no_text:
      raise UnsupportedModelError(f"{path.name} is of architecture {self.architecture!r}: {family.writes_no_text}")
    self.whole_only = why_uncut(header.metadata)

  @cached_property
  def _tensors(self) -> dict[str, GgufTensor]:
    return {self._name(name): tensor for name, tensor in self._header.tensors.items()}

  def _name(self, name: str) -> str:
    if (match := _BLOCK.fullmatch(name)) is None:
      return TOP_NAMES.get(name) or name.replace("output_norm.", "model.norm.")
    layer = int(match[1])
    # behind the layers there may be some that predict further tokens
    return f"model.layers.{layer}.{match[2]}" if layer < self._n_layers else f"mtp.{layer}.{match[2]}"

  @property
  def _n_layers(self) -> int:
    if (missing := self.lacks("block_count")) is not None:
      raise missing
    further = self.own("nextn_predict_layers", 0)
    return int(self.own("block_count")) - (further if isinstance(further, int) else 0)

  @cached_property
  def hf_config(self) -> dict[str, Any]:
    if (missing := self.lacks("embedding_length")) is not None:
      raise missing
    hidden, heads = self.own("embedding_length"), max(1, _most(self.own("attention.head_count", 1)))
    return {
        "model_type": self.architecture,
        "hidden_size": hidden,
        "num_hidden_layers": self._n_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, _most(self.own("attention.head_count_kv", heads))),
        "head_dim": self.own("attention.key_length") or max(1, hidden // heads),
        "intermediate_size": _most(self.own("feed_forward_length", 0)),
        "vocab_size": self.embedding.shape[0],
        "max_position_embeddings": self.own("context_length", 8192),
        "tie_word_embeddings": "lm_head.weight" not in self._tensors,
        "rope_scaling": self._two_reaches(),
    }

  def _two_reaches(self) -> dict[str, Any] | None:
    """Where sequences beyond a length have another rotary embedding; how that is made is not for us to know."""
    original = self.own("rope.scaling.original_context_length")
    if "rope_factors_long.weight" not in self._header.tensors or not isinstance(original, int):
      return None
    return {
        "rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0],
        "original_max_position_embeddings": original
    }

  @cached_property
  def config(self) -> ModelConfig:
    found = ModelConfig.from_hf(self.hf_config)
    family = family_of(self.architecture)
    scaled = family is not None and (family.cut.scales_tokens or family.cut.feed == "inp_scaled")
    return replace(
        found,
        kv_elements=self._kv_elements(found),
        embedding_scale=math.sqrt(found.hidden_size) if scaled else 1.0,
    )

  def _kv_elements(self, config: ModelConfig) -> int:
    """Of a layer, on average: some keep nothing for each token."""
    key = self.own("attention.key_length") or config.head_dim
    value = self.own("attention.value_length") or key
    if self.own("attention.key_length_mla"):  # keys and values of all heads are made of these numbers
      return int(key)
    heads = self.own("attention.head_count_kv", config.n_kv_heads)
    every = heads if isinstance(heads, list) else [heads] * config.n_layers
    if not isinstance(heads, list) and isinstance(interval := self.own("full_attention_interval"), int) and interval:
      every = [heads if (layer + 1) % interval == 0 else 0 for layer in range(config.n_layers)]
    return math.ceil(sum(every[:config.n_layers]) * (key + value) / config.n_layers)


def _most(value: Any) -> Any:
  """Of what may be listed by layer."""
  return max(value, default=0) if isinstance(value, list) else value
