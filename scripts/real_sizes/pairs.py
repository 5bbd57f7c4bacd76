"""Two sides measured in turn: the ratios of their pairs, how sure their median is, and whether that keeps a bound."""

from __future__ import annotations

import random
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Side = Callable[[], Awaitable[Mapping[str, float]]]  # figures by their names: tokens/s, or seconds

WIDEST = 0.06  # of an interval that decides
_BELOW = 0.02  # by which a median may miss what the interval reaches
_RESAMPLES = 4000


def interval(values: Sequence[float]) -> tuple[float, float]:
  """Where the median of such values lies with 95 % of confidence, by drawing from them again and again; the same each time."""
  draw = random.Random(0)
  medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(_RESAMPLES))
  return medians[int(0.025 * _RESAMPLES)], medians[int(0.975 * _RESAMPLES) - 1]


@dataclass(frozen=True, slots=True)
class Goal:
  """`least`: ours times so much of theirs at least. `later`: ours at most so many seconds later. Neither: only to be known."""
  least: float | None = None
  later: float | None = None

  def __str__(self) -> str:
    if self.least is not None:
      return f"≥ {self.least:g}"
    return "" if self.later is None else f"≤ +{self.later:g} s"


@dataclass(slots=True)
class Compared:
  """One figure of both sides, pair by pair."""
  name: str
  figure: str
  goal: Goal
  ours: list[float] = field(default_factory=list)
  theirs: list[float] = field(default_factory=list)

  @property
  def values(self) -> list[float]:
    """Ratios, or differences where the goal is one."""
    pairs = zip(self.ours, self.theirs, strict=True)
    return [a / b if self.goal.later is None else a - b for a, b in pairs]

  @property
  def is_settled(self) -> bool:
    """Whether more pairs would tell nothing that is asked."""
    if self.goal.least is None:
      return True
    low, high = interval(self.values)
    return high - low <= WIDEST

  @property
  def verdict(self) -> str:
    median, (low, high) = statistics.median(self.values), interval(self.values)
    if self.goal.later is not None:
      return "holds" if median <= self.goal.later else "MISSED"
    if (least := self.goal.least) is None:
      return ""
    if high < least or (median < least - _BELOW and high - low <= WIDEST):
      return "MISSED"
    if high - low > WIDEST:
      return "too wide to tell"
    return "holds"

  def to_json(self) -> dict[str, Any]:
    low, high = interval(self.values)
    return {
        "name": self.name, "figure": self.figure, "ours": self.ours, "theirs": self.theirs,
        "median": statistics.median(self.values), "interval": [low, high], "pairs": len(self.values),
        "goal": str(self.goal), "verdict": self.verdict
    }


@dataclass(frozen=True, slots=True)
class Contest:
  """`goals` by the figure's name; contests with the same `theirs` share what a round measures of it."""
  name: str
  ours: Side
  theirs: Side
  goals: Mapping[str, Goal]


async def in_turn(contests: Sequence[Contest], pairs: int, most_pairs: int) -> list[Compared]:
  """A round measures each side once, theirs before ours. There are more than `pairs` rounds as long as one of the intervals is too wide
  to tell, and at most `most_pairs`."""
  found = [[Compared(of.name, figure, goal) for figure, goal in of.goals.items()] for of in contests]
  for done in range(max(pairs, most_pairs)):
    if done >= pairs and all(one.is_settled for several in found for one in several):
      break
    measured: dict[Side, Mapping[str, float]] = {}
    for contest, several in zip(contests, found, strict=True):
      if contest.theirs not in measured:
        measured[contest.theirs] = await contest.theirs()
      ours = await contest.ours()
      for one in several:
        one.ours.append(ours[one.figure])
        one.theirs.append(measured[contest.theirs][one.figure])
  return [one for several in found for one in several]
