"""The KV memory of a plan: what its caches hold, and which kept ones give way when more is needed.

Pure bookkeeping of the first stage. The stages are told of it by the `drops` and `ends` of the next step.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from exo.inference.exactness import Exactness
from exo.orchestration.prefix_cache import Match, PrefixCache
from exo.orchestration.sequence import RunningSequence

# Tokens of a kept cache that are given up rather than copying all before them: at least the first, or one in so many of
# those that would be copied. A token is computed in the time in which 10 to 50 are copied, and a copy takes memory too.
_SHORT_TAIL = 32
_COPIES_PER_TOKEN = 16


@dataclass(frozen=True, slots=True)
class Limits:
  """The least of what the plan's stages can do, and the bounds of one step. Counts of tokens unless said.

  `lease_tokens` are those that caches may hold at first, None for all that they ever may, `max_kv_tokens`.
  `max_drafting` is the number of sequences of one step that may have drafts verified, 0 for no speculation; `near_context` is as in
  `StageMemory`, and so is `indivisible`. `exactness` is each stage's.
  """
  max_sequences: int
  max_kv_tokens: int
  max_context: int
  stages: int = 1
  step_tokens: int = 256
  max_waiting: int = 256  # requests
  keep_caches: bool = True
  max_drafting: int = 0
  near_context: int = 0
  lease_tokens: int | None = None
  exactness: tuple[Exactness, ...] = (Exactness(), )
  indivisible: bool = False

  @property
  def first_lease(self) -> int:
    return self.max_kv_tokens if self.lease_tokens is None else self.lease_tokens


class KvRoom:
  """`kept` are the caches of finished requests, `reserved` what the `running` sequences may come to need, in tokens.

  All of them hold no more than the `lease`: the memory may be needed for other models, or be given back by them.
  """
  def __init__(self, limits: Limits, running: Mapping[int, RunningSequence]) -> None:
    self.limits, self._running = limits, running
    self.most_step = limits.step_tokens  # tokens that one may add
    self.kept = PrefixCache(limits.indivisible)
    self.reserved = 0
    self._drops: list[int] = []
    self._ends: list[int] = []
    self._next_sequence = 1
    self._lease = limits.first_lease
    self.is_cramped = False  # a kept cache was given up that a greater lease would have held
    self.is_denied = False  # a greater lease was asked for in vain
    self.most_tokens = limits.max_kv_tokens  # that the lease could be, as far as is known

  @property
  def lease(self) -> int:
    """How many tokens the caches may hold now: what running sequences were promised is not taken from them."""
    return max(self._lease, self.reserved)

  def set_lease(self, tokens: int) -> int:
    """Let the caches hold so many tokens, or as few more as running sequences need. Returns how many those are."""
    self._lease = min(tokens, self.limits.max_kv_tokens)
    self.make_room(0)
    self.is_cramped = self.is_denied = False
    return self.lease

  def deny_lease(self) -> None:
    """A greater lease was asked for, and is not to be had now."""
    self.is_denied, self.is_cramped = True, False

  def set_most(self, tokens: int) -> None:
    """How many tokens the lease could be at most, as things are."""
    self.most_tokens = min(tokens, self.limits.max_kv_tokens)

  @property
  def untold(self) -> bool:
    """There is something that the stages must hear."""
    return bool(self._drops or self._ends)

  def tell(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(sequences to drop, sequences that end and whose caches stay), once."""
    told = tuple(self._drops), tuple(self._ends)
    self._drops, self._ends = [], []
    return told

  def release(self, sequence: RunningSequence, keep: bool) -> None:
    """A sequence does not run any more; its cache stays where it is worth it."""
    self.reserved -= sequence.reserved
    number = sequence.number
    if keep and self.limits.keep_caches:
      made = min(sequence.as_prompt, sequence.computed)
      gone = self.kept.keep(number, sequence.tokens[:sequence.computed], sequence.salt, made)
      self._ends = [n for n in (*self._ends, number) if n not in gone]
      self._drops.extend(gone)
      self.make_room(0)  # what was its own while it ran is not any more
    else:
      self._drops.append(number)

  def place(self, match: Match | None, needed: int, sources: set[int]) -> tuple[int, int] | None:
    """(the number of a new sequence, how much of a cache it begins with), with room made for it; None while there is none.

    A kept cache that ends soon after what is wanted goes on as the new sequence, others are copied.
    """
    source, length = (match.sequence, match.length) if match else (0, 0)
    kept = source in self.kept
    tokens = length + min(needed - length, self.most_step)
    tail = self.kept.length(source) - length if kept else 0
    # what cannot be cut back to here is of use to others that begin alike
    is_spent = not self.limits.indivisible and tail <= max(_SHORT_TAIL, length // _COPIES_PER_TOKEN)
    if kept and is_spent and not sources:
      return self._take_over(source, length, tokens)
    needed_now = {source, *sources}
    self.make_room(tokens, needed_now)
    rows = self.limits.max_sequences - len(self._running)
    while len(self.kept) >= rows and (oldest := self.kept.oldest(needed_now)) is not None:
      self._evict(oldest)
    if self.kept and (len(self.kept) >= rows or self._use + tokens > self.lease):
      return self._take_over(source, length, tokens) if kept and not sources else None
    if kept:
      self.kept.touch(source)
      sources.add(source)
    return self._next_number(), length

  def _next_number(self) -> int:
    number, self._next_sequence = self._next_sequence, self._next_sequence + 1
    return number

  def copy_of(self, sequence: RunningSequence, sources: set[int]) -> int | None:
    """The number of a kept copy of what a running sequence has computed; None where there is no room, or one is there."""
    tokens, rows = sequence.computed, self.limits.max_sequences - len(self._running)
    made = min(sequence.as_prompt, tokens)
    if rows < 1 or self._use - self.kept.tokens + tokens > self.lease:
      return None
    if self.kept.has(sequence.tokens[:tokens], sequence.salt, made):
      return None
    self.make_room(tokens, sources)
    while len(self.kept) >= rows and (oldest := self.kept.oldest(sources)) is not None:
      self._evict(oldest)
    if len(self.kept) >= rows or self._use + tokens > self.lease:
      return None
    number = self._next_number()
    gone = self.kept.keep(number, sequence.tokens[:tokens], sequence.salt, made)
    self._ends = [ended for ended in self._ends if ended not in gone]
    self._drops.extend(gone)
    sources.add(number)
    return number

  def _take_over(self, source: int, length: int, tokens: int) -> tuple[int, int]:
    self.kept.remove(source)
    if source in self._ends:  # it has not ended for anybody yet, and does not now
      self._ends.remove(source)
    self.make_room(tokens)
    return source, length

  @property
  def _use(self) -> int:
    """KV tokens that the caches hold, and that one more step may add."""
    running = sum(s.computed for s in self._running.values())
    growth = sum(s.reserved - s.computed for s in self._running.values())
    return running + min(growth, self.most_step) + self.kept.tokens

  def make_room(self, tokens: int, but: Collection[int] = ()) -> None:
    """Forget kept caches, the least recently used first, until so many more tokens would fit."""
    while self._use + tokens > self.lease and (oldest := self.kept.oldest(but)) is not None:
      self._evict(oldest)
      self.is_cramped = self.lease < self.limits.max_kv_tokens

  def forget(self, sequences: Iterable[int]) -> None:
    """Of these, caches of finished requests are not kept: a stage has lost them, or may have."""
    for sequence in sequences:
      if sequence in self.kept:
        self._evict(sequence)

  def _evict(self, sequence: int) -> None:
    self.kept.remove(sequence)
    if sequence in self._ends:
      self._ends.remove(sequence)
    self._drops.append(sequence)
