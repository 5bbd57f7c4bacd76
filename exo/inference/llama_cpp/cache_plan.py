"""How many tokens of how many sequences a stage may promise to keep, by what contexts for them take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from exo.inference.whole_blocks import whole_blocks

SHORTEST = 512  # tokens of a context
ROWS_AT_ONCE = 256  # of a cache: contexts are as long as a multiple
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
  """What there is. `cache_bytes` are for what is kept of sequences, `n_bytes` for that and all that computing takes. `longest` is how
  many tokens a sequence may have, `near` as in `StageMemory.near_context`. `is_asked`: somebody wants that many in a sequence, and
  `most_tokens`, where given, of all sequences together.
  """
  n_bytes: int
  cache_bytes: int
  longest: int
  near: int
  most_sequences: int
  is_asked: bool
  most_tokens: int | None


@dataclass(frozen=True, slots=True)
class CachePlan:
  """`tokens` of `sequences` together always fit. `token_bytes` is what one takes, with what its context leaves empty, what is held more than
  once while a sequence moves, and what computing takes more for long texts; `fixed_bytes` are taken however many there are, for states of
  sequences, and `work_bytes` for computing with the shortest. `n_bytes` is all together.

  `shortest` is the length of a sequence's first context, `longest` of its last, and `at_once` for how many sequences one is made.
  """
  tokens: int
  sequences: int
  token_bytes: int
  fixed_bytes: int
  work_bytes: int
  n_bytes: int
  shortest: int
  longest: int
  at_once: int


def plan_caches(costs: Costs, room: CacheRoom) -> CachePlan:
  """What fits; no tokens where none do."""
  if room.is_asked and not room.near:
    count = room.most_sequences
    if room.most_tokens is not None and (found := _fixed(costs, room, count)) is not None:
      return found
    grown = _growing(costs, room)
    if grown.tokens >= room.longest:
      return grown
    count = _most(lambda n: _fixed(costs, room, n) is not None, count)
    return (_fixed(costs, room, count) if count else None) or grown
  return _growing(costs, room)


def _fixed(costs: Costs, room: CacheRoom, count: int) -> CachePlan | None:
  """One context of the full length for all: nothing ever moves. None where it does not fit."""
  length = room.longest
  # one may begin with what another has read, which goes by way of two copies
  copies = 2 * costs.caches(length, 1) if count > 1 else 0
  caches, work = costs.caches(length, count) + copies, costs.work(length, count)
  if caches > room.cache_bytes or caches + work > room.n_bytes:
    return None
  tokens = count * length if room.most_tokens is None else min(room.most_tokens, count * length)
  fixed, least = count * costs.sequence_bytes, min(work, costs.work(min(SHORTEST, length), 1))
  each = _each(caches - fixed + work - least, tokens)
  return CachePlan(tokens, count, each, fixed, least, caches + work, length, length, count)


def _growing(costs: Costs, room: CacheRoom) -> CachePlan:
  """Sequences begin in short contexts, and move to one of twice the length when they grow out of theirs."""
  shortest = min(SHORTEST, room.longest)
  share = room.cache_bytes // _SHORTEST_SHARE
  count = max(1, min(room.most_sequences, share // max(1, costs.caches(shortest, 1))))

  def caches(tokens: int) -> int:
    # contexts may be half empty, the shortest more than that
    places = min(count * shortest + 2 * tokens, count * room.longest)
    # whoever moves is in its old context meanwhile, and read out, and written for the new one
    moving = 2 * min(tokens, room.longest) if shortest < room.longest or count > 1 else 0
    return costs.token_bytes * (places + moving) + costs.sequence_bytes * (count + 2)

  def work(tokens: int) -> int:
    longest = class_of(tokens, shortest, room.longest)
    return costs.work(longest, 1) + (costs.work(max(shortest, longest // 2), count) if longest > shortest else 0)

  def fits(tokens: int) -> bool:
    return caches(tokens) <= room.cache_bytes and caches(tokens) + work(tokens) <= room.n_bytes

  most = count * room.longest
  tokens = _most(fits, most if room.most_tokens is None else min(most, room.most_tokens))
  fixed, least = costs.sequence_bytes * (count + 2), costs.work(shortest, 1)
  each, all_bytes = _each(caches(tokens) - fixed + work(tokens) - least, tokens), caches(tokens) + work(tokens)
  # no sequence is ever longer than all are together; far ones need contexts that are longer than the bound
  longest = room.longest if room.near else max(shortest, min(room.longest, whole_blocks(tokens, ROWS_AT_ONCE)))
  return CachePlan(tokens, count, each, fixed, least, all_bytes, shortest, longest, 1)


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
