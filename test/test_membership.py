"""Membership by simulation: random networks, clocks that stop, restarts, and what all live nodes must come to believe."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field

import pytest

from exo.networking.membership import Membership, State, Timing
from exo.networking.peer_messages import Rumour

BEAT_S = 0.5
TIMING = Timing()
# after the last trouble: silence is waited for at most twice as long, then a round of rumours
SETTLED_S = 2 * TIMING.dead_s + 3.0


@dataclass
class Network:
  """Nodes that send a heartbeat to everyone every half second, over links that may lose, delay and break."""
  count: int
  pick: random.Random
  loss: float = 0.0
  delay_s: float = 0.05
  now: float = 0.0
  nodes: dict[str, Membership] = field(default_factory=dict)
  incarnations: dict[str, int] = field(default_factory=dict)
  stopped_until: dict[str, float] = field(default_factory=dict)
  broken: set[tuple[str, str]] = field(default_factory=set)  # from, to
  declared_dead: list[tuple[str, str, float]] = field(default_factory=list)
  _events: list[tuple[float, int, str, tuple]] = field(default_factory=list)
  _number: int = 0

  def __post_init__(self) -> None:
    for i in range(self.count):
      self.start(f"n{i}")

  def start(self, name: str) -> None:
    self.incarnations[name] = self.incarnations.get(name, 0) + 1
    self.nodes[name] = Membership(name, self.incarnations[name], self.now, TIMING)
    life = self.incarnations[name]
    self._at(self.pick.random() * BEAT_S, "beat", (name, life))
    self._at(self.pick.random() * TIMING.tick_s, "tick", (name, life))

  def kill(self, name: str) -> None:
    self.nodes.pop(name, None)

  def _at(self, after_s: float, kind: str, what: tuple) -> None:
    self._number += 1
    heapq.heappush(self._events, (self.now + after_s, self._number, kind, what))

  def run(self, seconds: float) -> None:
    end = self.now + seconds
    while self._events and self._events[0][0] <= end:
      self.now, _, kind, what = heapq.heappop(self._events)
      name = what[0]
      if name not in self.nodes or (kind != "message" and self.incarnations[name] != what[1]):
        continue
      if self.stopped_until.get(name, 0) > self.now:  # it stands still: all of it happens when it goes on
        self._at(self.stopped_until[name] - self.now, kind, what)
      elif kind == "beat":
        self._beat(name)
        self._at(BEAT_S, kind, what)
      elif kind == "tick":
        for change in self.nodes[name].tick(self.now):
          if change.after is State.DEAD:
            self.declared_dead.append((name, change.node_id, self.now))
        self._at(TIMING.tick_s, kind, what)
      else:
        self.nodes[name].heard(what[1], what[2], self.now)
    self.now = end

  def _beat(self, name: str) -> None:
    rumours = self.nodes[name].beat()
    for other in self.nodes:
      if other != name and (name, other) not in self.broken and self.pick.random() >= self.loss:
        self._at(self.pick.random() * self.delay_s, "message", (other, name, rumours))

  def agree(self) -> None:
    """Every live node sees every other as alive, and nobody else."""
    for name, node in self.nodes.items():
      alive = {n for n, state in node.states.items() if state is State.ALIVE}
      assert alive == set(self.nodes) - {name}, (name, node.states)


def trouble(network: Network, seconds: float) -> None:
  """Random partitions, loss, stops, kills and restarts."""
  pick, names, end = network.pick, sorted(network.nodes), network.now + seconds
  while network.now < end:
    name = pick.choice(names)
    match pick.randrange(7):
      case 0:
        side = set(pick.sample(names, pick.randrange(1, len(names))))
        one_way = pick.random() < 0.4
        network.broken |= {(a, b)
                           for a in names
                           for b in names if (a in side) != (b in side) and (a in side or not one_way)}
      case 1:
        network.broken.clear()
      case 2:
        network.loss = pick.choice((0.0, 0.05, 0.3))
      case 3:
        network.kill(name)
      case 4:
        if name not in network.nodes or pick.random() < 0.5:
          network.start(name)  # also a restart that nobody saw the end of
      case 5:
        network.stopped_until[name] = network.now + pick.choice((1, 5, 30))
      case 6:
        other = pick.choice(names)
        network.broken |= {(name, other)}
    network.run(pick.random() * 8)


def check(seed: int, most: int, seconds: float) -> None:
  pick = random.Random(seed)
  network = Network(pick.randrange(2, most + 1), pick)
  network.run(3)
  network.agree()
  trouble(network, seconds)
  network.broken.clear()
  network.loss = 0.0
  network.stopped_until.clear()
  # what was put off while a node stood still is still due, and then nothing happens any more
  network.run(30)
  network.run(SETTLED_S)
  network.agree()


@pytest.mark.parametrize("block", range(8))
def test_all_live_nodes_agree_after_any_trouble(block: int) -> None:
  for seed in range(block * 25, block * 25 + 25):
    check(seed, 7, 30)


@pytest.mark.slow
def test_thousands_of_schedules() -> None:
  for seed in range(10_000, 14_000):
    check(seed, 8, 40)
  for seed in range(20):
    check(seed, 100, 40)


def test_a_hundred_nodes_agree_after_trouble() -> None:
  network = Network(100, random.Random(5))
  network.run(3)
  network.agree()
  for i in range(0, 100, 7):
    network.kill(f"n{i}")
  network.run(SETTLED_S)
  network.agree()


def test_fault_5_loss_of_packets_kills_nobody() -> None:
  for loss in (0.05, 0.3):
    network = Network(6, random.Random(1), loss=loss)
    network.run(600)
    assert not network.declared_dead


def test_fault_6_latency_kills_nobody() -> None:
  network = Network(6, random.Random(2), delay_s=0.25)
  network.run(300)
  assert not network.declared_dead


def test_a_silent_node_is_suspected_then_dead_within_the_bound() -> None:
  network = Network(4, random.Random(3))
  network.run(5)
  network.kill("n3")
  network.run(TIMING.suspect_s + 1)
  assert {node.state("n3") for node in network.nodes.values()} == {State.SUSPECT}
  network.run(TIMING.dead_s - TIMING.suspect_s)
  assert {node.state("n3") for node in network.nodes.values()} == {State.DEAD}


@pytest.mark.parametrize(("stops_s", "dies"), [(1, False), (30, True)])
def test_fault_7_a_node_that_stands_still(stops_s: float, dies: bool) -> None:
  """A second: nothing. Half a minute: dead for the others, who are not dead for it; then alive again."""
  network = Network(4, random.Random(4))
  network.run(5)
  network.stopped_until["n0"] = network.now + stops_s
  network.run(stops_s + 5)
  assert {victim for _, victim, _ in network.declared_dead} == ({"n0"} if dies else set())
  network.agree()


def test_who_cannot_reach_each_other_agree_through_a_third() -> None:
  network = Network(3, random.Random(6))
  network.broken = {("n0", "n1"), ("n1", "n0")}
  network.run(60)
  assert not network.declared_dead
  network.agree()


def test_a_restart_outranks_what_was_known() -> None:
  view = Membership("me", 1, 0.0)
  view.heard("x", [Rumour("x", 5, 900)], 0.0, "10.0.0.2:50000")
  assert view.heard("x", [Rumour("x", 4, 9999)], 1.0) == []
  view.tick(0.25)
  for step in range(1, 60):
    view.tick(0.25 + step * 0.25)
  assert view.state("x") is State.DEAD
  (change, ) = view.heard("y", [Rumour("y", 1, 1), Rumour("x", 6, 1)], 16.0)[1:]
  assert (change.node_id, change.after) == ("x", State.ALIVE)
  assert view.addresses == {"x": "10.0.0.2:50000"}
