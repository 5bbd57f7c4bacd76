"""The kernels of a transformer layer, each a function of its sizes, written as tinygrad UOps.

Every token of a step is a row, whichever sequence it belongs to and whether it is of a prompt or a decode; the number of
rows is a symbolic variable, and so is the number of KV pages that attention looks at, hence one program serves every
step. A number depends on its own row alone and is summed in an order that no size changes: batches, chunks and splits
give the same bits. Buffers are flat, in the order of the parameters' slots. With `tuned=False` (on devices
other than a CPU, and for matrix products under BEAM) tinygrad chooses how to lay loops out.

Reading a reduction in a second loop of the same kernel keeps norms and softmax in one kernel each.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

from tinygrad import UOp, dtypes
from tinygrad.dtype import DType
from tinygrad.uop.ops import AxisType, KernelInfo, Ops

from exo.inference.whole_blocks import blocks_for

MAX_ROWS = 128
PAGE = 32  # tokens of KV in one page
LANES = 16  # columns of a weight panel: one 64-byte line of float32
BLOCK = 32  # weights that share a scale
_MAX_SIZE = 1 << 40  # of a buffer whose size no kernel may depend on


@dataclass(frozen=True)
class Dialect:
  """How kernels are written for a device: with our options or tinygrad's, BEAM's width for
  matrix products, and the weights' dtype."""
  tuned: bool = True
  beam: int = 0
  weights: DType = dtypes.float32


def variable(name: str, high: int, low: int = 1) -> UOp:
  return UOp.variable(name, low, high, param=True)


ROWS = variable("rows", MAX_ROWS)  # rows of this call
ROW0 = variable("row0", MAX_ROWS - 1, 0)  # the first of them
PAGES = variable("pages", 1 << 20)  # KV pages that the longest of the rows looks at


def _buffer(slot: int, dtype: DType = dtypes.float32, size: int = _MAX_SIZE) -> UOp:
  return UOp.placeholder((size, ), dtype, slot)


def _kernel(dialect: Dialect, name: str, *stores: UOp, beam: int = 0) -> UOp:
  # an empty tuple keeps the loops as they are written here, None leaves them to tinygrad or BEAM
  return UOp.sink(*stores, arg=KernelInfo(name=name, opts_to_apply=() if dialect.tuned else None, beam=beam))


def _wide(dialect: Dialect, size: int, axis: int, at_once: int = LANES) -> tuple[UOp, tuple[UOp, ...]]:
  """(index, its ranges) of a loop that handles up to `at_once` numbers side by side."""
  width = next((n for n in range(min(at_once, size), 0, -1) if size % n == 0), 1) if dialect.tuned else 1
  outer = UOp.range(size // width, axis)
  if width == 1:
    return outer, (outer, )
  inner = UOp.range(width, axis + 50, AxisType.UPCAST)
  return outer * width + inner, (outer, inner)


def _summed(dialect: Dialect, size: int, axis: int, at_once: int) -> tuple[UOp, tuple[UOp, ...]]:
  """The same for a reduction: terms are added one after the other whatever the width."""
  width = at_once if dialect.tuned and size % at_once == 0 else 1
  outer = UOp.range(size // width, axis, AxisType.REDUCE)
  if width == 1:
    return outer, (outer, )
  inner = UOp.range(width, axis + 50, AxisType.UNROLL)
  return outer * width + inner, (outer, inner)


def _load_int(buffer: UOp, index: UOp) -> UOp:
  return buffer[index].load().cast(dtypes.weakint)


@functools.cache
def rms_norm(dialect: Dialect, size: int, eps: float, gathered: bool = False, added: bool = False) -> UOp:
  """out[m] = x[m] / sqrt(mean(x[m]²) + eps) · weight; slots: out, x, weight, and with `gathered` the rows to take.

  With `added` the result is added to what `out` holds.
  """
  out, x, weight = (_buffer(i) for i in range(3))
  row, k, d = UOp.range(ROWS, 0), UOp.range(size, 1, AxisType.REDUCE), UOp.range(size, 2)
  source = _load_int(_buffer(3, dtypes.int32), row) if gathered else row
  value = x[source * size + k].load()
  inverse = ((value * value).reduce(k, arg=Ops.ADD) * (1.0 / size) + eps).rsqrt()
  normed = x[source * size + d].load() * inverse * weight[d].load()
  place = row * size + d
  store = out[place].store(out[place].load() + normed if added else normed).end(d).end(row)
  return _kernel(dialect, f"norm_{size}{'_rows' * gathered}{'_add' * added}", store)


@dataclass(frozen=True)
class Product:
  """What a matrix product does besides: `tile` rows at a time; `bits` of the weights (None: floats)."""
  tile: int
  bias: bool = False
  add: bool = False  # to what the output holds
  bits: int | None = None


@functools.cache
def linear(dialect: Dialect, inputs: int, outputs: int, product: Product) -> UOp:
  """y[m, n] = Σ_k x[m, k] · w[n, k]; slots: y, x, w, scales where `bits`, bias where wanted.

  `outputs` is a multiple of LANES; w lies in panels (outputs / LANES, inputs, LANES), read front to back. Rows are taken
  in tiles, the last of them full of rows that nobody reads. Scales have the shape (outputs / LANES, inputs / BLOCK, LANES).
  """
  tile, bits = product.tile, product.bits
  panels = outputs // LANES
  if dialect.beam:  # a search runs the kernel: these buffers have their true sizes
    dialect = replace(dialect, tuned=False)
  y, x = _buffer(0, size=MAX_ROWS * outputs), _buffer(1, size=MAX_ROWS * inputs)
  tiles = variable("tiles", blocks_for(MAX_ROWS, tile))
  panel, t = UOp.range(panels, 0), UOp.range(tiles, 1)  # in this order a panel is read once for all tiles
  m, m_ranges = _wide(dialect, tile, 2)
  lane, lane_ranges = _wide(dialect, LANES, 3)
  row, place = t * tile + m, panel * LANES + lane
  total = panel_sum(dialect, x, row * inputs, panel, lane, inputs, bits, panels)
  if product.bias:
    total = total + _buffer(3 if bits is None else 4, size=outputs)[place].load()
  out = row * outputs + place
  if product.add:
    total = y[out].load() + total
  name = f"linear_{tile}_{outputs}_{inputs}_{bits or 'f'}{'_bias' * product.bias}{'_add' * product.add}"
  return _kernel(dialect, name, y[out].store(total).end(panel, t, *m_ranges, *lane_ranges), beam=dialect.beam)


def panel_sum(
    dialect: Dialect,
    x: UOp,
    start: UOp,
    panel: UOp,
    lane: UOp,
    inputs: int,
    bits: int | None,
    panels: int = _MAX_SIZE >> 32
) -> UOp:
  """Σ_k x[start + k] · w[panel, k, lane], `panels` panels of weights in slot 2 and their scales in slot 3.

  With `bits` it is the sum over blocks of scale · Σ_k x[start + k] · code; codes of 4 bits lie as k and k + BLOCK / 2 in
  one byte, plus 8.
  """
  if bits is None:
    column, ranges = _summed(dialect, inputs, 14, 4)
    w = _buffer(2, dialect.weights,
                panels * inputs * LANES)[(panel * inputs + column) * LANES + lane].load().cast(dtypes.float32)
    return (x[start + column].load() * w).reduce(*ranges, arg=Ops.ADD)
  blocks = inputs // BLOCK
  block = UOp.range(blocks, 15, AxisType.REDUCE)
  per_byte = 8 // bits
  k, ranges = _summed(dialect, BLOCK // per_byte, 14, 4)
  code = _buffer(2, dtypes.int8 if bits == 8 else dtypes.uint8, panels * inputs * LANES //
                 per_byte)[((panel * blocks + block) * (BLOCK // per_byte) + k) * LANES + lane].load()
  at = start + block * BLOCK + k
  if bits == 8:
    products = x[at].load() * code.cast(dtypes.float32)
  else:
    low, high = (code & 15).cast(dtypes.float32) - 8.0, (code >> 4).cast(dtypes.float32) - 8.0
    products = x[at].load() * low + x[at + BLOCK // 2].load() * high
  scale = _buffer(3, size=panels * blocks * LANES)[(panel * blocks + block) * LANES + lane].load()
  return (scale * products.reduce(*ranges, arg=Ops.ADD)).reduce(block, arg=Ops.ADD)


@functools.cache
def gated(dialect: Dialect, size: int, stride: int, activation: str, width: int = 1) -> UOp:
  """out[m, i] = act(x[m, i]) · x[m, size + i], x of `stride` numbers a row; slots: out, x. `width` rows of x for one."""
  out, x = _buffer(0), _buffer(1)
  row = UOp.range(ROWS * width if width > 1 else ROWS, 0)
  i, ranges = _wide(dialect, size, 1)
  gate, up = x[row * stride + i].load(), x[row * stride + size + i].load()
  if activation == "silu":
    active = gate / (1.0 + (-gate).exp())
  else:  # 0.5 · (1 + tanh(u)) is the logistic function of 2u
    inner = 2 * math.sqrt(2 / math.pi) * (gate + 0.044715 * gate * gate * gate)
    active = gate / (1.0 + (-inner).exp())
  store = out[row * size + i].store(active * up).end(row, *ranges)
  return _kernel(dialect, f"gated_{activation}_{size}_{stride}_{width}", store)


@dataclass(frozen=True)
class Heads:
  """The sizes of one kind of attention layer."""
  queries: int
  keys: int
  dim: int
  rotary: int
  scale: float
  eps: float = 0.0
  qk_norm: bool = False
  softcap: float = 0.0
  window: int | None = None

  @property
  def width(self) -> int:
    return (self.queries + 2 * self.keys) * self.dim


@functools.cache
def rotate_and_store(dialect: Dialect, heads: Heads, stride: int, max_pages: int) -> UOp:
  """Queries, scaled, out of the fused projection; keys and values into their pages; rotary embedding on both.

  Slots: queries (rows, heads, dim), key pages (page, KV head, dim, PAGE), value pages (page, KV head, PAGE, dim), x (rows,
  stride), cosines and sines (rows, rotary / 2), positions (rows), the sequence's place in the table (rows), table (places,
  max_pages), and with qk_norm the weights for queries and keys.
  """
  q_out, k_out, v_out, x, cos, sin = (_buffer(i) for i in range(6))
  positions, places, table = (_buffer(i, dtypes.int32) for i in (6, 7, 8))
  dim, half = heads.dim, heads.rotary // 2
  row = UOp.range(ROWS, 0)
  position = _load_int(positions, row)
  page = _load_int(table, _load_int(places, row) * max_pages + position // PAGE)
  stores: list[UOp] = []
  axis = 1

  def head_loop(first: int, count: int, weight: UOp | None, factor: float, keep: bool) -> None:
    nonlocal axis
    head = UOp.range(count, axis)
    start = row * stride + (first + head) * dim
    inverse: UOp | None = None
    if weight is not None:
      k = UOp.range(dim, axis + 1, AxisType.REDUCE)
      value = x[start + k].load()
      inverse = ((value * value).reduce(k, arg=Ops.ADD) * (1.0 / dim) + heads.eps).rsqrt()

    def read(d: UOp) -> UOp:
      value = x[start + d].load()
      return value if inverse is None or weight is None else value * inverse * weight[d].load()

    def write(d: UOp, value: UOp) -> UOp:
      value = value * factor if factor != 1 else value
      if keep:
        return k_out[((page * heads.keys + head) * dim + d) * PAGE + position % PAGE].store(value)
      return q_out[(row * heads.queries + head) * dim + d].store(value)

    d = UOp.range(half, axis + 2)
    a, b = read(d), read(d + half)
    c, s = cos[row * half + d].load(), sin[row * half + d].load()
    parts = [UOp.group(write(d, a * c - b * s), write(d + half, b * c + a * s)).end(d)]
    if dim > heads.rotary:
      rest = UOp.range(dim - heads.rotary, axis + 3)
      parts.append(write(rest + heads.rotary, read(rest + heads.rotary)).end(rest))
    stores.append(UOp.group(*parts).end(head))
    axis += 4

  head_loop(0, heads.queries, _buffer(9) if heads.qk_norm else None, heads.scale, False)
  head_loop(heads.queries, heads.keys, _buffer(10) if heads.qk_norm else None, 1.0, True)
  head, d = UOp.range(heads.keys, axis), UOp.range(dim, axis + 1)
  value = x[row * stride + (heads.queries + heads.keys + head) * dim + d].load()
  stores.append(v_out[((page * heads.keys + head) * PAGE + position % PAGE) * dim + d].store(value).end(head, d))
  name = f"rotate_{heads.queries}_{heads.keys}_{dim}_{heads.rotary}_{stride}{'_norm' * heads.qk_norm}"
  return _kernel(dialect, name, UOp.group(*stores).end(row))


def _first_page(heads: Heads, position: UOp) -> UOp:
  """Where a window begins: the first page that holds a key the token sees."""
  assert heads.window is not None
  start = position - (heads.window - 1)
  return (start > 0).where(start, 0) // PAGE


def _page_index(heads: Heads, table: UOp, place: UOp, position: UOp, page: UOp, max_pages: int) -> tuple[UOp, UOp]:
  """(number of the page that a row's loop has reached, where it lies)."""
  if heads.window is None:
    number = page
  else:  # other rows of the call may have more pages: beyond the own last one the last is read again, and masked
    number = _first_page(heads, position) + page
  last = position // PAGE
  return number, _load_int(table, place * max_pages + (number < last).where(number, last))


@functools.cache
def attention_scores(dialect: Dialect, heads: Heads, max_pages: int) -> UOp:
  """scores[m, h, key] = q[m, h] · k[key], for rows row0 .. row0 + rows and `pages` pages of keys.

  Slots: scores (rows, heads, pages, PAGE), queries, key pages, positions, places, table.
  """
  scores, queries, keys = (_buffer(i) for i in range(3))
  positions, places, table = (_buffer(i, dtypes.int32) for i in (3, 4, 5))
  group = heads.queries // heads.keys
  m, head, page = UOp.range(ROWS, 0), UOp.range(heads.keys, 1), UOp.range(PAGES, 2)
  (g, g_ranges), (lane, lane_ranges) = _wide(dialect, group, 3, 4), _wide(dialect, PAGE, 4)
  d = UOp.range(heads.dim, 5, AxisType.REDUCE)
  row = ROW0 + m
  number, at = _page_index(heads, table, _load_int(places, row), _load_int(positions, row), page, max_pages)
  query = queries[(row * heads.queries + head * group + g) * heads.dim + d].load()
  key = keys[((at * heads.keys + head) * heads.dim + d) * PAGE + lane].load()
  score = (query * key).reduce(d, arg=Ops.ADD)
  if heads.softcap:  # tanh(u) = 1 - 2 / (exp(2u) + 1)
    score = heads.softcap * (1.0 - 2.0 / ((score * (2.0 / heads.softcap)).exp() + 1.0))
  key_position, position = number * PAGE + lane, _load_int(positions, row)
  seen = key_position <= position
  if heads.window is not None:
    seen = seen & (key_position > position - heads.window)
  out = scores[((m * heads.queries + head * group + g) * PAGES + page) * PAGE + lane]
  store = out.store(seen.where(score, -1e30)).end(m, head, page, *g_ranges, *lane_ranges)
  return _kernel(dialect, f"scores_{heads.queries}_{heads.keys}_{heads.dim}_{heads.window}", store)


@functools.cache
def attention_softmax(dialect: Dialect, queries: int) -> UOp:
  """scores[m, h, key] = exp(scores - their maximum); slot: scores. Masked keys become exactly 0."""
  scores = _buffer(0)
  m, head = UOp.range(ROWS, 0), UOp.range(queries, 1)
  start = (m * queries + head) * PAGES * PAGE
  page = UOp.range(PAGES, 2, AxisType.REDUCE)
  lane, ranges = _summed(dialect, PAGE, 3, LANES)
  top = scores[start + page * PAGE + lane].load().reduce(page, *ranges, arg=Ops.MAX)
  page2, (lane2, ranges2) = UOp.range(PAGES, 4), _wide(dialect, PAGE, 5)
  place = start + page2 * PAGE + lane2
  store = scores[place].store((scores[place].load() - top).exp()).end(page2, *ranges2).end(m, head)
  return _kernel(dialect, f"softmax_{queries}", store)


@functools.cache
def attention_mix(dialect: Dialect, heads: Heads, max_pages: int) -> UOp:
  """out[m, h] = Σ weight[key] · v[key] / Σ weight[key]; slots: out, weights, value pages, positions, places, table."""
  out, weights, values = (_buffer(i) for i in range(3))
  positions, places, table = (_buffer(i, dtypes.int32) for i in (3, 4, 5))
  group = heads.queries // heads.keys
  m, head, g = UOp.range(ROWS, 0), UOp.range(heads.keys, 1), UOp.range(group, 2)
  d, d_ranges = _wide(dialect, heads.dim, 3)
  page, lane = UOp.range(PAGES, 4, AxisType.REDUCE), UOp.range(PAGE, 5, AxisType.REDUCE)
  row, query_head = ROW0 + m, head * group + g
  _, at = _page_index(heads, table, _load_int(places, row), _load_int(positions, row), page, max_pages)
  weight = weights[((m * heads.queries + query_head) * PAGES + page) * PAGE + lane].load()
  value = values[((at * heads.keys + head) * PAGE + lane) * heads.dim + d].load()
  mixed = (weight * value).reduce(page, lane, arg=Ops.ADD) / weight.reduce(page, lane, arg=Ops.ADD)
  store = out[(row * heads.queries + query_head) * heads.dim + d].store(mixed).end(m, head, g, *d_ranges)
  return _kernel(dialect, f"mix_{heads.queries}_{heads.keys}_{heads.dim}_{heads.window}", store)


@functools.cache
def copy_page(dialect: Dialect, size: int) -> UOp:
  """pages[target] = pages[source], pages of `size` numbers; slot: pages."""
  pages = _buffer(0)
  source, target = variable("source", 1 << 30, 0), variable("target", 1 << 30, 0)
  i, ranges = _wide(dialect, size, 0)
  store = pages[target * size + i].store(pages[source * size + i].load()).end(*ranges)
  return _kernel(dialect, f"copy_{size}", store)


@functools.cache
def clear_tail(dialect: Dialect, size: int, dim: int) -> UOp:
  """Of one page of values all but the first `keep` tokens become 0; slot: pages. What a step that failed, or was taken
  back, left there may be no number, and would be multiplied with 0."""
  pages, target, keep = _buffer(0), variable("target", 1 << 30, 0), variable("keep", PAGE, 0)
  i, ranges = _wide(dialect, size, 0)
  value = pages[target * size + i]
  store = value.store(((i // dim) % PAGE < keep).where(value.load(), 0.0)).end(*ranges)
  return _kernel(dialect, f"tail_{size}_{dim}", store)


@functools.cache
def clear_page(dialect: Dialect, size: int) -> UOp:
  """pages[target] = 0, so that nothing of an earlier sequence is multiplied with, not even by 0; slot: pages."""
  pages, target, (i, ranges) = _buffer(0), variable("target", 1 << 30, 0), _wide(dialect, size, 0)
  return _kernel(dialect, f"clear_{size}", pages[target * size + i].store(UOp.const(0.0, dtypes.float32)).end(*ranges))
