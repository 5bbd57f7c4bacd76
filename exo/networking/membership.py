"""Who is alive, as one node can know it: pure logic, the clock is the caller's.

Every node counts its own heartbeats and passes on the highest counts that it has seen of others (gossip-style failure
detection: van Renesse, Minsky, Hayden, 1998). A count that rises is a sign of life, whoever brought it, so nodes agree on
who is alive also where some of them cannot reach each other. Nobody says of another that it is dead, so nothing has to be
refuted; a restarted node has a higher incarnation, which outranks every count.

Before an observer doubts others it doubts itself: time in which it stood still does not count, and the more of the others
are silent at once, the longer each is waited for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum

from exo.networking.peer_messages import Rumour

_MAX_MEMBERS = 1024
_MAX_RUMOURS = 32


class State(IntEnum):
  ALIVE = 0
  SUSPECT = 1
  DEAD = 2


@dataclass(frozen=True, slots=True)
class Timing:
  """Seconds. A node that gives no sign for `suspect_s` is doubted, for `dead_s` dead; waits at most double where all do.

  Dead ones are forgotten after `forget_s`. `tick_s` is how often `Membership.tick` is called.
  """
  suspect_s: float = 2.0
  dead_s: float = 5.0
  forget_s: float = 300.0
  tick_s: float = 0.25


@dataclass(frozen=True, slots=True)
class Change:
  node_id: str
  before: State
  after: State


@dataclass(slots=True)
class _Member:
  incarnation: int
  beat: int
  seen_at: float  # when a count of it rose
  address: str = ""
  state: State = State.ALIVE
  direct: bool = False  # it was heard itself


class Membership:
  """One node's view. `now` is any clock that rises, in seconds; all calls use the same."""
  def __init__(self, node_id: str, incarnation: int, now: float, timing: Timing | None = None) -> None:
    self._node_id, self._incarnation = node_id, incarnation
    self._timing = timing or Timing()
    self._members: dict[str, _Member] = {}
    self._beat = 0
    self._ticked_at = now
    self._next_rumour = 0

  @property
  def states(self) -> Mapping[str, State]:
    """Every other node that is known."""
    return {node_id: member.state for node_id, member in self._members.items()}

  @property
  def addresses(self) -> Mapping[str, str]:
    """Where those that are not dead were reached, by whoever told."""
    return {n: m.address for n, m in self._members.items() if m.address and m.state is not State.DEAD}

  def state(self, node_id: str) -> State:
    """Of a node that is known; an unknown one counts as dead."""
    member = self._members.get(node_id)
    return State.DEAD if member is None else member.state

  def beat(self) -> tuple[Rumour, ...]:
    """Count one more heartbeat of this node; returns it with what is known of others, for whoever is sent to.

    Not all others fit into one heartbeat: they take turns.
    """
    self._beat += 1
    own = Rumour(self._node_id, self._incarnation, self._beat)
    others = sorted(n for n, m in self._members.items() if m.state is not State.DEAD)
    start = self._next_rumour % len(others) if others else 0
    chosen = (others[start:] + others[:start])[:_MAX_RUMOURS]
    self._next_rumour = start + len(chosen)
    return (own, *(Rumour(n, m.incarnation, m.beat, m.address) for n in chosen for m in (self._members[n], )))

  def heard(self, sender: str, rumours: Iterable[Rumour], now: float, address: str = "") -> list[Change]:
    """A heartbeat came from `sender` itself."""
    changes = []
    for rumour in rumours:
      direct = rumour.node_id == sender
      change = self._learn(rumour, now, address if direct and address else rumour.address, direct)
      if change is not None:
        changes.append(change)
    return changes

  def _learn(self, rumour: Rumour, now: float, address: str, direct: bool) -> Change | None:
    if rumour.node_id == self._node_id:
      return None
    member = self._members.get(rumour.node_id)
    if member is None:
      if direct and len(self._members) >= _MAX_MEMBERS:  # whom somebody has made up makes way
        heard_of = next((node_id for node_id, known in self._members.items() if not known.direct), None)
        if heard_of is not None:
          del self._members[heard_of]
      if len(self._members) < _MAX_MEMBERS:
        self._members[rumour.node_id] = _Member(rumour.incarnation, rumour.beat, now, address, direct=direct)
        return Change(rumour.node_id, State.DEAD, State.ALIVE)
      return None
    member.direct = member.direct or direct
    if (rumour.incarnation, rumour.beat) <= (member.incarnation, member.beat):
      return None
    member.incarnation, member.beat, member.seen_at = rumour.incarnation, rumour.beat, now
    member.address = address or member.address
    return self._become(rumour.node_id, member, State.ALIVE)

  def tick(self, now: float) -> list[Change]:
    """Look who has been silent for too long. Call every `Timing.tick_s`; a call that is late counts against nobody."""
    timing = self._timing
    late_s = now - self._ticked_at - timing.tick_s
    if late_s > timing.tick_s:
      for member in self._members.values():
        member.seen_at = min(now, member.seen_at + late_s)
    self._ticked_at = now
    patience = self._patience(now)
    changes = []
    for node_id, member in list(self._members.items()):
      silent_s = now - member.seen_at
      after = State.ALIVE
      if silent_s >= timing.suspect_s * patience:
        after = State.DEAD if silent_s >= timing.dead_s * patience else State.SUSPECT
      if member.state is State.DEAD:
        after = State.DEAD  # until it is heard of again
        if silent_s >= timing.forget_s:
          del self._members[node_id]
          continue
      change = self._become(node_id, member, after)
      if change is not None:
        changes.append(change)
    return changes

  def _patience(self, now: float) -> float:
    """1 while the others are heard; up to 2 where none is, since then it may be this node that hears nothing."""
    there = [m for m in self._members.values() if m.state is not State.DEAD]
    if len(there) < 2:
      return 1.0
    silent = sum(1 for m in there if now - m.seen_at >= self._timing.suspect_s)
    return 1.0 + max(0, silent - 1) / (len(there) - 1)

  @staticmethod
  def _become(node_id: str, member: _Member, state: State) -> Change | None:
    if member.state is state:
      return None
    before, member.state = member.state, state
    return Change(node_id, before, state)
