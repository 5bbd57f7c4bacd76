"""The decoder layers of a shard as one ONNX graph, for every dense architecture of the Llama line.

Inputs: `x` (B, S, hidden), `seqlens_k` (B,) int32 with each row's total length less one, `total` (1,) int32 the longest
total length, on the last stage `rows` (R,) int64 choosing tokens of the flattened batch, and per layer `past_k.i`,
`past_v.i` (B, KV heads, room, head dim), which the operator updates in place; where sequences have one of two rotary
embeddings, its `tables`; where a lone row is given twice (`lone_rows.py`), `tokens` (1,) int64, how many of the S are
tokens, and `repeat` (3,) int64, how often attention's rows are repeated to be S again. Output, named by `output`: hidden states
(B, S, hidden) or logits (R, 1, vocabulary); on the last stage `hidden` names what its head sees, (B, S, hidden).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from exo.inference.onnx.graph import MICROSOFT, Dims, GraphBuilder
from exo.inference.onnx.linear import LinearLayers
from exo.inference.onnx.lone_rows import lone_rows_differ
from exo.inference.onnx.probe import repertoire
from exo.inference.rope import cos_sin
from exo.inference.shard import Shard
from exo.inference.weights.stage_tensors import StageTensors
from exo.inference.weights.tensor import Floats

# projections that read one value: their name where they are stored together, then apart
_QKV = ("self_attn.qkv_proj", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_OUT = ("self_attn.o_proj", )
_GATE_UP = ("mlp.gate_up_proj", "mlp.gate_proj", "mlp.up_proj")
_DOWN = ("mlp.down_proj", )


class DecoderGraph:
  """Writes one shard's layers into a graph."""
  def __init__(self, shard: Shard, tensors: StageTensors, context: int, bits: int | None) -> None:
    config = tensors.config
    repertoire().check("onnx", tensors.facts)
    self.graph = GraphBuilder()
    self._shard, self._tensors, self._config, self._context = shard, tensors, config, context
    self._linear = LinearLayers(self.graph, bits)
    #: whether lone rows are to be given twice, and there are the inputs `tokens` and `repeat`
    self.doubles = lone_rows_differ() and any(map(self._is_narrow, shard.layers))
    #: whether a lone one of `rows` is to be given twice
    self.doubles_rows = shard.is_last and lone_rows_differ() and self._linear.are_narrow([tensors.head()])
    self.hidden: str | None = None
    self.tables: dict[str, tuple[Floats,
                                 Floats]] = {}  # inputs (positions, rotary dim / 2): of near sequences, of far ones

  def build(self, progress: Callable[[float], None]) -> GraphBuilder:
    g, config, shard = self.graph, self._config, self._shard
    residual = g.input("x", "float32", ["B", "S", config.hidden_size])
    g.input("seqlens_k", "int32", ["B"])
    g.input("total", "int32", [1])
    if self.doubles:
      g.input("tokens", "int64", [1])
      g.input("repeat", "int64", [3])
    added: str | None = None
    if not shard.is_first:
      # x + 0 through the same operator that the undivided model uses here, so that a split changes no bit
      added = g.node("Mul", [residual, g.weight(np.zeros(1, np.float32))])
    for done, layer in enumerate(shard.layers):
      residual, added = self._layer(layer, residual, added)
      self._tensors.let_go()
      progress((done + 1) / (shard.layer_count + 1))
    assert added is not None
    if shard.is_last:
      self._head(residual, added)
      self._tensors.let_go()
    else:
      self.output = g.node("Add", [residual, added])
      g.output(self.output, "float32", ["B", "S", config.hidden_size])
    return g

  def _is_narrow(self, layer: int) -> bool:
    """Some of its products have weights of 4 bits."""
    return any(
        self._linear.are_narrow(self._tensors.projection(layer, *names)[0]) for names in (_QKV, _OUT, _GATE_UP, _DOWN)
    )

  def _norm_weight(self, name: str) -> str:
    return self.graph.weight(self._tensors.tensor(name).to_float32() + np.float32(self._config.norm_offset), "norm")

  def _norm(self, x: str, name: str) -> str:
    return self.graph.node(
        "SimplifiedLayerNormalization", [x, self._norm_weight(name)], axis=-1, epsilon=self._config.norm_eps
    )

  def _add_and_norm(self, residual: str, added: str | None, name: str) -> tuple[str, str]:
    """(norm(residual + added), residual + added) in one operator."""
    if added is None:
      return self._norm(residual, name), residual
    g = self.graph
    normed, total = g.fresh("norm"), g.fresh("residual")
    g.nodes(
        "SkipSimplifiedLayerNormalization", [residual, added, self._norm_weight(name)], [normed, "", "", total],
        domain=MICROSOFT,
        epsilon=self._config.norm_eps
    )
    return normed, total

  def _project(self, x: str, layer: int, names: Sequence[str], row_scale: Floats | None = None) -> str:
    """One product for projections that read the same value, stored together or apart."""
    weights, biases = self._tensors.projection(layer, *names)
    return self._linear.add(x, weights, biases, row_scale)

  def _layer(self, layer: int, residual: str, added: str | None) -> tuple[str, str]:
    """(residual, what is still to be added to it) after the layer."""
    prefix, config = f"model.layers.{layer}.", self._config
    normed, residual = self._add_and_norm(residual, added, f"{prefix}input_layernorm.weight")
    attended = self._attention(layer, normed)
    out = self._project(attended, layer, _OUT)
    if config.post_norms:
      out = self._norm(out, f"{prefix}post_attention_layernorm.weight")
      before_mlp = f"{prefix}pre_feedforward_layernorm.weight"
    else:
      before_mlp = f"{prefix}post_attention_layernorm.weight"
    normed, residual = self._add_and_norm(residual, out, before_mlp)
    out = self._mlp(layer, normed)
    if config.post_norms:
      out = self._norm(out, f"{prefix}post_feedforward_layernorm.weight")
    return residual, out

  def _attention(self, layer: int, x: str) -> str:
    g, config = self.graph, self._config
    # queries come scaled out of their projection (or norm): the operator's fast path for one token needs scale 1
    heads = config.n_heads * config.head_dim
    scale = np.ones(heads + 2 * config.n_kv_heads * config.head_dim, np.float32)
    if not config.qk_norm:
      scale[:heads] = config.attention_scale
    qkv = self._project(x, layer, _QKV, row_scale=scale)
    if self.doubles:
      ends = [g.weight(np.array([n], np.int64), name=f"constant {n}") for n in (0, 1)]
      qkv = g.node("Slice", [qkv, ends[0], "tokens", ends[1]])
    cos, sin = self._cos_sin(layer)
    cache: Dims = ["B", config.n_kv_heads, "T", config.head_dim]
    past = [g.input(f"past_{part}.{layer}", "float32", cache) for part in "kv"]
    present = [g.output(f"present_{part}.{layer}", "float32", cache) for part in "kv"]
    query = self._normed_heads(layer, qkv) if config.qk_norm else [qkv, "", ""]
    inputs = [*query, *past, "seqlens_k", "total", cos, sin]
    attributes: dict[str, float | int] = {}
    if config.attention_softcap:
      attributes["softcap"] = config.attention_softcap
    if (window := config.sliding_window[layer]) is not None:
      attributes["local_window_size"] = window
    attended = g.nodes(
        "GroupQueryAttention",
        inputs, [g.fresh("attention"), *present],
        domain=MICROSOFT,
        num_heads=config.n_heads,
        kv_num_heads=config.n_kv_heads,
        do_rotary=1,
        rotary_interleaved=0,
        scale=1.0,
        **attributes
    )[0]
    return g.node("Expand", [attended, "repeat"]) if self.doubles else attended

  def _normed_heads(self, layer: int, qkv: str) -> list[str]:
    """Queries, keys and values apart, each head of the first two with its own RMS norm."""
    g, config = self.graph, self._config
    sizes = [heads * config.head_dim for heads in (config.n_heads, config.n_kv_heads, config.n_kv_heads)]
    parts = g.nodes(
        "Split", [qkv, g.weight(np.array(sizes, np.int64), name="qkv_sizes")], [g.fresh(part) for part in "qkv"],
        axis=-1
    )
    for i, heads in enumerate((config.n_heads, config.n_kv_heads)):
      weight = self._tensors.tensor(f"model.layers.{layer}.self_attn.{'qk'[i]}_norm.weight").to_float32()
      factor = config.attention_scale if i == 0 else 1.0
      scale = g.weight((weight + np.float32(config.norm_offset)) * np.float32(factor), "norm")
      parts[i] = self._norm_each(parts[i], scale, heads)
    return parts

  def _norm_each(self, x: str, scale: str, heads: int) -> str:
    """The RMS norm of each head. (BranchwiseRMSNorm is one operator, but takes twenty times as long over a prompt.)"""
    g, config = self.graph, self._config

    def norm(value: str) -> str:
      return g.node("SimplifiedLayerNormalization", [value, scale], axis=-1, epsilon=config.norm_eps)

    if heads == 1:
      return norm(x)
    apart = g.node("Reshape", [x, g.weight(np.array([0, 0, heads, config.head_dim], np.int64))])
    return g.node("Reshape", [norm(apart), g.weight(np.array([0, 0, heads * config.head_dim], np.int64))])

  def _cos_sin(self, layer: int) -> tuple[str, str]:
    config = self._config
    rope, near_context = config.rope[layer], config.near_context
    key = config.rope.index(rope)  # layers of one kind share their tables
    names = (f"cos.{key}", f"sin.{key}")

    def tables(length: int, far: bool) -> tuple[Floats, Floats]:
      return cos_sin(rope, config.rotary_dim, length, config.max_context, far)

    if not near_context:
      cos, sin = (
          self.graph.weight(table, name=name) for name, table in zip(names, tables(self._context, False), strict=True)
      )
      return cos, sin
    if names[0] not in self.tables:
      for name, *pair in zip(
          names, tables(min(self._context, near_context), False), tables(self._context, True), strict=True
      ):
        self.graph.input(name, "float32", [f"{name} positions", config.rotary_dim // 2])
        self.tables[name] = (pair[0], pair[1])
    return names

  def _mlp(self, layer: int, x: str) -> str:
    g = self.graph
    both = self._project(x, layer, _GATE_UP)
    gate, up = g.nodes("Split", [both], [g.fresh("gate"), g.fresh("up")], axis=-1, num_outputs=2)
    if self._config.activation == "silu":
      active = g.node("QuickGelu", [gate], domain=MICROSOFT, alpha=1.0)  # x · sigmoid(x): one operator, not two
    else:
      active = g.node("FastGelu", [gate], domain=MICROSOFT)
    return self._project(g.node("Mul", [active, up]), layer, _DOWN)

  def _head(self, residual: str, added: str) -> None:
    g, config = self.graph, self._config
    normed, _ = self._add_and_norm(residual, added, "model.norm.weight")
    self.hidden = normed
    g.output(normed, "float32", ["B", "S", config.hidden_size])
    g.input("rows", "int64", ["R"])
    flat = g.node("Reshape", [normed, g.weight(np.array([-1, 1, config.hidden_size], np.int64))])
    chosen = g.node("Gather", [flat, "rows"], axis=0)
    logits = self._linear.add(chosen, [self._tensors.head()])
    if config.final_softcap:
      cap = g.weight(np.array([config.final_softcap], np.float32))
      logits = g.node("Mul", [g.node("Tanh", [g.node("Div", [logits, cap])]), cap])
    g.output(logits, "float32", ["R", 1, config.vocab_size])
    self.output = logits
