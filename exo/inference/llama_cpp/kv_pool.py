"""Where sequences keep what they have read: contexts by class of length, each with as many places as are wanted.

A context takes all the memory that it was made for, whatever is used of it. So sequences begin in the shortest class that holds them and
move when they grow out of it, and a class gets more places when it is full: by a larger context, into which all move. Moving is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from exo.errors import CacheReuseError, EngineError, OutOfMemoryError
from exo.inference.llama_cpp.llama_model import LlamaContext
from exo.inference.llama_cpp.sequence_state import SequenceState

_SHORTEST = 512
_MOST_PLACES = 256  # of a context of llama.cpp


@dataclass
class _Class:
  """`places` holds the sequences by their number in the context, None where one is free. Far ones have another rotary embedding, which
  llama.cpp gives all sequences of a context that is longer than the model's first."""
  length: int
  far: bool
  context: LlamaContext | None = None
  places: list[int | None] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Place:
  context: LlamaContext
  number: int


class KvPool:
  """`make` gives a context for so many sequences of so many tokens, which takes `token_bytes` for each token of each of them.

  All together take at most `most_bytes`, and the longest class is `most_length`. Near sequences stay in classes of up to `near_length`, and
  far ones in longer ones; 0 where all have the same rotary embedding.
  """
  def __init__(
      self,
      make: Callable[[int, int], LlamaContext],
      token_bytes: int,
      most_bytes: int,
      most_length: int,
      near_length: int = 0
  ) -> None:
    self._make, self._token_bytes, self._most_bytes, self._most_length = make, token_bytes, most_bytes, most_length
    self._near_length = near_length
    self._classes: dict[tuple[int, bool], _Class] = {}
    self._places: dict[int, tuple[_Class, int]] = {}
    self._poisoned: set[int] = set()
    # lengths that sequences cannot be cut below, since cells before have not moved along
    self._least: dict[int, int] = {}

  def poison(self, sequence: int) -> None:
    """It has kept numbers that are not finite. They would come back from cells that are free, since nothing times NaN is NaN: what it
    leaves is not used again."""
    self._poisoned.add(sequence)

  @property
  def n_bytes(self) -> int:
    return sum(len(of.places) * of.length * self._token_bytes for of in self._classes.values())

  def place(self, sequence: int, length: int, far: bool = False, exact: bool = True) -> Place:
    """Where a sequence is that is to hold so many tokens, new or not. Those that are `exact` and those that are not lie side by side,
    since only neighbours are computed together. Raises `OutOfMemoryError`; what was there stays."""
    held = self._places.get(sequence)
    if held is None or held[0].length < length:
      of = self._class_for(length, far and self._near_length > 0)
      try:
        target = self._free_place(of, exact)
        if held is not None:
          self._move(sequence, held, target)
      except BaseException:
        self._close_empty(of)
        raise
      target[0].places[target[1]] = sequence
      self._places[sequence] = held = target
    assert held[0].context is not None
    return Place(held[0].context, held[1])

  def _class_for(self, length: int, far: bool) -> _Class:
    size, least = _SHORTEST, self._near_length + 1 if far else 0
    while size < max(length, least):
      size *= 2
    most = self._most_length if far or not self._near_length else min(self._near_length, self._most_length)
    size = min(size, most)
    if size < length:
      raise EngineError(f"a sequence is longer than {most} tokens")
    return self._classes.setdefault((size, far), _Class(size, far))

  def _free_place(self, of: _Class, first: bool) -> tuple[_Class, int]:
    if None not in of.places:
      self._grow(of)
    free = [number for number, sequence in enumerate(of.places) if sequence is None]
    return of, free[0 if first else -1]

  def _grow(self, of: _Class) -> None:
    count = len(of.places)
    if count >= _MOST_PLACES:
      raise OutOfMemoryError(f"llama.cpp keeps at most {_MOST_PLACES} sequences of {of.length} tokens")
    each = of.length * self._token_bytes
    # both are there while all move
    room = (self._most_bytes - self.n_bytes) // each
    wanted = min(count + max(1, count // 2), room, _MOST_PLACES)
    if wanted <= count:
      raise OutOfMemoryError(f"there is no memory for the caches of {count + 1} sequences of {of.length} tokens")
    self._renew(of, wanted)

  def _renew(self, of: _Class, count: int) -> None:
    """Let the class have another context, of so many places, into which all move. Where one cannot, all stay."""
    context, old = self._make(of.length, count), of.context
    try:
      for number, sequence in enumerate(of.places):
        if sequence is not None and old is not None and old.held(number):  # one whose first step failed holds nothing
          self._put(sequence, old.state(number), context, number)
    except BaseException:
      context.close()
      raise
    of.context = context
    if old is not None:
      old.close()
    of.places += [None] * (count - len(of.places))

  def _put(self, sequence: int, state: SequenceState, context: LlamaContext, number: int) -> None:
    context.set_state(number, state)
    if state.has_gaps:
      self._least[sequence] = max(self._least.get(sequence, 0), context.held(number))

  def _move(self, sequence: int, held: tuple[_Class, int], target: tuple[_Class, int]) -> None:
    (source, number), (aim, place) = held, target
    assert source.context is not None and aim.context is not None
    if source.context.held(number):
      self._put(sequence, source.context.state(number), aim.context, place)
    self._free(source, number)
    self._clean(sequence, source)

  def _free(self, of: _Class, number: int) -> None:
    assert of.context is not None
    of.context.drop(number)
    of.places[number] = None
    self._close_empty(of)

  def _close_empty(self, of: _Class) -> None:
    """A context holds all of its memory, used or not."""
    if any(sequence is not None for sequence in of.places):
      return
    if of.context is not None:
      of.context.close()
    self._classes.pop((of.length, of.far), None)

  def drop(self, sequence: int) -> None:
    held = self._places.pop(sequence, None)
    if held is not None:
      self._free(*held)
      self._clean(sequence, held[0])
      self._poisoned.discard(sequence)
      self._least.pop(sequence, None)

  def _clean(self, sequence: int, of: _Class) -> None:
    """Of a class in which cells of this sequence have become free."""
    if sequence in self._poisoned and (of.length, of.far) in self._classes:
      self._renew(of, len(of.places))

  def truncate(self, sequence: int, length: int) -> None:
    """Raises `CacheReuseError` where what is kept cannot be shortened."""
    held = self._places.get(sequence)
    if held is None:
      return
    if length == 0:
      self.drop(sequence)
      return
    assert held[0].context is not None
    if length < self._least.get(sequence, 0):
      raise CacheReuseError(
          f"of what this model keeps of a text only the end has moved: it cannot be cut to {length} tokens"
      )
    held[0].context.truncate(held[1], length)
    self._clean(sequence, held[0])
    self._poisoned.discard(sequence)

  def copy(self, source: int, target: int, length: int, held: int) -> None:
    """Let `target` begin with `length` tokens of the `held` that `source` has. Raises `CacheReuseError`, `EngineError`."""
    origin = self._places.get(source)
    if origin is None:
      raise CacheReuseError("nothing is kept of this sequence")
    place = self.place(
        target, held, origin[0].far
    )  # copied whole and then cut: parts of a stream of its own cannot be copied
    of, number = self._places[source]  # it may have moved to make room
    try:
      assert of.context is not None
      state = of.context.state(number)
      if length < held and (state.has_gaps or length < self._least.get(source, 0)):
        raise CacheReuseError("a part of what this model keeps of a text cannot be copied")
      self._put(target, state, place.context, place.number)
      self._least[target] = max(self._least.get(target, 0), self._least.get(source, 0))
      if length < held:
        place.context.truncate(place.number, length)
    except BaseException:
      self.drop(target)
      raise

  def close(self) -> None:
    for of in self._classes.values():
      if of.context is not None:
        of.context.close()
    self._classes.clear()
    self._places.clear()
