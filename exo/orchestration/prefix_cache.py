"""Which caches of finished requests are kept on the stages of a plan, and what of them a new prompt can begin with.

Pure bookkeeping of the plan's first stage: the stages are told in frames what to keep, cut, copy and drop.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]  # (tokens,)
# Shorter prefixes are computed again: that costs no more than a copy.
MIN_REUSED = 16


@dataclass(frozen=True, slots=True)
class Match:
  """A sequence whose cache begins like a prompt, for `length` tokens."""
  sequence: int
  length: int


def common_prefix(a: Tokens, b: Tokens) -> int:
  """How many tokens two sequences have in common at their beginning."""
  length = min(len(a), len(b))
  different = a[:length] != b[:length]
  return int(different.argmax()) if different.any() else length


class PrefixCache:
  """Kept sequences, the least recently used first. One of another salt is as if it were not there."""
  def __init__(self) -> None:
    self._kept: dict[int, Tokens] = {}
    self._salts: dict[int, str] = {}
    self.tokens = 0

  def __len__(self) -> int:
    return len(self._kept)

  def __iter__(self) -> Iterator[int]:
    return iter(self._kept)

  def __contains__(self, sequence: int) -> bool:
    return sequence in self._kept

  def length(self, sequence: int) -> int:
    return len(self._kept[sequence])

  def keep(self, sequence: int, tokens: Sequence[int], salt: str) -> list[int]:
    """Keep a sequence's cache, which holds these tokens. Returns what need not be kept: itself, or what it covers."""
    new = np.asarray(tokens, np.int32)
    if len(new) < MIN_REUSED:
      return [sequence]
    covered = []
    for other, held in self._of(salt):
      common = common_prefix(new, held)
      if common == len(new):
        return [sequence]
      if common == len(held):
        covered.append(other)
    for other in covered:
      self.remove(other)
    self._kept[sequence], self._salts[sequence] = new, salt
    self.tokens += len(new)
    return covered

  def _of(self, salt: str) -> Iterator[tuple[int, Tokens]]:
    return ((sequence, held) for sequence, held in self._kept.items() if self._salts[sequence] == salt)

  def match(self, prompt: Tokens, salt: str) -> Match | None:
    """The kept sequence with the longest prefix in common; None where none is worth it."""
    best = max(((common_prefix(prompt, held), sequence) for sequence, held in self._of(salt)), default=(0, 0))
    return Match(best[1], best[0]) if best[0] >= MIN_REUSED else None

  def touch(self, sequence: int) -> None:
    """It was used just now."""
    self._kept[sequence] = self._kept.pop(sequence)

  def remove(self, sequence: int) -> None:
    self.tokens -= len(self._kept.pop(sequence))
    del self._salts[sequence]

  def oldest(self, but: Collection[int] = ()) -> int | None:
    """The least recently used sequence, those in `but` not counted."""
    return next((sequence for sequence in self._kept if sequence not in but), None)
