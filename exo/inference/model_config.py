"""What an engine must know of a decoder-only transformer, read from Hugging Face's `config.json` in either form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from exo.errors import ModelFilesError
from exo.inference.families.catalogue import line_of
from exo.inference.families.config_form import one_form, text_type_of
from exo.inference.families.family import Line
from exo.inference.own_code import needs_own_code
from exo.inference.rope import RopeScaling

# bounds on what a repository may claim, far above any real model
_LIMITS = {
    "num_hidden_layers": 1024,
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 20,
    "num_attention_heads": 4096,
    "num_key_value_heads": 4096,
    "head_dim": 8192,
    "vocab_size": 1 << 22,
    "max_position_embeddings": 1 << 24,
    "num_experts": 4096,
    "num_experts_per_tok": 4096,
    "moe_intermediate_size": 1 << 20,
    "sliding_window": 1 << 27,
}


@dataclass(frozen=True)
class ModelConfig:
  """Sizes are counts of elements. Lists by layer have `n_layers` entries."""
  model_type: str
  hidden_size: int
  n_layers: int
  n_heads: int
  n_kv_heads: int
  head_dim: int
  intermediate_size: int
  vocab_size: int
  max_context: int
  norm_eps: float
  tied: bool
  activation: str  # "silu" or "gelu_tanh"
  rope: tuple[RopeScaling, ...]  # by layer
  rotary_dim: int
  sliding_window: tuple[int | None, ...]  # by layer; None: full attention
  attention_scale: float
  norm_offset: float = 0.0  # Gemma multiplies by 1 + weight
  embedding_scale: float = 1.0
  attention_softcap: float = 0.0
  final_softcap: float = 0.0
  qk_norm: bool = False
  post_norms: bool = False  # Gemma 2 and 3: norms after attention and after the MLP too
  n_experts: int = 0
  n_experts_per_token: int = 0
  moe_intermediate_size: int = 0
  norm_topk: bool = False
  sparse_layers: tuple[bool, ...] = ()
  kv_elements: int | None = None  # that a layer keeps for a token, on average, where it is not what heads and their width give
  state_elements: int = 0  # that a layer keeps of a sequence however long it is, on average

  @property
  def kv_elements_per_token(self) -> int:
    """Numbers that one layer keeps for one token, keys and values together."""
    return 2 * self.n_kv_heads * self.head_dim if self.kv_elements is None else self.kv_elements

  @property
  def near_context(self) -> int:
    """Sequences that stay within so many tokens have a rotary embedding of their own (`RopeScaling.factors`), longer ones another
    (`long_factors`); 0 where all have the same.
    """
    found = [rope.original_max_position for rope in self.rope if rope.has_two_reaches]
    return min((n for n in found if n < self.max_context), default=0)

  @classmethod
  def from_hf(cls, config: Mapping[str, Any], is_whole: bool = False) -> ModelConfig:
    """`is_whole`: nothing is left out of it, since it was made of another kind of file. Raises `ModelFilesError` when a key is missing, of another type than it should be, or out of bounds."""
    try:
      found = cls._from_hf(config, is_whole)
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError) as error:
      raise ModelFilesError(f"config.json: a value is not of the kind that it should be ({error})") from error
    sizes = {"head_dim": found.head_dim, "vocab_size": found.vocab_size, "num_key_value_heads": found.n_kv_heads,
             "max_position_embeddings": found.max_context}  # yapf: disable
    for key, size in sizes.items():
      if size < 1:
        raise ModelFilesError(f"config.json: {key} must be positive")
    numbers = {"rms_norm_eps": found.norm_eps, "query_pre_attn_scalar": found.attention_scale,
               "attn_logit_softcapping": found.attention_softcap, "final_logit_softcapping": found.final_softcap}  # yapf: disable
    for key, number in numbers.items():
      if not math.isfinite(number):
        raise ModelFilesError(f"config.json: {key} is not a plausible number ({number})")
    if not 0 <= found.rotary_dim <= found.head_dim:
      raise ModelFilesError(f"config.json: the rotary embedding turns {found.rotary_dim} of head_dim {found.head_dim}")
    return found

  @classmethod
  def _from_hf(cls, config: Mapping[str, Any], is_whole: bool) -> ModelConfig:
    text = dict(config) if is_whole else one_form(config)
    if isinstance(text.get("text_config"), Mapping):  # multimodal repositories nest their language model
      text |= text["text_config"]
    model_type = str(text.get("model_type", ""))
    if needs_own_code(config):
      raise ModelFilesError(
          f"this {model_type or 'model'} wants to run code of its own repository, which exo never does"
      )
    line = line_of(text_type_of(model_type)) or Line()

    def integer(key: str, default: int | None = None) -> int:
      value = text.get(key)
      if value is None:
        value = default
      if isinstance(value, list) and value:  # by layer
        value = max(value)
      if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LIMITS.get(key, 1 << 30):
        raise ModelFilesError(f"config.json: {key} is {value!r}, which is not a plausible number")
      return value

    # where every layer has a state there are no heads of attention
    has_state_alone = text.get("num_attention_heads") is None and text.get("state_size") is not None
    hidden, layers = integer("hidden_size"), integer("num_hidden_layers")
    heads = integer("num_attention_heads", 1 if has_state_alone else None)
    if not (hidden and heads and layers):
      raise ModelFilesError("config.json: hidden_size, num_attention_heads and num_hidden_layers must be positive")
    head_dim = integer("head_dim", hidden // heads)
    max_context = integer("max_position_embeddings", 8192)
    partial: Any = _rope_dict(text, "full_attention").get("partial_rotary_factor", text.get("partial_rotary_factor"))
    scalar = text.get("query_pre_attn_scalar")
    experts = integer("num_experts", integer("num_local_experts", 0)) if "moe" in model_type else 0
    dense = text.get("mlp_only_layers") or []
    sparse_step = integer("decoder_sparse_step", 1) or 1
    return cls(
        model_type=model_type,
        hidden_size=hidden,
        n_layers=layers,
        n_heads=heads,
        n_kv_heads=integer("num_key_value_heads", heads),
        head_dim=head_dim,
        intermediate_size=integer("intermediate_size", 0),
        vocab_size=integer("vocab_size"),
        max_context=max_context,
        norm_eps=float(text.get("rms_norm_eps", 1e-6)),
        tied=bool(text.get("tie_word_embeddings", False)),
        activation="gelu_tanh"
        if line.gelu or "gelu" in str(text.get("hidden_act") or text.get("hidden_activation") or "") else "silu",
        rope=tuple(_rope(text, kind) for kind in _layer_kinds(text, layers)),
        rotary_dim=int(head_dim * float(1.0 if partial is None else partial)),
        sliding_window=tuple(_windows(text, layers)),
        attention_scale=float(scalar if scalar is not None else head_dim)**-0.5,
        norm_offset=line.norm_offset,
        embedding_scale=float(hidden)**0.5 if line.scales_embeddings else 1.0,
        attention_softcap=float(text.get("attn_logit_softcapping") or 0.0),
        final_softcap=float(text.get("final_logit_softcapping") or 0.0),
        qk_norm=line.qk_norm,
        post_norms=line.post_norms,
        n_experts=experts,
        n_experts_per_token=integer("num_experts_per_tok", 0) if experts else 0,
        moe_intermediate_size=integer("moe_intermediate_size", 0) if experts else 0,
        norm_topk=bool(text.get("norm_topk_prob", False)),
        sparse_layers=tuple(bool(experts) and i not in dense and (i + 1) % sparse_step == 0 for i in range(layers)),
        kv_elements=0 if has_state_alone else None,
        state_elements=integer("expand", 2) * hidden *
        (integer("state_size") + integer("conv_kernel", 4)) if has_state_alone else 0,
    )


def _layer_kinds(text: Mapping[str, Any], layers: int) -> list[str]:
  """`sliding_attention` or `full_attention` by layer, from `layer_types` or from the older pattern keys."""
  kinds = text.get("layer_types")
  if isinstance(kinds, list) and len(kinds) == layers:
    return [str(kind) for kind in kinds]
  line = line_of(text_type_of(str(text.get("model_type", "")))) or Line()
  pattern = text.get("sliding_window_pattern") or text.get("_sliding_window_pattern")
  pattern = pattern or (line.windows.period if line.windows is not None else None)
  if isinstance(pattern, str):  # a letter for each layer of a period, the last of which is another
    pattern = len(pattern)
  if pattern:
    return ["full_attention" if (i + 1) % int(pattern) == 0 else "sliding_attention" for i in range(layers)]
  if line.windows_if_asked:
    if not text.get("use_sliding_window"):
      return ["full_attention"] * layers
    return [
        "sliding_attention" if i >= int(text.get("max_window_layers", layers)) else "full_attention"
        for i in range(layers)
    ]
  return ["sliding_attention" if text.get("sliding_window") else "full_attention"] * layers


def _windows(text: Mapping[str, Any], layers: int) -> list[int | None]:
  window = text.get("sliding_window")
  if window is None or text.get("use_sliding_window") is False:
    return [None] * layers
  if isinstance(window, bool) or not isinstance(window, int) or not 0 < window <= _LIMITS["sliding_window"]:
    raise ModelFilesError(f"config.json: sliding_window is {window!r}, which is not a plausible number")
  return [window if kind == "sliding_attention" else None for kind in _layer_kinds(text, layers)]


def _rope_dict(text: Mapping[str, Any], kind: str) -> dict[str, Any]:
  """The rotary parameters of one kind of layer: `rope_parameters` (newer), else `rope_theta` and `rope_scaling`."""
  newer = text.get("rope_parameters")
  if isinstance(newer, Mapping):
    nested = newer.get(kind)
    if isinstance(nested, Mapping):
      return dict(nested)
    if not any(isinstance(value, Mapping) for value in newer.values()):
      return {"rope_theta": text.get("rope_theta", 10000.0), **newer}
  older = dict(text.get("rope_scaling") or {})
  if kind == "sliding_attention" and text.get("rope_local_base_freq") is not None:
    return {"rope_theta": text["rope_local_base_freq"]}
  return {"rope_theta": text.get("rope_theta", 10000.0), **older}


def _rope(text: Mapping[str, Any], kind: str) -> RopeScaling:
  raw = _rope_dict(text, kind)
  original = raw.get("original_max_position_embeddings") or text.get("original_max_position_embeddings")
  try:
    return RopeScaling(
        theta=float(raw.get("rope_theta", 10000.0)),
        kind=str(raw.get("rope_type") or raw.get("type") or "default"),
        factor=float(raw.get("factor") or 1.0),
        low_freq_factor=float(raw.get("low_freq_factor") or 1.0),
        high_freq_factor=float(raw.get("high_freq_factor") or 4.0),
        original_max_position=int(original or text.get("max_position_embeddings") or 8192),
        factors=tuple(float(f) for f in raw.get("factors") or raw.get("short_factor") or ()),
        long_factors=tuple(float(f) for f in raw.get("long_factor") or ()),
        beta_fast=float(raw.get("beta_fast") or 32.0),
        beta_slow=float(raw.get("beta_slow") or 1.0),
        attention_factor=None if raw.get("attention_factor") is None else float(raw["attention_factor"]),
        truncate=raw.get("truncate", True) is not False
    )
  except (TypeError, ValueError) as error:
    raise ModelFilesError(f"config.json: the rotary embedding's parameters are not numbers ({error})") from error
