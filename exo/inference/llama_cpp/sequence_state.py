"""What llama.cpp keeps of one sequence, as bytes that go into any context of the same weights, whatever number it has there.

`llama_state_seq_get_data` writes a head, then for each cache of keys and values (two where layers have windows) the streams of the
context, of which only the sequence's has cells, then what recurrent layers keep. Which of these there are depends on the
architecture, and no function tells: of the forms that are known the one is taken that the bytes fit to the last.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from exo.errors import CacheReuseError

Bytes = npt.NDArray[np.uint8]
_HEAD_BYTES = 8  # a magic number, and the sequence
_CELL_BYTES = (
    12, 24
)  # position, how many sequences have it, and which; with more positions where rotary embeddings take several
_TURNED_BYTES = (8, 0)  # behind the number of layers newer builds say how quantized keys and values are turned
_RECURRENT_BYTES = 20
_MOST_ROW_BYTES = 1 << 24  # of a token in a layer
_MOST_LAYERS = 1 << 12


@dataclass(frozen=True, slots=True)
class _Rows:
  """A layer's keys or values: what is written before them, and their bytes, (cells, bytes), or (numbers, cells, bytes of one) where
  `by_number`."""
  head: Bytes
  rows: Bytes
  by_number: bool = False

  def at(self, index: npt.NDArray[np.int64]) -> _Rows:
    """Those of other cells; zeros where the index is -1."""
    rows = self.rows[:, index] if self.by_number else self.rows[index]
    if self.by_number:
      rows[:, index < 0] = 0
    else:
      rows[index < 0] = 0
    return replace(self, rows=rows)


@dataclass(frozen=True, slots=True)
class _Cells:
  """A cache: each cell's own bytes, (cells, bytes), which begin with its position; what is said of all layers, and these."""
  each: Bytes
  head: Bytes
  layers: tuple[_Rows, ...]

  @property
  def positions(self) -> npt.NDArray[np.int32]:
    return np.ascontiguousarray(self.each[:, :4]).view(np.int32)[:, 0]

  @property
  def has_gaps(self) -> bool:
    positions = self.positions
    return bool(len(positions)) and int(positions[-1]) + 1 != len(positions)

  def in_place(self) -> _Cells:
    """With a cell for every position: those that have left a window are not written, and the rest would come to lie elsewhere, where
    sums over them run in another order. Zeros stand in for them, which nobody sees."""
    if not self.has_gaps:
      return self
    positions = self.positions
    index = np.full(int(positions.max()) + 1, -1, np.int64)
    index[positions] = np.arange(len(positions))
    each = self.each[index]
    each[:, :4] = np.arange(len(index), dtype=np.int32).view(np.uint8).reshape(-1, 4)
    return _Cells(each, self.head, tuple(layer.at(index) for layer in self.layers))

  def parts(self) -> list[Bytes]:
    out = [_number(len(self.each)), self.each, self.head]
    for layer in self.layers:
      out += [layer.head, layer.rows]
    return out


@dataclass(frozen=True, slots=True)
class SequenceState:
  """`rest` is what recurrent layers keep."""
  head: Bytes
  caches: tuple[_Cells | None, ...]
  rest: Bytes

  @property
  def has_gaps(self) -> bool:
    """Cells that have left a window are not in it: it cannot be what a shorter text is gone on with."""
    return any(cells is not None and cells.has_gaps for cells in self.caches)

  def written(self, n_streams: int, sequence: int) -> Bytes:
    """For a context of so many streams, in which the sequence has this number."""
    parts = [self.head]
    for cells in self.caches:
      parts.append(_number(n_streams))
      if cells is None:
        parts.append(np.zeros(4 * n_streams, np.uint8))
        continue
      parts += [
          np.zeros(4 * sequence, np.uint8), *cells.in_place().parts(),
          np.zeros(4 * (n_streams - 1 - sequence), np.uint8)
      ]
    return np.concatenate([part.reshape(-1) for part in (*parts, self.rest)])


def read_state(data: Bytes, n_streams: int, sequence: int, length: int) -> SequenceState:
  """Of what a context of so many streams has written of a sequence of `length` tokens. Raises `CacheReuseError` where it is in none of
  the forms that are known."""
  for n_caches, cell_bytes, has_values, turned in itertools.product((1, 2, 0), _CELL_BYTES, (True, False),
                                                                    _TURNED_BYTES):
    form = _Form(cell_bytes, has_values, turned)
    try:
      return _read(data, n_streams, sequence, length, n_caches, form)
    except (_OtherFormError, ValueError):
      continue
  raise CacheReuseError("llama.cpp keeps what this model has read in a way that exo cannot move")


@dataclass(frozen=True, slots=True)
class _Form:
  """Of the caches: bytes of a cell beside its keys and values, whether there are values, and bytes behind the number of layers where a
  cache has none, as that for whole attention in a stage of windows: where it has some, they show themselves."""
  cell_bytes: int
  has_values: bool
  turned_bytes: int


class _OtherFormError(Exception):
  """The bytes are not of this form."""


class _Reader:
  def __init__(self, data: Bytes) -> None:
    self._data, self.at = data, 0

  def take(self, count: int) -> Bytes:
    _expect(0 <= count <= len(self._data) - self.at)
    self.at += count
    return self._data[self.at - count:self.at]

  def number(self, n_bytes: int = 4) -> int:
    return int.from_bytes(self.take(n_bytes).tobytes(), "little")

  def rest(self) -> Bytes:
    return self.take(len(self._data) - self.at)


def _read(data: Bytes, n_streams: int, sequence: int, length: int, n_caches: int, form: _Form) -> SequenceState:
  reader = _Reader(data)
  head, caches = reader.take(_HEAD_BYTES).copy(), []
  for _ in range(n_caches):
    _expect(reader.number() == n_streams)
    counts = [reader.number() for _ in range(sequence)]
    count = reader.number()
    caches.append(_cells(reader, count, length, form) if count else None)
    counts += [reader.number() for _ in range(n_streams - 1 - sequence)]
    _expect(not any(counts))
  rest = reader.rest()
  if len(rest):
    _expect(len(rest) > _RECURRENT_BYTES)
    cells, position, sequences, _, layers = rest[:_RECURRENT_BYTES].view(np.int32)
    _expect(cells == 1 and position == length - 1 and sequences == 0 and 0 < layers < _MOST_LAYERS)
  else:
    _expect(n_caches > 0)
  return SequenceState(head, tuple(caches), rest)


def _cells(reader: _Reader, count: int, length: int, form: _Form) -> _Cells:
  _expect(count <= length)
  each = reader.take(count * form.cell_bytes).reshape(count, form.cell_bytes)
  positions = np.ascontiguousarray(each[:, :4]).view(np.int32)[:, 0]
  _expect(positions[-1] == length - 1 and bool((np.diff(positions) > 0).all()) and positions[0] >= 0)
  start = reader.at
  transposed, n_layers = reader.number(), reader.number()
  _expect(transposed in (0, 1) and 0 <= n_layers < _MOST_LAYERS)
  at = reader.at
  if not n_layers:
    at += form.turned_bytes
  elif reader.take(4).size and not 0 < reader.number(8) < _MOST_ROW_BYTES:
    at += _TURNED_BYTES[0]
  reader.at = at
  head = reader._data[start:at]
  layers = [_by_cell(reader, count) for _ in range(n_layers)]
  if form.has_values:
    layers += [_by_number(reader, count) if transposed else _by_cell(reader, count) for _ in range(n_layers)]
  return _Cells(each, head, tuple(layers))


def _by_cell(reader: _Reader, count: int) -> _Rows:
  start = reader.at
  kind, n_bytes = reader.number(), reader.number(8)
  _expect(kind < 256 and 0 < n_bytes < _MOST_ROW_BYTES)
  return _Rows(reader._data[start:reader.at], reader.take(count * n_bytes).reshape(count, n_bytes))


def _by_number(reader: _Reader, count: int) -> _Rows:
  start = reader.at
  kind, n_bytes, numbers = reader.number(), reader.number(), reader.number()
  _expect(kind < 256 and 0 < n_bytes <= 8 and 0 < n_bytes * numbers < _MOST_ROW_BYTES)
  rows = reader.take(count * n_bytes * numbers).reshape(numbers, count, n_bytes)
  return _Rows(reader._data[start:start + 12], rows, True)


def _expect(it_is_so: bool) -> None:
  if not it_is_so:
    raise _OtherFormError


def _number(value: int) -> Bytes:
  return np.array([value], np.int32).view(np.uint8)
