"""The gRPC mesh: links from either side, order, calls, and what happens when a node goes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from exo.errors import ConfigError, DeadlineError, ModelTooLargeError, PeerLostError, PeerUnreachableError
from exo.networking.arrival import ArrivalWatch
from exo.networking.grpc.grpc_mesh import GrpcMesh
from exo.networking.grpc.link import Link
from exo.networking.mesh import PeerCandidate
from exo.networking.messages import Cancel, ClosePlan, Done, Message
from exo.networking.peer_messages import Heartbeat, Hello, WorkerBeat
from exo.topology.device_capabilities import DeviceCapabilities
from test.support.workers import dummy_offers


class Recorder:
  """A node that remembers what it was told."""
  def __init__(self) -> None:
    self.events: list[str] = []
    self.messages: list[tuple[str, Message]] = []
    self.changed = asyncio.Event()

  def peer_joined(self, peer: Hello) -> None:
    self.events.append(f"+{peer.node_id}")
    self.changed.set()

  def peer_left(self, node_id: str, reason: str) -> None:
    self.events.append(f"-{node_id}")
    self.changed.set()

  def message(self, sender: str, message: Message) -> None:
    self.messages.append((sender, message))
    self.changed.set()

  def awaits(self, request_id: str) -> bool:
    return True

  async def answer(self, sender: str, message: Message) -> Message:
    assert isinstance(message, Cancel)
    if message.request_id == "slow":
      await asyncio.sleep(30)
    if message.request_id == "refused":
      raise ModelTooLargeError("45 MB are missing", missing_mb=45)
    if message.request_id == "bug":
      raise ZeroDivisionError("oops")
    return Done()

  def heartbeat(self) -> Heartbeat:
    return Heartbeat(0, False, True, (WorkerBeat("cpu", 1234), ))

  async def until(self, condition, timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
      while not condition():
        self.changed.clear()
        await self.changed.wait()


def hello(node_id: str, incarnation: int = 1, port: int = 0) -> Hello:
  return Hello(node_id, incarnation, port, DeviceCapabilities(memory=1000), dummy_offers(1000), "1")


@asynccontextmanager
async def mesh(node_id: str,
               incarnation: int = 1,
               host: str = "127.0.0.1",
               node_ids: tuple[str, ...] = ()) -> AsyncIterator[tuple[GrpcMesh, Recorder]]:
  created, recorder = GrpcMesh(hello(node_id, incarnation), host, 30, node_ids=node_ids), Recorder()
  await created.start(recorder)
  try:
    yield created, recorder
  finally:
    await created.stop()


def candidate(of: GrpcMesh, node_id: str | None = None) -> PeerCandidate:
  return PeerCandidate(of.hello.node_id if node_id is None else node_id, "127.0.0.1", of.hello.port, 4, "lo")


def run(scenario) -> None:
  asyncio.run(asyncio.wait_for(scenario(), 60))


@pytest.mark.parametrize(("dialer", "dialed"), [("a", "b"), ("b", "a")])
def test_one_reachable_direction_is_enough(dialer: str, dialed: str) -> None:
  async def scenario() -> None:
    async with mesh(dialer) as (one, one_heard), mesh(dialed) as (other, other_heard):
      one.offer(candidate(other))
      await one_heard.until(lambda: one_heard.events == [f"+{dialed}"])
      await other_heard.until(lambda: other_heard.events == [f"+{dialer}"])
      for i in range(200):
        one.send(dialed, ClosePlan(f"to {i}"))
        other.send(dialer, ClosePlan(f"back {i}"))
      await other_heard.until(lambda: len(other_heard.messages) == 200)
      await one_heard.until(lambda: len(one_heard.messages) == 200)
      assert other_heard.messages == [(dialer, ClosePlan(f"to {i}")) for i in range(200)]
      assert one_heard.messages == [(dialed, ClosePlan(f"back {i}")) for i in range(200)]
      assert await one.call(dialed, Cancel("p", "r"), 5) == Done()
      assert await other.call(dialer, Cancel("p", "r"), 5) == Done()

  run(scenario)


def test_both_dialing_makes_one_peer() -> None:
  async def scenario() -> None:
    async with mesh("a") as (a, a_heard), mesh("b") as (b, b_heard):
      a.offer(candidate(b))
      b.offer(candidate(a))
      await a_heard.until(lambda: a_heard.events)
      await asyncio.sleep(1.5)
      assert a_heard.events == ["+b"] and b_heard.events == ["+a"]
      assert set(a.peers()) == {"b"} and a.peers()["b"].rtt_ms > 0
      beat = a.peers()["b"].heartbeat
      assert beat is not None and beat.free_memory_mb == 1234 and beat.active

  run(scenario)


def test_a_better_route_that_appears_is_turned_to_without_a_message_lost() -> None:
  """A cable is plugged in: what runs does not notice, and the worse link ends once all is on the better one."""
  async def scenario() -> None:
    async with mesh("a", host="0.0.0.0") as (a, a_heard), mesh("b", host="0.0.0.0") as (b, b_heard):
      port, sent = b.hello.port, 0
      a.offer(PeerCandidate("b", "127.0.0.1", port, 1, "slow"))
      await a_heard.until(lambda: "b" in a.peers())
      await b_heard.until(lambda: "a" in b.peers())
      a.offer(PeerCandidate("b", "127.0.0.3", port, 1, "as slow"))
      a.offer(PeerCandidate("b", "127.0.0.2", port, 5, "fast"))

      async def talk(seconds: float, pause_s: float) -> None:
        nonlocal sent
        until = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < until:
          a.send("b", ClosePlan(f"{sent}"))
          b.send("a", ClosePlan(f"{sent}"))
          sent += 1
          await asyncio.sleep(pause_s)

      await talk(1.5, 0.001)  # as busy as this, there is no moment to turn
      calling = asyncio.create_task(a.call("b", Cancel("p", "r"), 5))
      while a.peers()["b"].interface != "fast" or len(b._links["a"]) > 1:
        await talk(0.1, 0.02)
        await asyncio.sleep(0.8)
      await talk(0.3, 0.001)
      assert await calling == Done()
      await a_heard.until(lambda: len(a_heard.messages) == sent)
      await b_heard.until(lambda: len(b_heard.messages) == sent)
      for heard in (a_heard, b_heard):
        assert [message.plan_id for _, message in heard.messages] == [str(i) for i in range(sent)]
      assert a_heard.events == ["+b"] and b_heard.events == ["+a"]
      assert len(a._links["b"]) == 1 and a.peers()["b"].address == f"127.0.0.2:{port}"

  run(scenario)


def test_line_1_what_was_under_way_on_a_broken_link_is_lost_also_where_another_is_left() -> None:
  """Who waits hears so at once: the node counts as gone and come again. Nor does anybody wait for a call made just then."""
  async def scenario() -> None:
    async with mesh("a", host="0.0.0.0") as (a, a_heard), mesh("b", host="0.0.0.0") as (b, b_heard):
      a.offer(PeerCandidate("b", "127.0.0.1", b.hello.port, 1, "slow"))
      await a_heard.until(lambda: "b" in a.peers())
      await b_heard.until(lambda: "a" in b.peers())
      a.offer(PeerCandidate("b", "127.0.0.2", b.hello.port, 5, "fast"))
      async with asyncio.timeout(10):
        while len(a._links["b"]) < 2:  # noqa: ASYNC110
          await asyncio.sleep(0.01)
      used = a._links["b"][0]
      calling = asyncio.create_task(a.call("b", Cancel("p", "slow"), 60))
      await asyncio.sleep(0.05)
      used.end("cut by the test")
      with pytest.raises(PeerLostError):
        await used.call(Cancel("p", "r"), 60)
      with pytest.raises(PeerLostError):
        await calling
      await a_heard.until(lambda: a_heard.events == ["+b", "-b", "+b"])
      assert await a.call("b", Cancel("p", "r"), 5) == Done()

  run(scenario)


@pytest.mark.parametrize("ended", [0, 1])
def test_line_1_both_sides_count_a_broken_link_as_lost_whichever_they_send_over(ended: int) -> None:
  """Where one side sends over it and the other does not, either may wait for what was under way."""
  async def scenario() -> None:
    async with mesh("a", host="0.0.0.0") as (a, a_heard), mesh("b", host="0.0.0.0") as (b, b_heard):
      a.offer(PeerCandidate("b", "127.0.0.1", b.hello.port, 1, "slow"))
      await a_heard.until(lambda: "b" in a.peers())
      a.offer(PeerCandidate("b", "127.0.0.2", b.hello.port, 5, "fast"))
      async with asyncio.timeout(10):
        while len(a._links["b"]) < 2 or len(b._links["a"]) < 2:  # noqa: ASYNC110
          await asyncio.sleep(0.01)
      a._links["b"][ended].end("cut by the test")
      await a_heard.until(lambda: a_heard.events == ["+b", "-b", "+b"])
      await b_heard.until(lambda: b_heard.events == ["+a", "-a", "+a"])
      a.send("b", ClosePlan("over the other"))
      await b_heard.until(lambda: [m for _, m in b_heard.messages] == [ClosePlan("over the other")])

  run(scenario)


def test_who_only_calls_himself_by_a_peers_name_is_not_turned_to() -> None:
  async def scenario() -> None:
    async with mesh("a", host="0.0.0.0") as (a, a_heard), mesh("b", host="0.0.0.0") as (b, b_heard), \
        mesh("b", host="0.0.0.0") as (impostor, impostor_heard):
      a.offer(PeerCandidate("b", "127.0.0.1", b.hello.port, 1, "slow"))
      await a_heard.until(lambda: "b" in a.peers())
      a.offer(PeerCandidate("b", "127.0.0.2", impostor.hello.port, 5, "fast"))
      await impostor_heard.until(lambda: "a" in impostor.peers())
      await asyncio.sleep(2.5)
      a.send("b", ClosePlan("secret"))
      await b_heard.until(lambda: [m for _, m in b_heard.messages] == [ClosePlan("secret")])
      assert a.peers()["b"].interface == "slow" and not impostor_heard.messages

  run(scenario)


def test_an_address_alone_is_enough() -> None:
  async def scenario() -> None:
    async with mesh("a") as (a, a_heard), mesh("b") as (b, _):
      a.offer(candidate(b, ""))
      await a_heard.until(lambda: a_heard.events == ["+b"])

  run(scenario)


def test_one_seed_is_enough_to_meet_everybody_and_makes_one_link() -> None:
  """Others are heard of through the peers that one has; an address that is offered again is not dialed again."""
  async def scenario() -> None:
    async with mesh("a") as (a, a_heard), mesh("b") as (b, b_heard), mesh("c") as (c, c_heard):
      for _ in range(3):
        a.offer(candidate(b, ""))
        c.offer(candidate(b, ""))
        await asyncio.sleep(0.4)
      await a_heard.until(lambda: set(a.peers()) == {"b", "c"})
      await c_heard.until(lambda: set(c.peers()) == {"a", "b"})
      a.offer(candidate(b, ""))
      await asyncio.sleep(0.5)
      assert sorted(a_heard.events) == ["+b", "+c"] and sorted(b_heard.events) == ["+a", "+c"]
      assert len(a._links["b"]) == len(b._links["c"]) == 1

  run(scenario)


def test_who_is_refused_is_told() -> None:
  async def scenario() -> None:
    async with mesh("a", node_ids=("b", )) as (a, a_heard), mesh("b") as (b, _), mesh("c") as (c, _):
      a.offer(candidate(b))
      c.offer(candidate(a))
      a.offer(candidate(c))
      await a_heard.until(lambda: a_heard.events == ["+b"])
      await asyncio.sleep(1)
      assert set(a.peers()) == {"b"} and not c.peers()
      assert any("c at 127.0.0.1 is not in --node-id-filter" in text for text in a.refusals())
      assert any("c is not in --node-id-filter" in text for text in c.refusals())

  run(scenario)


def test_calls_fail_with_what_the_other_side_raised() -> None:
  async def scenario() -> None:
    async with mesh("a") as (a, a_heard), mesh("b") as (b, _):
      a.offer(candidate(b))
      await a_heard.until(lambda: a_heard.events)
      with pytest.raises(ModelTooLargeError, match="45 MB") as caught:
        await a.call("b", Cancel("p", "refused"), 5)
      assert caught.value.details["missing_mb"] == 45
      with pytest.raises(Exception, match="ZeroDivisionError"):
        await a.call("b", Cancel("p", "bug"), 5)
      with pytest.raises(DeadlineError, match=r"within 0\.2 s"):
        await a.call("b", Cancel("p", "slow"), 0.2)
      with pytest.raises(PeerUnreachableError):
        await a.call("nobody", Cancel("p", "r"), 5)
      with pytest.raises(PeerUnreachableError):
        a.send("nobody", Done())

  run(scenario)


def test_a_lost_node_is_noticed_at_once_and_found_again() -> None:
  async def scenario() -> None:
    async with mesh("a") as (a, a_heard):
      async with mesh("b", 1) as (b, _):
        a.offer(candidate(b))
        await a_heard.until(lambda: a_heard.events)
        waiting = asyncio.create_task(a.call("b", Cancel("p", "slow"), 30))
        await asyncio.sleep(0.1)
      with pytest.raises(PeerLostError):
        await waiting
      await a_heard.until(lambda: a_heard.events == ["+b", "-b"], 2)
      async with mesh("b", 2) as (b, _):
        a.offer(candidate(b))
        await a_heard.until(lambda: a_heard.events == ["+b", "-b", "+b"])
        assert a.peers()["b"].hello.incarnation == 2

  run(scenario)


def test_the_incumbent_of_an_id_stays_and_a_restart_replaces_it() -> None:
  async def scenario() -> None:
    async with mesh("a") as (a, a_heard), mesh("b", 9) as (newer, _), mesh("b", 3) as (stale, _):
      async with mesh("b", 5) as (b, _):
        a.offer(candidate(b))
        await a_heard.until(lambda: a_heard.events == ["+b"])
        newer.offer(candidate(a))
        stale.offer(candidate(a))
        await asyncio.sleep(2.5)
        assert a.peers()["b"].hello.incarnation == 5 and not newer.peers() and not stale.peers()
      await a_heard.until(lambda: a_heard.events == ["+b", "-b", "+b"])
      await asyncio.sleep(1)
      assert a.peers()["b"].hello.incarnation in (3, 9)

  run(scenario)


def test_a_restart_replaces_a_link_that_has_fallen_silent() -> None:
  """A node that lost its power and is back before its silence was noticed."""
  async def scenario() -> None:
    async with mesh("a") as (a, a_heard), mesh("b", 5) as (b, _), mesh("b", 9) as (newer, _):
      a.offer(candidate(b))
      await a_heard.until(lambda: a_heard.events == ["+b"])
      a._links["b"][0]._on_heartbeat = lambda _: None  # type: ignore[method-assign]
      newer.offer(candidate(a))
      await a_heard.until(lambda: a.peers().get("b") is not None and a.peers()["b"].hello.incarnation == 9)

  run(scenario)


def test_a_node_does_not_link_to_itself() -> None:
  async def scenario() -> None:
    async with mesh("a") as (a, heard):
      a.offer(candidate(a))
      a.offer(candidate(a, ""))
      await asyncio.sleep(0.5)
      assert not a.peers() and not heard.events

  run(scenario)


def test_a_taken_port_is_a_clear_error() -> None:
  async def scenario() -> None:
    async with mesh("a") as (a, _):
      second = GrpcMesh(hello("b", port=a.hello.port), "127.0.0.1", 30)
      with pytest.raises(ConfigError, match="is taken: choose another --node-port"):
        await second.start(Recorder())
      await second.stop()

  run(scenario)


def test_what_does_not_arrive_is_missed_in_time_and_what_is_slow_is_not() -> None:
  watch = ArrivalWatch()
  assert not any(watch.overdue(sent, sent, now) for now, sent in enumerate(range(0, 9000, 100)))  # all of it came
  assert not any(watch.overdue(10_000, 9_000 + now, 100.0 + now) for now in range(60))  # it comes, a little at a time
  assert not watch.overdue(10_500, 10_000, 200.0) and not watch.overdue(10_600, 10_000, 203.9)
  assert watch.overdue(10_600, 10_000, 204.1)
  assert not watch.overdue(10_600, 10_600, 204.2) and not watch.overdue(10_700, 10_600, 209.0)
  large = ArrivalWatch()  # a long prompt's hidden states on 1 Mbit/s that a download shares
  assert not any(large.overdue(2**19, 0, now) for now in range(30))


def test_line_1_a_link_that_fails_to_close_is_not_sent_over_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
  """It is taken out all the same, its peer counts as gone, and the next link is the one that messages take."""
  close, failures = Link.close, [MemoryError()]

  async def failing(link: Link, reason: str) -> None:
    if failures:
      raise failures.pop()
    await close(link, reason)

  async def scenario() -> None:
    async with mesh("a") as (a, a_heard), mesh("b") as (b, b_heard):
      a.offer(candidate(b))
      await a_heard.until(lambda: "b" in a.peers())
      await b_heard.until(lambda: "a" in b.peers())
      (link, ) = a._links["b"]
      monkeypatch.setattr(Link, "close", failing)
      link.end("ended by the test")
      with pytest.raises(PeerUnreachableError):
        a.send("b", ClosePlan("lost"))
      await a_heard.until(lambda: a_heard.events == ["+b", "-b", "+b"])
      assert not failures and link not in a._links["b"]
      a.send("b", ClosePlan("heard"))
      await b_heard.until(lambda: ("a", ClosePlan("heard")) in b_heard.messages)

  run(scenario)
