"""The kernels of a mixture of experts: each row is routed to a few of them and read through their weights alone."""

from __future__ import annotations

import functools

from tinygrad import UOp, dtypes
from tinygrad.uop.ops import AxisType, Ops

from exo.inference.tinygrad.kernels import (
    LANES,
    ROWS,
    Dialect,
    _buffer,
    _kernel,
    _load_int,
    _wide,
    panel_sum,
)


def _after_weights(bits: int | None) -> int:
  """The first slot behind the weights and, where there are some, their scales."""
  return 3 if bits is None else 4


@functools.cache
def ranks(dialect: Dialect, experts: int, stride: int) -> UOp:
  """ranks[m, e]: how many experts come before e by their logit (of equal ones the earlier); slots: ranks, logits."""
  out, logits = _buffer(0, dtypes.int32), _buffer(1)
  row, e, other = UOp.range(ROWS, 0), UOp.range(experts, 1), UOp.range(experts, 2, AxisType.REDUCE)
  mine, theirs = logits[row * stride + e].load(), logits[row * stride + other].load()
  before = (theirs > mine) | (theirs.eq(mine) & (other < e))
  rank = before.where(UOp.const(1, dtypes.int32), UOp.const(0, dtypes.int32)).reduce(other, arg=Ops.ADD)
  return _kernel(dialect, f"ranks_{experts}", out[row * experts + e].store(rank).end(row, e))


@functools.cache
def chosen(dialect: Dialect, experts: int, active: int) -> UOp:
  """chosen[m, s]: the expert of rank s; slots: chosen, ranks."""
  out, rank = _buffer(0, dtypes.int32), _buffer(1, dtypes.int32)
  row, place, e = UOp.range(ROWS, 0), UOp.range(active, 1), UOp.range(experts, 2, AxisType.REDUCE)
  match = rank[row * experts + e].load().eq(place.cast(dtypes.int32))
  number = match.where(e.cast(dtypes.int32), UOp.const(0, dtypes.int32)).reduce(e, arg=Ops.ADD)
  return _kernel(dialect, f"chosen_{experts}_{active}", out[row * active + place].store(number).end(row, place))


@functools.cache
def shares(dialect: Dialect, experts: int, active: int, stride: int, normalized: bool) -> UOp:
  """share[m, s]: the softmax of the chosen expert's logit, among the chosen alone if `normalized`.

  Slots: shares, logits, chosen.
  """
  out, logits, numbers = _buffer(0), _buffer(1), _buffer(2, dtypes.int32)
  row, place = UOp.range(ROWS, 0), UOp.range(active, 1)
  top = logits[row * stride + _load_int(numbers, row * active)].load()  # the first of the chosen has the highest

  def weight(expert: UOp) -> UOp:
    return (logits[row * stride + expert].load() - top).exp()

  if normalized:
    other = UOp.range(active, 2, AxisType.REDUCE)
    total = weight(_load_int(numbers, row * active + other)).reduce(other, arg=Ops.ADD)
  else:
    other = UOp.range(experts, 2, AxisType.REDUCE)
    total = weight(other).reduce(other, arg=Ops.ADD)
  share = weight(_load_int(numbers, row * active + place)) / total
  return _kernel(
      dialect, f"shares_{experts}_{active}_{normalized}", out[row * active + place].store(share).end(row, place)
  )


@functools.cache
def widen(dialect: Dialect, inputs: int, outputs: int, active: int, bits: int | None) -> UOp:
  """y[m, s, n] = Σ_k x[m, k] · w[chosen[m, s], n, k]; slots: y, x, w, scales, chosen. Weights in panels, by expert."""
  y, x, numbers = _buffer(0), _buffer(1), _buffer(_after_weights(bits), dtypes.int32)
  panels = outputs // LANES
  row, place, panel = UOp.range(ROWS, 0), UOp.range(active, 1), UOp.range(panels, 2)
  lane, ranges = _wide(dialect, LANES, 3)
  expert = _load_int(numbers, row * active + place)
  total = panel_sum(dialect, x, row * inputs, expert * panels + panel, lane, inputs, bits)
  out = y[(row * active + place) * outputs + panel * LANES + lane]
  return _kernel(
      dialect, f"widen_{inputs}_{outputs}_{active}_{bits or 'f'}",
      out.store(total).end(row, place, panel, *ranges)
  )


@functools.cache
def narrow(dialect: Dialect, inputs: int, outputs: int, active: int, bits: int | None) -> UOp:
  """y[m, n] += Σ_s share[m, s] · Σ_k x[m, s, k] · w[chosen[m, s], n, k]; slots: y, x, w, scales, chosen, shares."""
  slot = _after_weights(bits)
  y, x, numbers, share = _buffer(0), _buffer(1), _buffer(slot, dtypes.int32), _buffer(slot + 1)
  panels = outputs // LANES
  row, panel, (lane, ranges) = UOp.range(ROWS, 0), UOp.range(panels, 1), _wide(dialect, LANES, 2)
  place = UOp.range(active, 3, AxisType.REDUCE)
  expert = _load_int(numbers, row * active + place)
  inner = panel_sum(dialect, x, (row * active + place) * inputs, expert * panels + panel, lane, inputs, bits)
  total = (share[row * active + place].load() * inner).reduce(place, arg=Ops.ADD)
  out = y[row * outputs + panel * LANES + lane]
  return _kernel(
      dialect, f"narrow_{inputs}_{outputs}_{active}_{bits or 'f'}",
      out.store(out.load() + total).end(row, panel, *ranges)
  )
