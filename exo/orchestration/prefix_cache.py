"""Which caches of finished requests are kept on the stages of a plan, and what of them a new prompt can begin with.

Pure bookkeeping of the plan's first stage: the stages are told in frames what to keep, cut, copy and drop.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]  # (tokens,)
# Shorter prefixes are computed again: that costs no more than a copy.
MIN_REUSED = 16


@dataclass(frozen=True, slots=True)
class Match:
  """A sequence whose cache begins like a prompt, for `length` tokens, the first `as_prompt` of which are as in `RunningSequence`."""
  sequence: int
  length: int
  as_prompt: int


@dataclass(frozen=True, slots=True)
class _Kept:
  tokens: Tokens
  salt: str
  as_prompt: int


def common_prefix(a: Tokens, b: Tokens) -> int:
  """How many tokens two sequences have in common at their beginning."""
  length = min(len(a), len(b))
  different = a[:length] != b[:length]
  return int(different.argmax()) if different.any() else length


class PrefixCache:
  """Kept sequences, the least recently used first. One of another salt is as if it were not there.

  `indivisible`: they can be gone on with as they are, and not with less of them.
  """
  def __init__(self, indivisible: bool = False) -> None:
    self._indivisible = indivisible
    self._kept: dict[int, _Kept] = {}
    self.tokens = 0

  def __len__(self) -> int:
    return len(self._kept)

  def __iter__(self) -> Iterator[int]:
    return iter(self._kept)

  def __contains__(self, sequence: int) -> bool:
    return sequence in self._kept

  def length(self, sequence: int) -> int:
    return len(self._kept[sequence].tokens)

  def keep(self, sequence: int, tokens: Sequence[int], salt: str, as_prompt: int = 0) -> list[int]:
    """Keep a sequence's cache, which holds these tokens, the first `as_prompt` of them as in `RunningSequence`.

    Returns what need not be kept: itself, or what it covers.
    """
    new = np.asarray(tokens, np.int32)
    if len(new) < MIN_REUSED:
      return [sequence]
    covered = []
    for other, held in self._of(salt):
      common = common_prefix(new, held.tokens)
      if self._indivisible and len(new) != len(held.tokens):
        continue
      if common == len(new) and min(common, held.as_prompt) >= as_prompt:
        return [sequence]
      if common == len(held.tokens) and as_prompt >= held.as_prompt:
        covered.append(other)
    for other in covered:
      self.remove(other)
    self._kept[sequence] = _Kept(new, salt, as_prompt)
    self.tokens += len(new)
    return covered

  def _of(self, salt: str) -> Iterator[tuple[int, _Kept]]:
    return ((sequence, held) for sequence, held in self._kept.items() if held.salt == salt)

  def match(self, prompt: Tokens, salt: str, usable: Callable[[int, int], int]) -> Match | None:
    """The kept sequence with most to begin with: `usable` of so many tokens in common, so many of them as in `Match`. None where
    none is worth it."""
    found = [(usable(common_prefix(prompt, held.tokens), held.as_prompt), sequence)
             for sequence, held in self._of(salt)]
    if self._indivisible:
      found = [(length, sequence) for length, sequence in found if length == self.length(sequence)]
    length, sequence = max(found, default=(0, 0))
    return Match(sequence, length, min(length, self._kept[sequence].as_prompt)) if length >= MIN_REUSED else None

  def common(self, prompt: Tokens, salt: str) -> int:
    """How many tokens a prompt has in common with a kept sequence, at most."""
    return max((common_prefix(prompt, held.tokens) for _, held in self._of(salt)), default=0)

  def has(self, tokens: Sequence[int], salt: str, as_prompt: int) -> bool:
    """Whether a kept sequence holds these tokens and no others, at least so many of them as in `RunningSequence`."""
    wanted = np.asarray(tokens, np.int32)
    return any(held.as_prompt >= as_prompt and np.array_equal(held.tokens, wanted) for _, held in self._of(salt))

  def touch(self, sequence: int) -> None:
    """It was used just now."""
    self._kept[sequence] = self._kept.pop(sequence)

  def remove(self, sequence: int) -> None:
    self.tokens -= len(self._kept.pop(sequence).tokens)

  def oldest(self, but: Collection[int] = ()) -> int | None:
    """The least recently used sequence, those in `but` not counted."""
    return next((sequence for sequence in self._kept if sequence not in but), None)
