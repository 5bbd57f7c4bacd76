"""Where a model's files say different things: its configuration, its tensors' shapes, its tokenizer.

An engine would find out in the middle of loading, or never: libraries read what lies beside a table. Only headers are
looked at. What is said of every tensor holds for the architectures that `ModelConfig` describes fully; of others the
sizes of the vocabulary and the layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from exo.errors import ModelFilesError
from exo.inference.families.catalogue import line_of
from exo.inference.model_config import ModelConfig
from exo.inference.rope import RopeScaling
from exo.inference.weights.checkpoint import EMBEDDING, HEAD, Checkpoint
from exo.inference.weights.parts import Part, part_of

if TYPE_CHECKING:
  from exo.inference.tokenizer import Tokenizer

_TOLD = 3
Shape = tuple[int, ...]


def check_consistent(checkpoint: Checkpoint) -> None:
  """Raises `ModelFilesError` that names what contradicts what."""
  _refuse(checkpoint, _Findings(checkpoint).all())


def check_tokenizer(checkpoint: Checkpoint, tokenizer: Tokenizer) -> str | None:
  """Raises `ModelFilesError` where no prompt could be computed; returns what else is odd, in words."""
  words, known = checkpoint.config.vocab_size, tokenizer.vocab_size
  if tokenizer.add_bos and tokenizer.bos_id is not None and tokenizer.bos_id >= words:
    _refuse(checkpoint, iter([f"every text begins with token {tokenizer.bos_id}, but the embedding has {words} words"]))
  if known > words:
    return f"the tokenizer has {known} words, the embedding {words}: a prompt that holds one of the others is refused"
  if tokenizer.eos_ids and min(tokenizer.eos_ids) >= words:
    return f"no token that ends a text is one of the embedding's {words} words: texts end by their length alone"
  return None


def _refuse(checkpoint: Checkpoint, found: Iterator[str]) -> None:
  told = [what for what, _ in zip(found, range(_TOLD), strict=False)]
  if told:
    raise ModelFilesError(f"the files of {checkpoint.path.name} contradict each other: {'; '.join(told)}")


class _Findings:
  """What is wrong about one checkpoint, the most telling first."""
  def __init__(self, checkpoint: Checkpoint) -> None:
    self._checkpoint, self._config = checkpoint, checkpoint.config
    self._names = [name for name in checkpoint.names() if part_of(name) is not Part.UNUSED]
    # a model of text alone, or the part of a larger one that is
    inside = next((name for name in self._names if name.endswith(EMBEDDING)), None)
    self._prefix = "" if inside is None else inside.removesuffix(EMBEDDING)

  def all(self) -> Iterator[str]:
    yield from self._words()
    yield from self._layers()
    if line_of(self._config.model_type):
      yield from _numbers(self._config)
      yield from self._tensors()

  def _words(self) -> Iterator[str]:
    config = self._config
    for name in self._names:
      shape = self._checkpoint.tensor_shape(name)
      if len(shape) == 2 and name.endswith((".embed_tokens.weight", HEAD)):
        if shape[0] != config.vocab_size:
          yield f"vocab_size is {config.vocab_size}, {name} has {shape[0]} rows"
        if shape[1] != config.hidden_size:
          yield f"hidden_size is {config.hidden_size}, {name} has {shape[1]} columns"

  def _layers(self) -> Iterator[str]:
    n, found = self._config.n_layers, {part for name in self._names if isinstance(part := part_of(name), int)}
    missing = sorted(set(range(n)) - found)
    if found and missing:
      yield f"num_hidden_layers is {n}, but there are no tensors of layer {missing[0]}"
    # other families put layers that predict further tokens behind their own
    if line_of(self._config.model_type) and (extra := sorted(found - set(range(n)))):
      yield f"num_hidden_layers is {n}, but there are tensors of layer {extra[-1]}"

  def _tensors(self) -> Iterator[str]:
    """Every tensor that the engines read, where it is, has the shape that the configuration gives it."""
    has, prefix, config = self._checkpoint.has, self._prefix, self._config
    said = self._checkpoint.hf_config.get("tie_word_embeddings")
    if said is False and not has(f"{prefix}{HEAD}") and not prefix:
      yield f"tie_word_embeddings is false, but there is no {HEAD}"
    if biased := self._biases():
      yield biased
    wanted: dict[str, Shape] = {"model.norm.weight": (config.hidden_size, )}
    for layer in range(config.n_layers):
      wanted |= {f"model.layers.{layer}.{name}": shape for name, shape in self._of_layer(layer).items()}
    for name, shape in wanted.items():
      if not has(prefix + name):
        yield f"there is no {prefix}{name}"
        continue
      found = self._checkpoint.tensor_shape(prefix + name)
      if found != shape:
        yield f"{prefix}{name} has the shape {_words_of(found)}, the configuration makes it {_words_of(shape)}"

  def _biases(self) -> str | None:
    """Engines would leave out what the configuration does not speak of, or all where one is missing."""
    for layer in range(self._config.n_layers):
      module = f"{self._prefix}model.layers.{layer}.self_attn."
      found = [part for part in "qkv" if self._checkpoint.has(f"{module}{part}_proj.bias")]
      if 0 < len(found) < 3:
        return f"of the projections of {module.rstrip('.')} only {' and '.join(found)} have a bias"
      if found and self._checkpoint.hf_config.get("attention_bias") is False:
        return f"attention_bias is false, but there is {module}{found[0]}_proj.bias"
    return None

  def _of_layer(self, layer: int) -> dict[str, Shape]:
    config, prefix = self._config, f"{self._prefix}model.layers.{layer}."
    hidden, wide, one = config.hidden_size, config.intermediate_size, (config.hidden_size, )
    queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    shapes: dict[str, Shape] = {"input_layernorm.weight": one, "post_attention_layernorm.weight": one}
    if config.post_norms:
      shapes |= {"pre_feedforward_layernorm.weight": one, "post_feedforward_layernorm.weight": one}
    if config.qk_norm:
      shapes |= {f"self_attn.{part}_norm.weight": (config.head_dim, ) for part in "qk"}
    matrices: dict[str, Shape] = {"self_attn.o_proj": (hidden, queries)}
    if self._checkpoint.has(f"{prefix}self_attn.qkv_proj.weight"):
      matrices["self_attn.qkv_proj"] = (queries + 2 * keys, hidden)
    else:
      matrices |= {f"self_attn.{part}_proj": (queries if part == "q" else keys, hidden) for part in "qkv"}
    if config.n_experts and config.sparse_layers[layer]:
      wide = config.moe_intermediate_size
      shapes["mlp.gate.weight"] = (config.n_experts, hidden)
      if not self._checkpoint.has(f"{prefix}mlp.switch_mlp.gate_proj.weight"):  # MLX's stacks are looked at when read
        for expert in range(config.n_experts):
          matrices |= {f"mlp.experts.{expert}.{part}_proj": (wide, hidden) for part in ("gate", "up")}
          matrices[f"mlp.experts.{expert}.down_proj"] = (hidden, wide)
    elif self._checkpoint.has(f"{prefix}mlp.gate_up_proj.weight"):
      matrices |= {"mlp.gate_up_proj": (2 * wide, hidden), "mlp.down_proj": (hidden, wide)}
    else:
      matrices |= {"mlp.gate_proj": (wide, hidden), "mlp.up_proj": (wide, hidden), "mlp.down_proj": (hidden, wide)}
    for name, shape in matrices.items():
      shapes[f"{name}.weight"] = shape
      if self._checkpoint.has(f"{prefix}{name}.bias"):
        shapes[f"{name}.bias"] = shape[:1]
    return shapes


def _numbers(config: ModelConfig) -> Iterator[str]:
  """Of the configuration alone: numbers with which nothing can be computed."""
  if config.n_heads % config.n_kv_heads:
    yield f"num_attention_heads {config.n_heads} is no multiple of num_key_value_heads {config.n_kv_heads}"
  if not 0 < config.norm_eps < 1:
    yield f"rms_norm_eps is {config.norm_eps}"
  if config.rotary_dim % 2 or not config.rotary_dim:
    yield f"the rotary embedding turns {config.rotary_dim} of head_dim {config.head_dim}, which must be even"
  if config.attention_softcap < 0 or config.final_softcap < 0:
    yield "a soft cap of logits is negative"
  if not config.n_experts_per_token <= config.n_experts or (config.n_experts and not config.n_experts_per_token):
    yield f"{config.n_experts_per_token} experts a token are asked for where there are {config.n_experts}"
  for rope in dict.fromkeys(config.rope):
    yield from _rotary(rope, config.rotary_dim)


def _rotary(rope: RopeScaling, rotary_dim: int) -> Iterator[str]:
  numbers = {
      "rope_theta": rope.theta, "factor": rope.factor, "low_freq_factor": rope.low_freq_factor,
      "high_freq_factor": rope.high_freq_factor, "beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow,
      "original_max_position_embeddings": rope.original_max_position,
      "attention_factor": 1.0 if rope.attention_factor is None else rope.attention_factor
  }  # yapf: disable
  for name, value in numbers.items():
    if not math.isfinite(value) or value <= 0:
      yield f"the rotary embedding's {name} is {value}"
  if rope.theta == 1 or (rope.kind == "llama3" and rope.low_freq_factor == rope.high_freq_factor):
    yield "the rotary embedding's numbers make no frequencies"
  for factors in (rope.factors, rope.long_factors):
    if factors and len(factors) != rotary_dim // 2:
      yield f"the rotary embedding has {len(factors)} factors for {rotary_dim // 2} pairs"
    if not all(math.isfinite(factor) and factor > 0 for factor in factors):
      yield "a factor of the rotary embedding is not a positive number"


def _words_of(shape: Shape) -> str:
  return " × ".join(map(str, shape))
