"""Where sequences keep what they have read: contexts by class of length, each with as many places as are wanted.

A context takes all the memory that it was made for, whatever is used of it. So sequences begin in the shortest class that holds them and
move when they grow out of it, and a class gets more places when it is full: by a larger context, into which all move. Moving is exact.
Where there is no room for old and new at once, there is a further context beside, a place in a longer one, or one no longer than needed;
at last all are made anew, with no place too many.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from exo.errors import CacheReuseError, EngineError, OutOfMemoryError
from exo.inference.llama_cpp.cache_plan import ROWS_AT_ONCE, class_of
from exo.inference.llama_cpp.llama_model import LlamaContext
from exo.inference.llama_cpp.sequence_state import SequenceState
from exo.inference.whole_blocks import whole_blocks

_MOST_PLACES = 256  # of a context of llama.cpp
_GATHER_EVERY = 16  # calls in which sequences are found apart
_MOST_MOVED_BYTES = 128 << 20  # to bring them together


@dataclass(eq=False)
class _Group:
  """`places` holds the sequences by their number in the context, None where one is free. Far ones have another rotary embedding, which
  llama.cpp gives all sequences of a context that is longer than the model's first."""
  length: int
  far: bool
  context: LlamaContext
  places: list[int | None] = field(default_factory=list)
  until_gathered: int = 0


@dataclass(frozen=True, slots=True)
class Place:
  context: LlamaContext
  number: int


@dataclass(frozen=True, slots=True)
class Classes:
  """From the `shortest` to the `longest` length by doubling, each made for `at_once` sequences at first. Near sequences stay in classes of
  up to `near`, and far ones in longer ones; 0 where all have the same rotary embedding."""
  shortest: int
  longest: int
  near: int = 0
  at_once: int = 1

  def most(self, far: bool) -> int:
    return self.longest if far or not self.near else min(self.near, self.longest)

  def of(self, length: int, far: bool) -> int:
    """Raises `EngineError` for more than there is."""
    if length > (most := self.most(far)):
      raise EngineError(f"a sequence is longer than {most} tokens")
    return class_of(max(length, self.near + 1 if far else 0), self.shortest, most)


class KvPool:
  """`make` gives a context for so many sequences of so many tokens, and `cost` says what that takes. All together take `most_bytes`."""
  def __init__(
      self, make: Callable[[int, int], LlamaContext], cost: Callable[[int, int], int], most_bytes: int, classes: Classes
  ) -> None:
    self._make, self._cost, self._most_bytes, self._classes = make, cost, most_bytes, classes
    self._groups: list[_Group] = []
    self._places: dict[int, tuple[_Group, int]] = {}
    self._lengths: dict[int, int] = {}  # for which there are places
    self._poisoned: set[int] = set()
    #: tokens that sequences will hold, where more is known than what they are to hold now
    self.expected: Mapping[int, int] = {}
    # lengths that sequences cannot be cut below, since cells before have not moved along
    self._least: dict[int, int] = {}

  def poison(self, sequence: int) -> None:
    """It has kept numbers that are not finite. They would come back from cells that are free, since nothing times NaN is NaN: what it
    leaves is not used again."""
    self._poisoned.add(sequence)

  @property
  def n_bytes(self) -> int:
    return sum(self._cost(of.length, len(of.places)) for of in self._groups)

  @property
  def contexts(self) -> Iterator[LlamaContext]:
    return (of.context for of in self._groups)

  def place(self, sequence: int, length: int, far: bool = False, exact: bool = True) -> Place:
    """Where a sequence is that is to hold so many tokens, new or not. Those that are `exact` and those that are not lie side by side,
    since only neighbours are computed together. Raises `OutOfMemoryError`; what was there stays."""
    held, far = self._places.get(sequence), far and self._classes.near > 0
    if held is None or held[0].length < length:
      target = self._free_place(length, self.expected.get(sequence, 0), far, exact)
      if target is None:
        self._gather(sequence, length, far)
      else:
        try:
          if held is not None:
            self._move(sequence, held, target)
        except BaseException:
          self._close_empty(target[0])
          raise
        self._settle(sequence, target)
      held = self._places[sequence]
    self._lengths[sequence] = max(length, self._lengths.get(sequence, 0))
    return Place(held[0].context, held[1])

  def bring_together(self, sequences: Collection[int]) -> None:
    """Let those in one context lie side by side, which texts that have ended and are kept may keep them from: only neighbours are computed
    in one call. Where moving them costs much, or something of them, all stay. Exact, and now and then only."""
    for of in self._groups:
      numbers = [number for number, sequence in enumerate(of.places) if sequence in sequences]
      if len(numbers) < 2 or numbers[-1] - numbers[0] < len(numbers):
        continue
      of.until_gathered -= 1
      if of.until_gathered <= 0:
        of.until_gathered = _GATHER_EVERY
        self._bring_together(of, numbers)

  def _bring_together(self, of: _Group, numbers: Sequence[int]) -> None:
    count = len(numbers)
    # where most of them are already
    start = max(range(len(of.places) - count + 1), key=lambda a: sum(a <= number < a + count for number in numbers))
    outside = [number for number in numbers if not start <= number < start + count]
    others = [number for number in range(start, start + count) if number not in numbers]
    moves = [*zip(outside, others, strict=True), *zip(others, outside, strict=True)]
    leave = {number: sequence for number, _ in moves if (sequence := of.places[number]) is not None}
    full = [number for number in leave if of.context.held(number)]
    if self._poisoned.intersection(leave.values()):
      return
    if sum(of.context.state_bytes(number) for number in full) > _MOST_MOVED_BYTES:
      return
    states = {number: of.context.state(number) for number in full}
    if any(state.has_gaps for state in states.values()):  # such a text could not be cut any more
      return
    try:
      self._exchange(of.context, states, dict(moves))
    except BaseException:
      self._exchange(of.context, states, {number: number for number in leave})
      raise
    for number in leave:
      of.places[number] = None
    for number, target in moves:
      if number in leave:
        self._settle(leave[number], (of, target))

  @staticmethod
  def _exchange(context: LlamaContext, states: Mapping[int, SequenceState], targets: Mapping[int, int]) -> None:
    for number in (*targets, *targets.values()):
      context.drop(number)
    for number, state in states.items():
      context.set_state(targets[number], state)

  def _settle(self, sequence: int, place: tuple[_Group, int]) -> None:
    place[0].places[place[1]] = sequence
    self._places[sequence] = place

  def _free_place(self, length: int, expected: int, far: bool, exact: bool) -> tuple[_Group, int] | None:
    """One that a sequence will not grow out of, or else one for now: to move takes a context, and this a tenth of a second to be made. None
    where there is no room beside what is there."""
    size = self._classes.of(length, far)
    lasting = self._classes.of(max(length, min(expected, self._classes.most(far))), far)
    found = None
    for wanted in dict.fromkeys((lasting, size)):
      found = found or self._free_in(wanted, wanted, far) or self._more_places(wanted, far)
    found = found or self._free_in(size, None, far)
    if found is None and (shorter := self._shorter(length, size, far)):
      found = self._more_places(shorter, far)
    if found is None:
      return None
    free = [number for number, sequence in enumerate(found.places) if sequence is None]
    return found, free[0 if exact else -1]

  def _gather(self, sequence: int, length: int, far: bool) -> None:
    """Make all contexts anew, with no place more than sequences need, this one's of so many tokens among them. Meanwhile what they hold is
    held as bytes alone. Raises `OutOfMemoryError`; before anything has changed, unless the system has not what it has just been given."""
    wanted: dict[tuple[int, bool], list[int]] = {}
    for other, (of, _) in self._places.items():
      if other != sequence:
        wanted.setdefault((self._classes.of(self._lengths[other], of.far), of.far), []).append(other)
    wanted.setdefault((self._classes.of(length, far), far), []).append(sequence)
    if sum(self._cost(size, len(those)) for (size, _), those in wanted.items()) > self._most_bytes:
      raise OutOfMemoryError(
          f"there is no memory for {length} tokens of a sequence beside those of {len(self._places)} others"
      )
    states = {
        other: of.context.state(number)
        for other, (of, number) in self._places.items() if of.context.held(number)
    }
    self.close()
    for (size, is_far), those in sorted(wanted.items()):
      of = _Group(size, is_far, self._make(size, len(those)), [None] * len(those))
      self._groups.append(of)
      for number, other in enumerate(those):
        if (state := states.pop(other, None)) is not None:
          self._put(other, state, of.context, number)
        self._settle(other, (of, number))

  def _shorter(self, length: int, size: int, far: bool) -> int:
    """The greatest length below `size` of which there is room for one context that holds so many tokens; 0 for none."""
    low = whole_blocks(max(length, self._classes.near + 1 if far else 0), ROWS_AT_ONCE) // ROWS_AT_ONCE - 1
    high, least = size // ROWS_AT_ONCE, low
    room = self._most_bytes - self.n_bytes
    while low < high:
      middle = (low + high + 1) // 2
      low, high = (middle, high) if self._cost(middle * ROWS_AT_ONCE, 1) <= room else (low, middle - 1)
    return low * ROWS_AT_ONCE if low > least else 0

  def _free_in(self, least: int, most: int | None, far: bool) -> _Group | None:
    """One with a free place of such a length: the shortest, and of these the fullest."""
    free = [
        of for of in self._groups
        if of.far == far and of.length >= least and (most is None or of.length <= most) and None in of.places
    ]
    return min(free, key=lambda of: (of.length, of.places.count(None)), default=None)

  def _more_places(self, length: int, far: bool) -> _Group | None:
    """Free ones in a larger context for all that are in one of this length, or else of a further one; None without the room."""
    same = [of for of in self._groups if of.length == length and of.far == far]
    of = max(same, key=lambda of: len(of.places), default=None)
    count = 0 if of is None else len(of.places)
    wanted = min(count + max(self._classes.at_once if of is None else 1, count // 2), _MOST_PLACES)
    # both are there while all move
    room = self._most_bytes - self.n_bytes
    if of is not None and (more := self._fitting(length, count + 1, wanted, room)):
      self._renew(of, more)
      return of
    if more := self._fitting(length, 1, wanted - count or 1, room):
      of = _Group(length, far, self._make(length, more), [None] * more)
      self._groups.append(of)
      return of
    return None

  def _fitting(self, length: int, least: int, most: int, room: int) -> int:
    """The greatest number of places that there is room for, 0 where that is less than the least."""
    return next((count for count in range(most, least - 1, -1) if self._cost(length, count) <= room), 0)

  def _renew(self, of: _Group, count: int) -> None:
    """Let the group have another context, of so many places, into which all move. Where one cannot, all stay."""
    context, old = self._make(of.length, count), of.context
    try:
      for number, sequence in enumerate(of.places):
        if sequence is not None and old.held(number):  # one whose first step failed holds nothing
          self._put(sequence, old.state(number), context, number)
    except BaseException:
      context.close()
      raise
    of.context = context
    old.close()
    of.places += [None] * (count - len(of.places))

  def _put(self, sequence: int, state: SequenceState, context: LlamaContext, number: int) -> None:
    context.set_state(number, state)
    if state.has_gaps:
      self._least[sequence] = max(self._least.get(sequence, 0), context.held(number))

  def _move(self, sequence: int, held: tuple[_Group, int], target: tuple[_Group, int]) -> None:
    (source, number), (aim, place) = held, target
    if source.context.held(number):
      self._put(sequence, source.context.state(number), aim.context, place)
    self._free(source, number)
    self._clean(sequence, source)

  def _free(self, of: _Group, number: int) -> None:
    of.context.drop(number)
    of.places[number] = None
    self._close_empty(of)

  def _close_empty(self, of: _Group) -> None:
    """A context holds all of its memory, used or not."""
    if any(sequence is not None for sequence in of.places):
      return
    of.context.close()
    self._groups.remove(of)

  def drop(self, sequence: int) -> None:
    held = self._places.pop(sequence, None)
    self._lengths.pop(sequence, None)
    if held is not None:
      self._free(*held)
      self._clean(sequence, held[0])
      self._poisoned.discard(sequence)
      self._least.pop(sequence, None)

  def _clean(self, sequence: int, of: _Group) -> None:
    """Of a group in which cells of this sequence have become free."""
    if sequence in self._poisoned and of in self._groups:
      self._renew(of, len(of.places))

  def truncate(self, sequence: int, length: int) -> None:
    """Raises `CacheReuseError` where what is kept cannot be shortened."""
    held = self._places.get(sequence)
    if held is None:
      return
    if length == 0:
      self.drop(sequence)
      return
    if length < self._least.get(sequence, 0):
      raise CacheReuseError(
          f"of what this model keeps of a text only the end has moved: it cannot be cut to {length} tokens"
      )
    held[0].context.truncate(held[1], length)
    self._lengths[sequence] = length
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
      state = of.context.state(number)
      if length < held and (state.has_gaps or length < self._least.get(source, 0)):
        raise CacheReuseError("a part of what this model keeps of a text cannot be copied")
      self._put(target, state, place.context, place.number)
      self._least[target] = max(self._least.get(target, 0), self._least.get(source, 0))
      if length < held:
        place.context.truncate(place.number, length)
        self._lengths[target] = length
    except BaseException:
      self.drop(target)
      raise

  def close(self) -> None:
    for of in self._groups:
      of.context.close()
    self._groups.clear()
    self._places.clear()
