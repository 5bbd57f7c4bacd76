"""Requests that wait for a place among the running ones, in an order that is fair between their clients' shares.

Next is a request of the share that has the fewest running, and of several the one that has had the fewest tokens so far;
within a share, who came first. A share may have all places while nobody else waits. Where the line is full, the share
with the most requests in it makes way for one with fewer. Requests whose clients are in the middle of an answer come
before all others.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from exo.networking.messages import Request
from exo.orchestration.fair_clock import FairClock, share_of

_Rank = tuple[int, float, int]  # running of the share and before it in the line, tokens that it has had, arrival


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
  """`since_s` is None for a request that has begun already, which is never refused for having waited."""
  request: Request
  number: int
  since_s: float | None


class WaitingLine:
  """Pure; `most` bounds those whose answers have not begun, and the others again."""
  def __init__(self, most: int) -> None:
    self._most = most
    self._clock = FairClock()
    self._running: Counter[str] = Counter()
    self._begun: deque[Request] = deque()
    self._lines: dict[str, deque[_Place]] = {}
    self._count = self._next_number = self._taken = 0
    self._picked: Request | None = None  # the next, until something changes

  def __len__(self) -> int:
    return len(self._begun) + self._count

  def __iter__(self) -> Iterator[Request]:
    """In the order in which they would be taken if nothing changed."""
    yield from self._begun
    for _, request in sorted(self._ranked(), key=lambda ranked: ranked[0]):
      yield request

  @property
  def prompt_tokens(self) -> int:
    return sum(len(r.prompt_ids) for r in self._begun
               ) + sum(len(place.request.prompt_ids) for line in self._lines.values() for place in line)

  def add(self, request: Request, now_s: float) -> Request | None:
    """Queue a request. Returns who must make way for it: itself, or the youngest of the share that has the most here."""
    self._picked = None
    if request.replay_ids:
      if len(self._begun) >= self._most:
        return request
      self._begun.append(request)
      return None
    share, gone = share_of(request), None
    if self._count >= self._most:
      longest = max(self._lines, key=lambda s: len(self._lines[s]))
      if len(self._lines[longest]) <= len(self._lines.get(share, ())) + 1:
        return request
      gone = self._lines[longest][-1].request
      self._drop(longest, self._lines[longest][-1])
    self._lines.setdefault(share, deque()).append(_Place(request, self._next_number, now_s))
    self._next_number += 1
    self._count += 1
    return gone

  def put_first(self, request: Request) -> None:
    """It was taken, and must begin again at once."""
    self._picked = None
    self._begun.appendleft(request)

  def put_back(self, request: Request) -> None:
    """It was taken and made way for another share: the next of its own."""
    self._picked = None
    line = self._lines.setdefault(share_of(request), deque())
    line.appendleft(_Place(request, line[0].number if line else self._next_number, None))
    self._count += 1

  def next(self) -> Request | None:
    """Whose turn it is. The work grows with the number of shares that wait, and is done once for each change."""
    if self._picked is None:
      if self._begun:
        self._picked = self._begun[0]
      elif self._lines:
        self._picked = self._lines[min(self._lines, key=lambda share: self._rank(share, 0))][0].request
    return self._picked

  def take(self, request: Request) -> None:
    """The one that was `next` runs now."""
    share = share_of(request)
    if self._begun and self._begun[0] is request:
      self._begun.popleft()
    else:
      self._drop(share, self._lines[share][0])
    self._picked = None
    self._clock.turn(share)
    self._running[share] += 1
    self._taken += 1

  def left(self, request: Request, tokens: int) -> None:
    """One that was taken does not run any more; so many tokens were computed for it."""
    share = share_of(request)
    self._picked = None
    self._taken -= 1
    self._running[share] -= 1
    if not self._running[share]:
      del self._running[share]
    self._clock.charge(share, tokens)

  @property
  def some_have_several(self) -> bool:
    """Of the shares, running."""
    return self._taken > len(self._running)

  def running(self, request: Request) -> int:
    """How many of its share run."""
    return self._running[share_of(request)]

  def forget(self, unwanted: Callable[[Request], bool]) -> bool:
    """False when there were none such."""
    before, self._picked = len(self), None
    self._begun = deque(r for r in self._begun if not unwanted(r))
    for share, line in list(self._lines.items()):
      for place in [p for p in line if unwanted(p.request)]:
        self._drop(share, place)
    return len(self) != before

  def overdue(self, before_s: float) -> list[Request]:
    """Those that have waited since before then and have not begun."""
    return [
        place.request for line in self._lines.values() for place in line
        if place.since_s is not None and place.since_s <= before_s
    ]

  @property
  def oldest_s(self) -> float | None:
    """Since when somebody waits who has not begun; None where nobody does."""
    return min((place.since_s for line in self._lines.values() for place in line if place.since_s is not None),
               default=None)

  def ahead_of(self, request: Request) -> list[Request]:
    """Who would be taken before a request that came now."""
    if request.replay_ids:
      return list(self._begun)
    own = self._rank(share_of(request), len(self._lines.get(share_of(request), ())))
    return [*self._begun, *(r for rank, r in self._ranked() if rank < own)]

  def _ranked(self) -> Iterator[tuple[_Rank, Request]]:
    for share, line in self._lines.items():
      for i, place in enumerate(line):
        yield self._rank(share, i), place.request

  def _rank(self, share: str, index: int) -> _Rank:
    line = self._lines.get(share, ())
    number = line[index].number if index < len(line) else self._next_number
    return self._running[share] + index, self._clock.had(share), number

  def _drop(self, share: str, place: _Place) -> None:
    self._lines[share].remove(place)
    if not self._lines[share]:
      del self._lines[share]
    self._count -= 1
