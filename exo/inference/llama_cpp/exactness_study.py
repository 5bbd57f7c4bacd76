"""Finds out in which calls llama.cpp gives a sequence the numbers that it has alone, by computing the same tokens in several ways.

Its kernels for one row, for a few and for many sum in other orders, by the encoding of the weights, their shape and the processor. What
is compared is everything that is seen of a call: what comes out, and all that the caches keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from exo.inference.exactness import CAREFUL, Exactness
from exo.inference.llama_cpp.llama_model import LlamaContext, Row
from exo.inference.llama_cpp.sequence_state import SequenceState

TOKENS, CONTEXT = 605, 768  # 605 ends within every piece that is tried
CALL_ROWS = 512
_MULTIPLES = (8, 16, 32, 64, 128)
_WIDTHS = (2, 3, 4, 5, 6, 7, 8, 16)  # beyond the last nothing was ever seen to change
STREAMS = _WIDTHS[-1]
_SIZES = (1, 3, 2, 7, 1, 5)  # of pieces, one after the other
_LENGTHS = (100, 600, 37, 300, 163, 450, 511)  # of texts that go on

Inputs = npt.NDArray[np.int32] | npt.NDArray[np.float32]
_Texts = Sequence[tuple[int, SequenceState]]


@dataclass(frozen=True, slots=True)
class _Seen:
  """Of calls: the rows that came out, of the last token alone where these are logits, and what the cache then holds."""
  rows: bytes
  kept: bytes


class ExactnessStudy:
  """`make` gives a context for so many sequences of so many tokens, `given` is what goes into it for each of `TOKENS` tokens, and
  `positions` as in `StageCut`."""
  def __init__(self, make: Callable[[int, int], LlamaContext], given: Inputs, positions: int) -> None:
    self._make, self._given, self._positions = make, given, positions

  def run(self) -> Exactness:
    one = self._make(CONTEXT, 1)
    try:
      careful = self._prompt(one, (0, CAREFUL.prompt_multiple))
      texts = self._texts(one)
      draft_rows = self._widest(lambda width: self._drafts_alike(one, texts, width))
      # what is rounded hides much: only where no number of rows makes a difference anywhere is one by one the same as a prompt
      as_prompt = not draft_rows and all(self._prompt(one, starts) == careful for starts in self._one_by_one())
      found = 1 if as_prompt else next((m for m in _MULTIPLES if self._cut_at(one, careful, m)), None)
    finally:
      one.close()
    many = self._make(CONTEXT, STREAMS)
    try:
      alone = [self._steps(many, i, texts, 1) for i in range(STREAMS)]
      decode_rows = self._widest(lambda width: self._together(many, texts, width) == alone[:width])
    finally:
      many.close()
    if decode_rows and as_prompt:
      return Exactness(decode_rows, _MULTIPLES[0], True, draft_rows, False)
    multiple = CAREFUL.prompt_multiple if found is None else found
    return Exactness(decode_rows, multiple, found is not None, draft_rows, as_prompt)

  def _one_by_one(self) -> Iterator[Sequence[int]]:
    """Where pieces begin that are mostly of one token, the quickest to tell first."""
    yield [0, CALL_ROWS, *range(CALL_ROWS + 1, TOKENS)]
    yield [*self._pieces(1)]
    yield [0, *range(64, TOKENS)]

  @staticmethod
  def _widest(alike: Callable[[int], bool]) -> int:
    """The most rows such that so many, and all fewer, are alike; 0 where there is no bound."""
    widest = 1
    for width in _WIDTHS:
      if not alike(width):
        return widest
      widest = width
    return 0

  # prompts

  def _cut_at(self, context: LlamaContext, careful: _Seen, multiple: int) -> bool:
    """Whether pieces may begin at any of these places: the shortest ones, the longest, and others."""
    shortest = range(0, TOKENS - multiple, multiple)
    longest = (0, CALL_ROWS if multiple <= TOKENS - CALL_ROWS else CALL_ROWS - multiple)
    return all(self._prompt(context, starts) == careful for starts in (longest, shortest, self._pieces(multiple)))

  @staticmethod
  def _pieces(multiple: int, at: int = 0) -> Iterator[int]:
    """Where pieces of several sizes begin, from `at` on, none smaller than `multiple`."""
    i = 0
    while at == 0 or TOKENS - at >= multiple:
      yield at
      at += multiple * _SIZES[i % len(_SIZES)]
      i += 1

  def _prompt(self, context: LlamaContext, starts: Sequence[int] | Iterator[int]) -> _Seen:
    context.drop(0)
    begin, seen = list(starts), []
    for a, b in zip(begin, [*begin[1:], TOKENS], strict=True):
      for start in range(a, b, CALL_ROWS):
        end = min(start + CALL_ROWS, b)
        rows = self._call(context, [Row(0, i, i == TOKENS - 1) for i in range(start, end)], range(start, end))
        seen.append(rows.tobytes())
    return _Seen(b"".join(seen), _bytes_of(context.state(0)))

  def _texts(self, context: LlamaContext) -> _Texts:
    """Texts of several lengths, each with what is kept of it."""
    found, done = {}, 0
    context.drop(0)
    for length in sorted(_LENGTHS):
      self._call(context, [Row(0, i, False) for i in range(done, length)], range(done, length))
      found[length], done = context.state(0), length
    return [(length, found[length]) for length in _LENGTHS]

  # what follows them

  def _steps(self, context: LlamaContext, number: int, texts: _Texts, count: int) -> _Seen:
    """So many tokens after a text, one by one."""
    length = self._begin(context, number, number, texts)
    rows = [self._call(context, [Row(number, length + i)], [number + i]).tobytes() for i in range(count)]
    return _Seen(b"".join(rows), _bytes_of(context.state(number)))

  def _drafts_alike(self, context: LlamaContext, texts: _Texts, width: int) -> bool:
    """Whether so many tokens of one sequence at once are what they are one by one."""
    for text in range(2):
      chosen = texts[text:]
      one_by_one = self._steps(context, 0, chosen, width)
      length = self._begin(context, 0, 0, chosen)
      rows = self._call(context, [Row(0, length + i) for i in range(width)], range(width))
      if _Seen(rows.tobytes(), _bytes_of(context.state(0))) != one_by_one:
        return False
    return True

  def _together(self, context: LlamaContext, texts: _Texts, width: int) -> list[_Seen]:
    """A token of each of so many sequences."""
    lengths = [self._begin(context, i, i, texts) for i in range(width)]
    rows = self._call(context, [Row(i, length) for i, length in enumerate(lengths)], range(width))
    return [_Seen(row.tobytes(), _bytes_of(context.state(i))) for i, row in enumerate(rows)]

  @staticmethod
  def _begin(context: LlamaContext, number: int, text: int, texts: _Texts) -> int:
    length, state = texts[text % len(texts)]
    context.drop(number)
    context.set_state(number, state)
    return length

  def _call(self, context: LlamaContext, rows: Sequence[Row], given: Sequence[int]) -> npt.NDArray[np.float32]:
    return context.compute(rows, self._given[list(given)], self._positions).copy()


def _bytes_of(state: SequenceState) -> bytes:
  return state.written(1, 0).tobytes()
