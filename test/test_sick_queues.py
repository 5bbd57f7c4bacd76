"""Line 9, requirement 18, fault 22: no client makes another wait for all of its own. Fair shares, waits that are told, and an
end to waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import math
import random
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from exo.api.caller import Labels, TrustedProxies
from exo.api.connections import ConnectionTable
from exo.api.keys import ApiKeyStore
from exo.config import Config, config_from
from exo.errors import ConfigError, QueueFullError
from exo.inference.dummy.engine import SLOW
from exo.inference.sampling import SamplingParams
from exo.inference.shard import Shard
from exo.networking.address_rule import parse_address
from exo.networking.messages import Message, OpenPlan, PlanOpened, Request, RequestFailed
from exo.orchestration.fair_clock import FairClock
from exo.orchestration.kv_room import Limits
from exo.orchestration.meter import Meter
from exo.orchestration.plan_driver import PlanDriver
from exo.orchestration.plan_start import PlanStart
from exo.orchestration.scheduler import Scheduler
from exo.orchestration.wait_estimate import WaitEstimate
from exo.orchestration.waiting_line import WaitingLine
from exo.tasks import TaskOwner
from exo.topology.ring_plan import RingPlan, Stage
from test.support.http import call
from test.support.nodes import NodeProcess, ring, wait_until
from test.test_scheduler import FakeRing

BASE = ("--inference-engine", "dummy", "--default-model", "dummy", "--discovery-module", "none")
ENDLESS = {"256": -100}  # the dummy model's end of text


def request(name: str, share: str, prompt: int = 10, max_tokens: int = 20, **fields: Any) -> Request:
  ids = tuple(range(10, 10 + prompt))
  return Request(name, "entry", ids, max_tokens, frozenset({0}), SamplingParams(), share=share, **fields)


# the line by itself


def drain(line: WaitingLine) -> list[str]:
  """Take all, none of which ends."""
  out = []
  while (taken := line.next()) is not None:
    line.take(taken)
    out.append(taken.request_id)
  return out


def test_line_9_places_go_to_shares_in_turn() -> None:
  line = WaitingLine(100)
  for i in range(6):
    line.add(request(f"a{i}", "a"), 0)
  for i in range(2):
    line.add(request(f"b{i}", "b"), 0)
  line.add(request("c0", "c"), 0)
  told = [r.request_id for r in line]
  assert told == drain(line) == ["a0", "b0", "c0", "a1", "b1", "a2", "a3", "a4", "a5"]


def test_line_9_a_share_that_has_nothing_running_goes_first() -> None:
  line = WaitingLine(100)
  for i in range(5):
    line.add(request(f"a{i}", "a"), 0)
  for _ in range(3):
    line.take(line.next())
  line.add(request("b0", "b"), 0)
  assert [r.request_id for r in line.ahead_of(request("b1", "b"))] == ["b0"]
  assert [r.request_id for r in line.ahead_of(request("c0", "c"))] == ["b0"]
  assert drain(line) == ["b0", "a3", "a4"]


def test_line_9_where_one_place_is_shared_tokens_count_not_requests() -> None:
  line, served = WaitingLine(1000), {"long": 0, "short": 0}
  for i in range(200):
    line.add(request(f"long {i}", "long"), 0)
    line.add(request(f"short {i}", "short"), 0)
  for _ in range(100):
    taken = line.next()
    line.take(taken)
    tokens = 500 if taken.share == "long" else 50
    served[taken.share] += tokens
    line.left(taken, tokens)
  assert abs(served["long"] - served["short"]) <= 500


def test_line_9_nobody_saves_up_turns_by_being_quiet() -> None:
  clock = FairClock()
  for _ in range(100):
    clock.turn("busy")
    clock.charge("busy", 100)
  clock.turn("busy")
  assert clock.had("new") == clock.had("busy") == 10_000


def test_line_9_without_a_label_it_is_the_entry_nodes_share() -> None:
  line = WaitingLine(10)
  for i, node in enumerate(("n1", "n1", "n1", "n2")):
    line.add(Request(f"{node}.{i}", node, (1, 2), 5, frozenset(), SamplingParams()), 0)
  assert drain(line) == ["n1.0", "n2.3", "n1.1", "n1.2"]


def test_line_9_a_full_line_makes_way_for_another_share_and_never_for_the_same() -> None:
  line = WaitingLine(8)
  for i in range(8):
    assert line.add(request(f"a{i}", "a"), 0) is None
  refused = request("a8", "a")
  assert line.add(refused, 0) is refused
  gone = [line.add(request(f"b{i}", "b"), 0) for i in range(6)]
  assert [g.request_id for g in gone[:4]] == ["a7", "a6", "a5", "a4"]  # the youngest first, until there are as many
  assert [g.request_id for g in gone[4:]] == ["b4", "b5"]
  assert len(line) == 8 and len(list(line)) == 8


def test_line_9_what_is_in_the_middle_of_an_answer_comes_first() -> None:
  line = WaitingLine(8)
  line.add(request("new", "a"), 0)
  line.add(request("begun", "b", replay_ids=(5, )), 0)
  line.add(request("begun too", "b", replay_ids=(5, )), 0)
  assert drain(line) == ["begun", "begun too", "new"]
  assert not line.overdue(math.inf)


def test_line_9_the_tables_are_bounded() -> None:
  """Labels may be made up by whoever sends requests."""
  clock, line = FairClock(), WaitingLine(50)
  for i in range(20_000):
    clock.charge(f"made up {i}", 5)
    one = request(f"{i}", f"made up {i}")
    line.add(one, 0)
    if i % 3 == 0:
      taken = line.next()
      line.take(taken)
      line.left(taken, 7)
  assert len(clock._had) <= 1024 and len(line._clock._had) <= 1024
  assert len(line) <= 50 and len(line._lines) <= 50 and not line._running


def test_line_9_any_order_of_events_keeps_the_line_whole() -> None:
  rng = random.Random(9)
  for _ in range(30):
    line, taken, alive = WaitingLine(12), [], {}
    for i in range(300):
      match rng.randrange(5):
        case 0 | 1:
          one = request(f"r{i}", rng.choice("abcd"), replay_ids=(1, ) if rng.random() < 0.1 else ())
          gone = line.add(one, i)
          if gone is not one:
            alive[one.request_id] = one
          if gone is not None:
            alive.pop(gone.request_id, None)
        case 2:
          if (following := line.next()) is not None:
            assert following is next(iter(line))
            line.take(following)
            del alive[following.request_id]
            taken.append(following)
        case 3:
          if taken:
            one = taken.pop(rng.randrange(len(taken)))
            line.left(one, rng.randrange(50))
            if rng.random() < 0.3:
              line.put_back(one)
              alive[one.request_id] = one
        case 4:
          if alive and rng.random() < 0.3:
            name = rng.choice(list(alive))
            assert line.forget(lambda r, name=name: r.request_id == name)
            del alive[name]
      assert len(line) == len(alive) and {r.request_id for r in line} == set(alive)
      assert sum(line._running.values()) == len(taken)


# the scheduler


def finish_order(ring: FakeRing, limit: int = 5000) -> list[str]:
  """Run to the end; names in the order in which their answers were complete."""
  done: list[str] = []
  wanted = {r.request_id: r.max_tokens for r in ring.scheduler.requests()}
  for _ in range(limit):
    if not ring.turn():
      break
    done += [n for n, count in wanted.items() if n not in done and len(ring.output.get(n, ())) >= count]
  return done


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("drafting", [0, 4])
def test_line_9_the_short_one_is_served_while_all_places_are_taken_and_every_answer_is_exact(
    stages: int, drafting: int
) -> None:
  scheduler = Scheduler(Limits(4, 4000, 512, stages=stages, step_tokens=64, max_drafting=drafting))
  ring = FakeRing(scheduler, 7 if drafting else 10**6)
  for i in range(8):
    scheduler.add(request(f"long {i}", "a", 40, 100))
  for _ in range(30):
    ring.turn()
  assert scheduler.counts.running == 4
  scheduler.add(request("short", "b", 5, 5))
  order = finish_order(ring)
  assert order[0] == "short" and len(order) == 9
  assert ring.output["short"] == ring.expected(5, 5)
  for i in range(8):
    assert ring.output[f"long {i}"] == ring.expected(40, 100)
  assert scheduler.counts.running == scheduler.counts.waiting == scheduler.counts.reserved_kv_tokens == 0


def test_line_9_nobody_gives_up_their_only_place_nor_one_in_vain() -> None:
  scheduler = Scheduler(Limits(2, 400, 512, step_tokens=64))
  ring = FakeRing(scheduler)
  scheduler.add(request("a", "a", 40, 60))
  scheduler.add(request("b", "b", 40, 60))
  for _ in range(10):
    ring.turn()
  scheduler.add(request("c", "c", 5, 5))
  ring.turn()
  assert {s.request.request_id for s in scheduler._running.values()} == {"a", "b"}
  # of three places two are given up at the most, which is not enough for what the other wants
  scheduler = Scheduler(Limits(8, 300, 512, step_tokens=64))
  ring = FakeRing(scheduler)
  for i in range(3):
    scheduler.add(request(f"a{i}", "a", 40, 60))
  for _ in range(10):
    ring.turn()
  scheduler.add(request("b", "b", 40, 200))
  for _ in range(5):
    ring.turn()
  assert scheduler.counts.running == 3


def test_line_9_a_long_prompt_does_not_hold_up_anothers_short_one() -> None:
  scheduler = Scheduler(Limits(8, 40_000, 9000, step_tokens=64))
  ring = FakeRing(scheduler)
  scheduler.add(request("long", "a", 8000, 3))
  scheduler.add(request("long too", "a", 8000, 3))
  for _ in range(3):
    ring.turn()
  scheduler.add(request("short", "b", 30, 1))
  before = ring.steps
  while "short" not in ring.output:
    ring.turn()
  assert ring.steps - before <= 3 and "long" not in ring.output
  finish_order(ring)
  assert ring.output["long"] == ring.output["long too"] == ring.expected(8000, 3)


def test_line_9_choices_of_one_request_count_to_its_share() -> None:
  scheduler = Scheduler(Limits(4, 4000, 512, step_tokens=64))
  ring = FakeRing(scheduler)
  for choice in range(128):
    scheduler.add(request("many", "a", 10, 30, choice=choice))
  for _ in range(5):
    ring.turn()
  scheduler.add(request("one", "b", 5, 5))
  while len(ring.output.get("one", ())) < 5:
    ring.turn()
  assert len(ring.output["many"]) < 128 * 30 / 4


def test_line_9_shares_count_while_a_plan_opens_too() -> None:
  plan = RingPlan("m", "epoch", (Stage("n", Shard("m", 0, 7, 8), "cpu"), ))
  told: list[RequestFailed] = []

  async def scenario() -> None:
    opened, tasks = asyncio.Event(), TaskOwner("test")
    drivers: list[PlanDriver] = []

    async def call(node_id: str, message: Message, timeout_s: float) -> Message:
      await opened.wait()
      return PlanOpened(plan.plan_id, 10_000, 2, 512, 0, 10_000)

    def ready(plan: RingPlan, limits: Limits) -> PlanDriver:
      drivers.append(
          PlanDriver(
              plan, Scheduler(limits), lambda frame: None, send, Meter(), 300.0, lambda plan_id, tokens, spare: None
          )
      )
      return drivers[0]

    def send(node_id: str, message: Message) -> None:
      assert isinstance(message, RequestFailed)
      told.append(message)

    start = PlanStart(send, call, ready, tasks, False, 300)
    for i in range(256):
      start.add(OpenPlan(plan), request(f"a{i}", "a"))
    with pytest.raises(QueueFullError):
      start.add(OpenPlan(plan), request("a256", "a"))
    start.add(OpenPlan(plan), request("b", "b"))
    assert [failed.request_id for failed in told] == ["a255"] and told[0].failure.kind == "queue_full"
    opened.set()
    while not drivers or drivers[0].scheduler.waiting < 255:  # noqa: ASYNC110 - of what it does there is no event
      await asyncio.sleep(0.01)
    assert [r.request_id for r in drivers[0].scheduler.requests()][:3] == ["a0", "b", "a1"]
    drivers[0].close(QueueFullError("over"))
    await tasks.close()

  asyncio.run(asyncio.wait_for(scenario(), 30))


# how long it takes


def test_line_9_the_estimate_follows_what_was_measured() -> None:
  def wait(token_s: float, ahead: int) -> float:
    estimate = WaitEstimate(1)
    for _ in range(200):
      estimate.learn_step(token_s, 4, 4, 0)
      estimate.learn_answer(request("", "a"), 100)
      estimate.learn_answer(request("", "b"), 5)
    return estimate.wait_s((), [request(f"{i}", "a", 10, 1000) for i in range(ahead)], 1)

  assert wait(0.1, 0) == 0
  assert wait(0.1, 10) == pytest.approx(100, rel=0.1)  # a hundred tokens each, a tenth of a second a token
  assert wait(0.2, 10) == pytest.approx(200, rel=0.1)
  assert wait(0.1, 20) == pytest.approx(200, rel=0.1)
  assert wait(1e9, 50) <= 3600  # times may come from a node that lies


def test_line_9_who_would_wait_too_long_is_refused_with_the_estimate() -> None:
  scheduler = Scheduler(Limits(2, 4000, 512, step_tokens=64))
  ring = FakeRing(scheduler)
  for i in range(12):
    scheduler.add(request(f"a{i}", "a", 10, 100))
  for _ in range(20):
    ring.let_out()
    step = ring.in_flight[0]
    scheduler.on_result(step.number, ring.apply(ring.in_flight.pop(0)), (), 1.0, 1000.0)  # a second a lap
  with pytest.raises(QueueFullError, match="would wait for about") as caught:
    scheduler.add(request("a12", "a", 10, 100), 60)
  retry_s = caught.value.details["retry_after_s"]
  assert isinstance(retry_s, int) and 300 <= retry_s <= 900  # eleven answers of a hundred seconds on two places
  assert scheduler.add(request("b0", "b", 10, 100), 60) == []  # another share's turn is next
  assert scheduler.add(request("a13", "a", 10, 100, replay_ids=(7, )), 60) == []  # in the middle of an answer


def test_line_9_nobody_is_refused_while_there_are_places() -> None:
  """Those that come together wait in the line for a moment, each for the prompts before."""
  scheduler = Scheduler(Limits(64, 100_000, 2000, step_tokens=64))
  for i in range(64):
    assert scheduler.add(request(f"{i}", "a", 30, 1000), 3) == []
    scheduler.next_step()
  with pytest.raises(QueueFullError):
    scheduler.add(request("64", "a", 30, 1000), 3)


def test_line_9_addresses_and_proxies() -> None:
  def client(remote: str, *forwarded: str) -> str:
    headers = [("X-Forwarded-For", text) for text in forwarded]
    asked = make_mocked_request("GET", "/", headers=CIMultiDict(headers))
    return str(proxies.client_of(asked.clone(remote=remote)))

  proxies = TrustedProxies(["10.0.0.0/8", "192.0.2.7", "::1"])
  assert client("203.0.113.5", "198.51.100.1") == "203.0.113.5"  # no proxy of ours
  assert client("10.1.2.3", "198.51.100.1") == "198.51.100.1"
  assert client("10.1.2.3", "1.1.1.1, 198.51.100.1") == "198.51.100.1"  # the client wrote the rest itself
  assert client("10.1.2.3", "1.1.1.1, 198.51.100.1, 192.0.2.7, 10.9.9.9") == "198.51.100.1"
  assert client("10.1.2.3", "1.1.1.1", "198.51.100.1:4711") == "198.51.100.1"  # several headers are one list
  assert client("::1", "[2001:db8::9]:80") == "2001:db8::9"
  assert client("10.1.2.3") == "10.1.2.3" == client("10.1.2.3", "unknown")
  assert client("10.1.2.3", "nonsense, 10.0.0.9") == "10.0.0.9"
  proxies = TrustedProxies([])
  assert client("10.1.2.3", "198.51.100.1") == "10.1.2.3"
  labels = Labels(b"salt")

  def label(address: str) -> str:
    return labels.of_address(parse_address(address))

  assert label("2a00:1450::1") == label("2a00:1450::ffff:1") != label(
      "2a00:1450:0:1::1"
  )  # one machine has all of a /64
  assert label("fe80::1") != label("fe80::2") and label("10.0.0.1") != label("10.0.0.2")
  assert label("10.0.0.1") != Labels(b"pepper").of_address(parse_address("10.0.0.1")
                                                           ) and "10.0" not in label("10.0.0.1")
  for wrong in ("proxy.example", "10.0.0.0/33", "", "10.0.0.1:80"):
    with pytest.raises(ConfigError, match="--trusted-proxy"):
      config_from({"trusted_proxies": (wrong, )}, {})
  assert Config().trusted_proxies == ()


# real nodes


@contextmanager
def serving(home: Path, *arguments: str) -> Iterator[tuple[NodeProcess, dict[str, str]]]:
  """A node with two keys of clients."""
  store = ApiKeyStore(home / ".exo")
  keys = {name: store.add(name, "user") for name in ("ann", "bob")}
  node = NodeProcess(home, *BASE, *arguments, node_id="fair").wait_ready()
  try:
    yield node, keys
  finally:
    node.stop()


@pytest.fixture(scope="module")
def fair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[NodeProcess, dict[str, str]]]:
  with serving(tmp_path_factory.mktemp("fair")) as started:
    yield started


class Client:
  """One completion on a connection of its own; `abandon` ends it from outside."""
  def __init__(self, node: NodeProcess, headers: dict[str, str], prompt: list[int], max_tokens: int, **fields: Any):
    self.connection = http.client.HTTPConnection("127.0.0.1", int(node.url.rpartition(":")[2]), timeout=120)
    self.status, self.answer, self.retry_after = 0, None, None
    body = {"prompt": prompt, "max_tokens": max_tokens, "logit_bias": ENDLESS, **fields}
    self._data, self._headers = json.dumps(body), {"Content-Type": "application/json", **headers}

  def run(self) -> Client:
    try:
      self.connection.request("POST", "/v1/completions", self._data, self._headers)
      response = self.connection.getresponse()
      self.retry_after = response.headers["Retry-After"]
      self.status, self.answer = response.status, json.loads(response.read())
    except (OSError, ValueError, http.client.HTTPException):
      pass
    self.connection.close()
    return self

  def abandon(self) -> None:
    if (sock := self.connection.sock) is not None:
      with contextlib.suppress(OSError):  # it is over
        sock.shutdown(socket.SHUT_RDWR)


def key(keys: dict[str, str], name: str) -> dict[str, str]:
  return {"Authorization": f"Bearer {keys[name]}"}


def gauge(node: NodeProcess, name: str, headers: dict[str, str]) -> float:
  connection = http.client.HTTPConnection("127.0.0.1", int(node.url.rpartition(":")[2]), timeout=10)
  connection.request("GET", "/metrics", headers=headers)
  text = connection.getresponse().read().decode()
  connection.close()
  return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name}{{"))


def topology(node: NodeProcess, headers: dict[str, str]) -> Any:
  return call(node, "GET", "/v1/topology", None, headers)[2]


@contextmanager
def flood(node: NodeProcess, count: int, headers: dict[str, str], **fields: Any) -> Iterator[list[Client]]:
  clients = [Client(node, headers, [SLOW, 40 + i % 50, 60 + i // 50, 70], 8000, **fields) for i in range(count)]
  threads = [threading.Thread(target=client.run) for client in clients]
  for thread in threads:
    thread.start()
  try:
    yield clients
  finally:
    for client in clients:
      client.abandon()
    for thread in threads:
      thread.join()


@pytest.mark.parametrize("count", [64, 100])
def test_line_9_a_short_request_of_another_is_answered_while_all_long_ones_go_on(
    fair: tuple[NodeProcess, dict[str, str]], count: int
) -> None:
  node, keys = fair
  headers = key(keys, "ann")
  alone = Client(node, key(keys, "bob"), [50, 51, 52], 8).run()
  with flood(node, count, headers) as long:
    wait_until(lambda: gauge(node, "exo_running_sequences", headers) == 64, 60, "all places taken")
    wait_until(lambda: gauge(node, "exo_queue_requests", headers) == count - 64, 60, "the others waiting")
    with ThreadPoolExecutor(3) as pool:
      shorts = list(pool.map(lambda _: Client(node, key(keys, "bob"), [50, 51, 52], 8).run(), range(3)))
    assert all(s.status == 200 and s.answer["choices"] == alone.answer["choices"] for s in shorts)
    assert all(client.status == 0 for client in long), "none of the long ones has ended"
  wait_until(lambda: gauge(node, "exo_running_sequences", headers) == 0, 30, "everything freed")
  wait_until(lambda: gauge(node, "exo_queue_requests", headers) == 0, 30, "nobody waiting")


def test_line_9_a_full_line_has_a_place_for_another_client(fair: tuple[NodeProcess, dict[str, str]]) -> None:
  """256 may wait: the longest share's youngest makes way, with 429 and the estimate."""
  node, keys = fair
  headers = key(keys, "ann")
  with flood(node, 60, headers, n=8) as long:  # 480 choices
    wait_until(lambda: sum(c.status == 429 for c in long) >= 20, 90, "refusals")
    refused = [c for c in long if c.status == 429]
    assert all(c.answer["error"]["code"] == "queue_full" and int(c.retry_after) >= 1 for c in refused)
    assert any(int(c.retry_after) > 5 for c in refused)
    assert Client(node, key(keys, "bob"), [50, 51, 52], 8).run().status == 200
    assert any(c.status == 0 for c in long)
  wait_until(lambda: gauge(node, "exo_running_sequences", headers) == 0, 30, "everything freed")


def test_line_9_waiting_ends(tmp_path: Path) -> None:
  """Refused after so long where the estimate was too short, and at once where it is too long."""
  with serving(tmp_path, "--queue-timeout", "3") as (node, keys):
    headers = key(keys, "ann")
    assert Client(node, headers, [50, 51, 52], 4).run().status == 200  # so short are answers, as far as anybody knows
    with flood(node, 80, headers) as long:
      wait_until(lambda: sum(c.status == 429 for c in long) == 16, 60, "the end of waiting")
      assert gauge(node, "exo_running_sequences", headers) == 64 and gauge(node, "exo_queue_requests", headers) == 0
      refused = [c for c in long if c.status == 429]
      assert any("did not come within 3 s" in c.answer["error"]["message"] for c in refused)

      def refused_at_once() -> bool:
        refused.append(Client(node, headers, [50, 51, 52], 8).run())
        return refused[-1].status == 429 and "would wait for about" in refused[-1].answer["error"]["message"]

      wait_until(refused_at_once, 60, "an estimate that has seen how long these answers are")
      for client in refused:
        assert client.answer["error"]["code"] == "queue_full" and "--queue-timeout" in client.answer["error"]["message"]
        assert 1 <= int(client.retry_after) <= 3600
      assert Client(node, key(keys, "bob"), [50, 51, 52], 8).run().status == 200


def test_line_9_without_keys_addresses_have_shares(tmp_path: Path) -> None:
  node = NodeProcess(tmp_path, *BASE, "--trusted-proxy", "127.0.0.1", node_id="proxied").wait_ready()
  try:
    with flood(node, 70, {"X-Forwarded-For": "198.51.100.1"}) as long:
      wait_until(lambda: gauge(node, "exo_running_sequences", {}) == 64, 60, "all places taken")
      other = Client(node, {"X-Forwarded-For": "198.51.100.1, 198.51.100.2"}, [50, 51, 52], 8).run()
      assert other.status == 200 and all(client.status == 0 for client in long)
  finally:
    node.stop()


def test_line_9_a_trusted_proxy_may_have_all_connections() -> None:
  class Held:
    """As much of a connection as the table looks at; it has a request under way."""
    host = ""

  proxies = TrustedProxies(["10.0.0.1"])
  table = ConnectionTable(8, many_clients=lambda host: proxies.trusts(parse_address(host)))

  def enter(host: str) -> bool:
    held = Held()
    entered = table.enter(held, host)  # type: ignore[arg-type]
    table._idle.clear()
    return entered

  assert [enter("10.0.0.1") for _ in range(9)] == [True] * 8 + [False]
  table = ConnectionTable(8, many_clients=lambda host: proxies.trusts(parse_address(host)))
  assert [enter("10.0.0.2") for _ in range(9)] == [True] * 6 + [False] * 3


def test_line_9_the_label_travels_to_the_first_stage(tmp_path: Path) -> None:
  """Both clients ask a node that is not the first stage, which knows them by their labels alone."""
  store = ApiKeyStore(tmp_path / ".exo")
  keys = {name: store.add(name, "user") for name in ("ann", "bob")}
  with ring(tmp_path, 2, *BASE[:4], wait=False, env={}) as nodes:
    ann, bob = key(keys, "ann"), key(keys, "bob")
    wait_until(lambda: all(len(topology(node, ann)["nodes"]) == 2 for node in nodes), 20, "a ring of two")
    assert Client(nodes[0], ann, [50, 51, 52], 2).run().status == 200
    (plan, ) = topology(nodes[0], ann)["plans"]
    first = plan["stages"][0]["node_id"]
    entry, other = sorted(nodes, key=lambda node: node.node_id == first)
    alone = Client(entry, bob, [50, 51, 52], 8).run()
    with flood(entry, 66, ann) as long:
      wait_until(lambda: gauge(other, "exo_running_sequences", ann) == 64, 60, "all places taken")
      short = Client(entry, bob, [50, 51, 52], 8).run()
      assert short.status == 200 and short.answer["choices"] == alone.answer["choices"]
      assert all(client.status == 0 for client in long)
