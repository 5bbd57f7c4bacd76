"""A GGUF file of any architecture, whose layers' tensors keep the names that they have in it: for engines that read the file itself."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from exo.errors import UnsupportedModelError
from exo.inference.families.catalogue import family_of
from exo.inference.model_config import ModelConfig
from exo.inference.weights.file_bytes import FileBytes
from exo.inference.weights.gguf_file import TOP_NAMES, GgufFile
from exo.inference.weights.gguf_header import GgufHeader, GgufTensor

_BLOCK = re.compile(r"blk\.(\d{1,6})\.(.+)")


class PlainGguf(GgufFile):
  is_plain = True

  def __init__(self, path: Path, data: FileBytes, header: GgufHeader, further: Sequence[FileBytes] = ()) -> None:
    """As `GgufFile`; raises `UnsupportedModelError` for what is no language model."""
    super().__init__(path, data, header, further)
    family = family_of(self.architecture)
    if family is not None and family.writes_no_text:
      raise UnsupportedModelError(f"{path.name} is of architecture {self.architecture!r}: {family.writes_no_text}")

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
    return self.number("block_count") - self.number("nextn_predict_layers", 0)

  @cached_property
  def hf_config(self) -> dict[str, Any]:
    hidden = self.number("embedding_length")
    heads = max([1, *self.numbers("attention.head_count", 1)])
    return {
        "model_type": self.architecture,
        "hidden_size": hidden,
        "num_hidden_layers": self._n_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max([1, *self.numbers("attention.head_count_kv", heads)]),
        "head_dim": self.number("attention.key_length", 0) or max(1, hidden // heads),
        "intermediate_size": max([0, *self.numbers("feed_forward_length", 0)]),
        "vocab_size": self.embedding.shape[0],
        "max_position_embeddings": self.number("context_length", 8192),
        "tie_word_embeddings": "lm_head.weight" not in self._tensors,
        "rope_scaling": self._two_reaches(),
    }

  def _two_reaches(self) -> dict[str, Any] | None:
    """Where sequences beyond a length have another rotary embedding; how the two are made is not for us to know, only that they differ."""
    original = self.number("rope.scaling.original_context_length", 0)
    if "rope_factors_long.weight" not in self._header.tensors or not original:
      return None
    return {
        "rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0],
        "original_max_position_embeddings": original
    }

  @cached_property
  def config(self) -> ModelConfig:
    found = ModelConfig.from_hf(self.hf_config, is_whole=True)
    family = family_of(self.architecture)
    scaled = family is not None and family.cut.takes_scaled
    return replace(
        found,
        kv_elements=self._kv_elements(found),
        state_elements=self._state_elements(found),
        embedding_scale=math.sqrt(found.hidden_size) if scaled else 1.0,
    )

  def _kv_elements(self, config: ModelConfig) -> int:
    """Of a layer, on average: some keep nothing for each token, and such with windows may have heads of another width."""
    key = self.number("attention.key_length", 0) or config.head_dim
    width = key + (self.number("attention.value_length", 0) or key)
    if self.number("attention.key_length_mla", 0):  # keys and values of all heads are made of these numbers
      return key
    heads, pattern = self._kv_heads(config), self.own("attention.sliding_window_pattern")
    near = self.number("attention.key_length_swa", 0) + self.number("attention.value_length_swa", 0) or width
    has_window = pattern if isinstance(pattern, list) and len(pattern) >= len(heads) else [False] * len(heads)
    each = (count * (near if window else width) for count, window in zip(heads, has_window, strict=False))
    return math.ceil(sum(each) / config.n_layers)

  def _kv_heads(self, config: ModelConfig) -> list[int]:
    """Of each layer."""
    n, heads = config.n_layers, self.numbers("attention.head_count_kv", config.n_heads)
    if len(heads) != 1:
      return heads[:n]
    interval = self.number("full_attention_interval", 0) or 1
    return [heads[0] if (layer + 1) % interval == 0 else 0 for layer in range(n)]

  def _state_elements(self, config: ModelConfig) -> int:
    """Of a layer, on average: what recurrent ones keep of a text, and what they have seen last of it."""
    hidden, heads = config.hidden_size, max([1, *self.numbers("attention.head_count", 1)])
    inner, state = self.number("ssm.inner_size", 0), self.number("ssm.state_size", 0)
    before = max(0, self.number("ssm.conv_kernel", 0) - 1)
    if wkv := self.number("wkv.head_size", 0):
      kept = hidden * (wkv + self.number("token_shift_count", 2))
    elif kda := self.number("kda.head_dim", 0):
      kept = kda * heads * (kda + 3 * before)
    elif cells := self.number("shortconv.l_cache", 0):
      kept = hidden * (cells - 1)
    else:
      kept = inner * state + before * (inner + 2 * self.number("ssm.group_count", 0) * state)
    # where every layer has heads, they have both
    recurrent = self._kv_heads(config).count(0) or config.n_layers
    return math.ceil(kept * recurrent / config.n_layers)
