"""A shard's layers as lists of bound kernels, for every architecture of the Llama line, with experts or without."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from tinygrad import dtypes

from exo.inference.model_config import ModelConfig
from exo.inference.shard import Shard
from exo.inference.tinygrad import experts, kernels
from exo.inference.tinygrad.device import Array, Call, ComputeDevice
from exo.inference.tinygrad.kernels import LANES, MAX_ROWS, PAGE, Heads, Product
from exo.inference.tinygrad.probe import repertoire
from exo.inference.tinygrad.weights import Matrix, MatrixWriter
from exo.inference.weights.stage_tensors import StageTensors
from exo.inference.whole_blocks import blocks_for, whole_blocks

TILES = (1, 4)  # rows that a matrix product takes at once; more are slower: clang then packs the sums badly
_MIN_SCORES = 1 << 22


def padded(size: int) -> int:
  """Rounded up to whole panels of weights."""
  return whole_blocks(size, LANES)


def tile_of(rows: int) -> int:
  return next((tile for tile in TILES if rows <= tile), TILES[-1])


@dataclass
class Layer:
  """Kernels before attention and after it by tile, and attention itself, which runs once for each group of rows."""
  window: int | None
  before: dict[int, list[Call]] = field(default_factory=dict)
  attention: list[Call] = field(default_factory=list)
  after: dict[int, list[Call]] = field(default_factory=dict)


@dataclass(frozen=True)
class Loaded:
  """A layer's weights."""
  input_norm: Array
  qkv: Matrix
  query_norm: Array | None
  key_norm: Array | None
  out: Matrix
  attention_norm: Array | None  # after attention, where there is one
  mlp_input_norm: Array
  widen: Matrix  # gate and up, of all experts where there are some
  narrow: Matrix
  router: Matrix | None
  mlp_norm: Array | None


class StepArrays:
  """What goes into a step and what lies between its kernels; a row for each token."""
  def __init__(self, device: ComputeDevice, config: ModelConfig, shard: Shard, places: int, context: int) -> None:
    rows, hidden = MAX_ROWS, config.hidden_size
    self.max_pages = blocks_for(context, PAGE)
    heads = config.n_heads + 2 * config.n_kv_heads
    expert_width = config.n_experts_per_token * padded(2 * config.moe_intermediate_size)
    width = max(padded(2 * config.intermediate_size), expert_width)
    self.x = device.array(rows * hidden)
    self.normed = device.array(rows * hidden)
    self.part = device.array(rows * padded(hidden))
    self.qkv = device.array(rows * padded(heads * config.head_dim))
    self.queries = device.array(rows * config.n_heads * config.head_dim)
    self.attended = device.array(rows * config.n_heads * config.head_dim)
    self.wide = device.array(rows * width)
    self.narrowed = device.array(rows * width)
    # keys of several rows at a time where they are few, of one row where they are many
    self.scores = device.array(max(_MIN_SCORES, config.n_heads * self.max_pages * PAGE), sparse=True)
    self.positions = device.array(rows, dtypes.int32)
    self.places = device.array(rows, dtypes.int32)
    self.table = device.array(places * self.max_pages, dtypes.int32, sparse=True)
    self.ropes = {
        rope: (device.array(rows * config.rotary_dim // 2), device.array(rows * config.rotary_dim // 2))
        for rope in sorted({config.rope[layer]
                            for layer in shard.layers}, key=repr)
    }
    if config.n_experts:
      n, active = config.n_experts, config.n_experts_per_token
      self.router = device.array(rows * padded(n))
      self.ranks, self.chosen = device.array(rows * n, dtypes.int32), device.array(rows * active, dtypes.int32)
      self.shares = device.array(rows * active)
    if shard.is_last:
      self.wanted = device.array(rows, dtypes.int32)
      self.head_rows = device.array(rows * hidden)
      self.logits = device.array(rows * padded(config.vocab_size), sparse=True)


class Decoder:
  """Loads the weights of a shard, then binds kernels to them; `layers` and `head` are what a step calls."""
  def __init__(
      self, device: ComputeDevice, shard: Shard, tensors: StageTensors, context: int, places: int, bits: int | None
  ) -> None:
    config = tensors.config
    repertoire().check("tinygrad", tensors.facts)
    self._device, self._shard, self._tensors, self._config = device, shard, tensors, config
    self._writer = MatrixWriter(device, bits)
    self.arrays = StepArrays(device, config, shard, places, context)
    self.layers: list[Layer] = []
    self.head: dict[int, list[Call]] = {}
    self.pages: list[Array] = []

  # weights

  def load(self, progress: Callable[[float], None]) -> None:
    self._loaded = []
    steps = self._shard.layer_count + self._shard.is_last
    for done, layer in enumerate(self._shard.layers):
      self._loaded.append(self._load_layer(layer))
      self._tensors.let_go()
      progress((done + 1) / steps)
    if self._shard.is_last:
      self._final_norm = self._norm("model.norm.weight")
      self._head = self._writer.matrix([self._tensors.head()])
      self._tensors.let_go()
      progress(1.0)

  def _norm(self, name: str) -> Array:
    return self._writer.vector(self._tensors.tensor(name), self._config.norm_offset)

  def _matrix(self, layer: int, fused: str, *separate: str) -> Matrix:
    """Projections that read the same value, stored together or apart, as one."""
    return self._writer.matrix(*self._tensors.projection(layer, fused, *separate))

  def _load_layer(self, layer: int) -> Loaded:
    config, prefix = self._config, f"model.layers.{layer}."
    router: Matrix | None = None
    if config.n_experts and config.sparse_layers[layer]:
      names = [f"{prefix}mlp.experts.{e}." for e in range(config.n_experts)]
      router = MatrixWriter(self._device, None).matrix([self._tensors.tensor(f"{prefix}mlp.gate.weight")])
      widen = self._writer.matrix([
          self._tensors.tensor(f"{name}{part}_proj.weight") for name in names for part in ("gate", "up")
      ],
                                  copies=config.n_experts)
      narrow = self._writer.matrix([self._tensors.tensor(f"{name}down_proj.weight") for name in names],
                                   copies=config.n_experts)
    else:
      widen = self._matrix(layer, "mlp.gate_up_proj", "mlp.gate_proj", "mlp.up_proj")
      narrow = self._matrix(layer, "mlp.down_proj")
    post = config.post_norms
    after_attention = self._norm(f"{prefix}post_attention_layernorm.weight")
    return Loaded(
        input_norm=self._norm(f"{prefix}input_layernorm.weight"),
        qkv=self._matrix(layer, "self_attn.qkv_proj", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        query_norm=self._norm(f"{prefix}self_attn.q_norm.weight") if config.qk_norm else None,
        key_norm=self._norm(f"{prefix}self_attn.k_norm.weight") if config.qk_norm else None,
        out=self._matrix(layer, "self_attn.o_proj"),
        attention_norm=after_attention if post else None,
        mlp_input_norm=self._norm(f"{prefix}pre_feedforward_layernorm.weight") if post else after_attention,
        widen=widen,
        narrow=narrow,
        router=router,
        mlp_norm=self._norm(f"{prefix}post_feedforward_layernorm.weight") if post else None,
    )

  # kernels

  def bind(self, pages: int, progress: Callable[[float], None]) -> None:
    """Make room for `pages` pages of KV and compile; layers of one shape share their programs."""
    page = self._config.n_kv_heads * self._config.head_dim * PAGE
    clear, copy = kernels.clear_page(self._device.dialect, page), kernels.copy_page(self._device.dialect, page)
    tail = kernels.clear_tail(self._device.dialect, page, self._config.head_dim)
    self.clear_page: list[Call] = []
    self.clear_tail: list[Call] = []
    self.copy_page: list[Call] = []
    total = self._shard.layer_count + self._shard.is_last
    for done, (layer, loaded) in enumerate(zip(self._shard.layers, self._loaded, strict=True)):
      cache = [self._device.array(pages * page, sparse=True) for _ in "kv"]
      self.pages += cache
      self.clear_page += [self._device.bind(clear, array) for array in cache]
      self.clear_tail.append(self._device.bind(tail, cache[1]))
      self.copy_page += [self._device.bind(copy, array) for array in cache]
      self.layers.append(self._bind_layer(layer, loaded, cache[0], cache[1]))
      progress((done + 1) / total)
    if self._shard.is_last:
      self._bind_head()
      progress(1.0)

  def write_table(self, place: int, pages: Sequence[int], first: int) -> None:
    """Enter a sequence's pages from its `first` on."""
    self.arrays.table.write(np.array(pages[first:], np.int32), place * self.arrays.max_pages + first)

  def _heads(self, layer: int) -> Heads:
    config = self._config
    return Heads(
        config.n_heads, config.n_kv_heads, config.head_dim, config.rotary_dim, config.attention_scale, config.norm_eps,
        config.qk_norm, config.attention_softcap, config.sliding_window[layer]
    )

  def _rms_norm(self, out: Array, x: Array, weight: Array, added: bool = False) -> Call:
    kernel = kernels.rms_norm(self._device.dialect, self._config.hidden_size, self._config.norm_eps, added=added)
    return self._device.bind(kernel, out, x, weight)

  def _linear(self, tile: int, y: Array, x: Array, w: Matrix, add: bool = False) -> Call:
    product = Product(tile, w.bias is not None, add, w.bits)
    kernel = kernels.linear(self._device.dialect, w.inputs, w.outputs, product)
    return self._device.bind(kernel, y, x, w.codes, w.scales, w.bias)

  def _bind_layer(self, layer: int, w: Loaded, keys: Array, values: Array) -> Layer:
    device, a, config = self._device, self.arrays, self._config
    heads = self._heads(layer)
    cos, sin = a.ropes[config.rope[layer]]
    bound = Layer(heads.window)
    rotate = device.bind(
        kernels.rotate_and_store(device.dialect, heads, w.qkv.outputs, a.max_pages), a.queries, keys, values, a.qkv,
        cos, sin, a.positions, a.places, a.table, w.query_norm, w.key_norm
    )
    rows = (a.positions, a.places, a.table)
    bound.attention = [
        device.bind(kernels.attention_scores(device.dialect, heads, a.max_pages), a.scores, a.queries, keys, *rows),
        device.bind(kernels.attention_softmax(device.dialect, heads.queries), a.scores),
        device.bind(kernels.attention_mix(device.dialect, heads, a.max_pages), a.attended, a.scores, values, *rows),
    ]
    for tile in TILES:
      bound.before[tile] = [
          self._rms_norm(a.normed, a.x, w.input_norm),
          self._linear(tile, a.qkv, a.normed, w.qkv), rotate
      ]
      bound.after[tile] = list(self._after_attention(tile, layer, w))
    return bound

  def _after_attention(self, tile: int, layer: int, w: Loaded) -> Iterator[Call]:
    a = self.arrays
    if w.attention_norm is None:
      yield self._linear(tile, a.x, a.attended, w.out, add=True)
    else:
      yield self._linear(tile, a.part, a.attended, w.out)
      yield self._rms_norm(a.x, a.part, w.attention_norm, added=True)
    yield self._rms_norm(a.normed, a.x, w.mlp_input_norm)
    if w.router is not None:
      yield from self._experts(tile, w, w.router)
      return
    yield self._linear(tile, a.wide, a.normed, w.widen)
    yield self._gated(w.narrow.inputs, w.widen.outputs)
    if w.mlp_norm is None:
      yield self._linear(tile, a.x, a.narrowed, w.narrow, add=True)
    else:
      yield self._linear(tile, a.part, a.narrowed, w.narrow)
      yield self._rms_norm(a.x, a.part, w.mlp_norm, added=True)

  def _gated(self, size: int, stride: int, width: int = 1) -> Call:
    kernel = kernels.gated(self._device.dialect, size, stride, self._config.activation, width)
    return self._device.bind(kernel, self.arrays.narrowed, self.arrays.wide)

  def _experts(self, tile: int, w: Loaded, router: Matrix) -> Iterator[Call]:
    device, a, config = self._device, self.arrays, self._config
    n, active, dialect = config.n_experts, config.n_experts_per_token, device.dialect
    yield self._linear(tile, a.router, a.normed, router)
    yield device.bind(experts.ranks(dialect, n, router.outputs), a.ranks, a.router)
    yield device.bind(experts.chosen(dialect, n, active), a.chosen, a.ranks)
    shares = experts.shares(dialect, n, active, router.outputs, config.norm_topk)
    yield device.bind(shares, a.shares, a.router, a.chosen)
    widen = experts.widen(dialect, w.widen.inputs, w.widen.outputs // n, active, w.widen.bits)
    yield device.bind(widen, a.wide, a.normed, w.widen.codes, w.widen.scales, a.chosen)
    yield self._gated(w.narrow.inputs, w.widen.outputs // n, active)
    narrow = experts.narrow(dialect, w.narrow.inputs, w.narrow.outputs // n, active, w.narrow.bits)
    yield device.bind(narrow, a.x, a.narrowed, w.narrow.codes, w.narrow.scales, a.chosen, a.shares)

  def _bind_head(self) -> None:
    a, config = self.arrays, self._config
    gather = kernels.rms_norm(self._device.dialect, config.hidden_size, config.norm_eps, gathered=True)
    norm = self._device.bind(gather, a.head_rows, a.x, self._final_norm, a.wanted)
    for tile in TILES:
      self.head[tile] = [norm, self._linear(tile, a.logits, a.head_rows, self._head)]
    self.logit_stride = self._head.outputs


def run(calls: Sequence[Call]) -> None:
  for call in calls:
    call()
