"""How many tokens of how many sequences a stage may promise to keep, by what contexts for them take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from exo.inference.whole_blocks import whole_blocks

SHORTEST = 512  # tokens of a context
ROWS_AT_ONCE = 256  # of a cache: contexts are as long as a multiple
_FEW, _CONVERSATION = 4, 4096  # sequences, and tokens of one
_SHORTEST_SHARE = 4  # of what there is for caches, at most this part goes to sequences for being there


class Costs(Protocol):
  """As `ContextCosts`."""
  token_bytes: int
  sequence_bytes: int

  def caches(self, length: int, count: int) -> int:
    ...

  def work(self, length: int, count: int) -> int:
    ...


@dataclass(frozen=True, slots=True)
class CacheRoom:
  """What there is. `cache_bytes` are for what is kept of sequences, `n_bytes` for that and all that computing takes beyond the
  `reckoned_bytes` which are set aside for it anyway. `longest` is how many tokens a sequence may have, `near` as in
  `StageMemory.near_context`. `is_asked`: somebody wants that many in a sequence, and `most_tokens`, where given, of all together.
  """
  n_bytes: int
  cache_bytes: int
  reckoned_bytes: int
  longest: int
  near: int
  most_sequences: int
  is_asked: bool
  most_tokens: int | None

  def without(self, n_bytes: int) -> CacheRoom:
    """What is left where so many bytes are taken by something else."""
    left = max(0, self.n_bytes - n_bytes)
    return replace(self, n_bytes=left, cache_bytes=min(left, self.cache_bytes))

  def holds(self, caches: int, work: int, least: int, tokens: int) -> bool:
    """Whether there is room for caches of so many tokens, and for what computing takes, of which the `least` is taken in any case."""
    more = work - min(least, self.reckoned_bytes)
    return caches <= self.cache_bytes and caches + more + tokens <= self.n_bytes  # what each takes is rounded up

  def pool_bytes(self, work: int, least: int) -> int:
    """That all contexts together may take."""
    return min(self.n_bytes + min(least, self.reckoned_bytes), self.cache_bytes + work)


@dataclass(frozen=True, slots=True)
class CachePlan:
  """`tokens` of `sequences` together always fit. `token_bytes` is what one takes, with what its context leaves empty, what is held more than
  once while a sequence moves, and what computing takes more for long texts; `fixed_bytes` are taken however many there are, for states of
  sequences, and `work_bytes` for computing with the shortest. All contexts together may take `pool_bytes`.

  `shortest` is the length of a sequence's first context, `longest` of its last, and `at_once` for how many sequences one is made.
  """
  tokens: int
  sequences: int
  token_bytes: int
  fixed_bytes: int
  work_bytes: int
  pool_bytes: int
  shortest: int
  longest: int
  at_once: int


def plan_caches(costs: Costs, room: CacheRoom) -> CachePlan:
  """What fits; no tokens where none do."""
  if room.near:
    return _growing(costs, room)
  if room.most_tokens is not None and (found := _fixed(costs, room, room.longest, room.most_sequences)) is not None:
    return found
  grown = _growing(costs, room)
  if room.is_asked and grown.tokens < room.longest:
    count = _most(lambda n: _fixed(costs, room, room.longest, n) is not None, room.most_sequences)
    if count and (found := _fixed(costs, room, room.longest, count)) is not None:
      return found
  # where growing leaves none room for a conversation, fewer places that are longer are worth more, and nothing need ever move
  count = grown.sequences if grown.tokens < min(_CONVERSATION, room.longest) else 0
  while count:
    length = _longest(costs, room, count)
    if length > grown.tokens and (found := _fixed(costs, room, length, count)) is not None:
      return found
    count = count // 2 if count >= 2 * _FEW else 0
  return grown


def _longest(costs: Costs, room: CacheRoom, count: int) -> int:
  """The greatest length of which there is room for so many places; 0 for none."""
  blocks = room.longest // ROWS_AT_ONCE
  return ROWS_AT_ONCE * _most(lambda n: _fixed(costs, room, n * ROWS_AT_ONCE, count) is not None, blocks)


def _fixed(costs: Costs, room: CacheRoom, length: int, count: int) -> CachePlan | None:
  """One context of this length for all: nothing ever moves. None where it does not fit."""
  # one may begin with what another has read, which goes by way of two copies
  copies = 2 * costs.caches(length, 1) if count > 1 else 0
  caches, work = costs.caches(length, count) + copies, costs.work(length, count)
  tokens = count * length if room.most_tokens is None else min(room.most_tokens, count * length)
  fixed, least = count * costs.sequence_bytes, min(work, costs.work(min(SHORTEST, length), 1))
  if not room.holds(caches, work, least, tokens):
    return None
  each = _each(caches - fixed + work - least, tokens)
  return CachePlan(tokens, count, each, fixed, least, room.pool_bytes(work, least), length, length, count)


def _growing(costs: Costs, room: CacheRoom) -> CachePlan:
  """Sequences begin in short contexts, and move to one of twice the length when they grow out of theirs."""
  shortest = min(SHORTEST, room.longest)
  share = room.cache_bytes // _SHORTEST_SHARE
  count = max(1, min(room.most_sequences, share // max(1, costs.caches(shortest, 1))))
  least = costs.work(shortest, 1)

  def caches(tokens: int) -> int:
    # contexts may be half empty, the shortest more than that
    places = min(count * shortest + 2 * tokens, count * room.longest)
    # whoever moves is in its old context meanwhile, and read out, and written for the new one
    moving = 2 * min(tokens, room.longest) if shortest < room.longest or count > 1 else 0
    return costs.token_bytes * (places + moving) + costs.sequence_bytes * (count + 2)

  def work(tokens: int) -> int:
    # each length that one of the sequences has got to has a context of its own, and whoever moves is in two
    size = class_of(tokens, shortest, room.longest)
    sizes = [size]
    while len(sizes) <= count and size > shortest:
      size = class_of(-(-size // 2), shortest, room.longest)
      sizes.append(size)
    return sum(costs.work(size, 1 if size == sizes[0] else count) for size in sizes)

  most = count * room.longest
  tokens = _most(
      lambda n: room.holds(caches(n), work(n), least, n),
      most if room.most_tokens is None else min(most, room.most_tokens)
  )
  fixed = costs.sequence_bytes * (count + 2)
  each = _each(caches(tokens) - fixed + work(tokens) - least, tokens)
  # no sequence is ever longer than all are together; far ones need contexts that are longer than the bound
  longest = room.longest if room.near else max(shortest, min(room.longest, whole_blocks(tokens, ROWS_AT_ONCE)))
  return CachePlan(tokens, count, each, fixed, least, room.pool_bytes(work(tokens), least), shortest, longest, 1)


def _each(n_bytes: int, tokens: int) -> int:
  return max(1, -(-n_bytes // max(1, tokens)))


def class_of(length: int, shortest: int, longest: int) -> int:
  """The length of the context for a sequence of so many tokens."""
  size = shortest
  while size < length:
    size *= 2
  return min(size, longest)


def _most(fits: Callable[[int], bool], most: int) -> int:
  """The greatest number up to `most` that fits, of such as fit if greater ones do; 0 where none does."""
  low, high = 0, most
  while low < high:
    middle = (low + high + 1) // 2
    low, high = (middle, high) if fits(middle) else (low, middle - 1)
  return low
