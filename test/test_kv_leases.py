"""Models that are loaded for what fits share a worker's memory: all their weights and caches together never exceed its offer."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.errors import NoRoomError, PlanClosedError, ProtocolError
from exo.inference.sampling import SamplingParams
from exo.inference.shard import Shard
from exo.networking.messages import Done, GrowLease, Lease, Message, ShrinkLease
from exo.orchestration.generation import GenerationSpec
from exo.orchestration.meter import Meter
from exo.orchestration.node import Node
from exo.orchestration.opened_plan import OpenedPlan
from exo.orchestration.plan_driver import PlanDriver
from exo.orchestration.scheduler import Scheduler
from exo.topology.ring_plan import RingPlan, Stage
from test.support.local_rings import CONFIG, run
from test.test_loaded_for import _until, loaded, nodes_with
from test.test_scheduler import LIMITS, FakeRing, request


def plan_of(node: Node, model_id: str) -> OpenedPlan:
  (found, ) = (opened for opened in node.plans._open.values() if opened.plan.model_id == model_id)
  return found


def lease_of(node: Node, model_id: str) -> int:
  """In tokens, of the worker's."""
  (stage, ) = plan_of(node, model_id).stages.values()
  return node.workers[0].lease(stage.loaded.model)


def assert_true(nodes: list[Node]) -> None:
  """Nothing that may be in a node's memory exceeds its offer."""
  for node in nodes:
    (worker, ) = node.workers
    assert worker.free >= 0, f"{node.node_id} has promised {-worker.free} bytes that it has not"
    for opened in node.plans._open.values():
      if opened.driver is None:
        continue
      scheduler = opened.driver.scheduler
      assert scheduler.counts.reserved_kv_tokens <= scheduler.room.lease
      assert scheduler.counts.kept_kv_tokens <= scheduler.room.lease
      for other in nodes:
        same = other.plans._open.get(opened.plan.plan_id)
        for stage in same.stages.values() if same is not None else ():
          assert scheduler.room.lease <= stage.worker.lease(stage.loaded.model)
    for opened in node.plans._open.values():
      for stage in opened.stages.values():
        arena = stage.loaded.model.arena  # type: ignore[attr-defined]
        held = sum(held.length for held in list(arena._held.values()))
        assert held <= worker.lease(stage.loaded.model), f"{opened.plan.model_id} holds what it has given up"


@asynccontextmanager
async def watched(nodes: list[Node]) -> AsyncIterator[None]:
  """The same at every moment until the end of the block."""
  async def watch() -> None:
    while True:
      assert_true(nodes)
      await asyncio.sleep(0)

  watching = asyncio.create_task(watch())
  try:
    yield
  finally:
    if not watching.done():
      watching.cancel()
    with pytest.raises(asyncio.CancelledError):  # nothing else has ended it
      await watching


async def tokens_of(node: Node, name: str, prompt: int = 3, max_tokens: int = 4, n: int = 1) -> list[list[int]]:
  wanted = GenerationSpec(
      uuid.uuid4().hex, tuple(1 + i % 300 for i in range(prompt)), max_tokens, frozenset(),
      SamplingParams(temperature=0), n
  )
  out: list[list[int]] = [[] for _ in range(n)]
  async with node.generation(wanted, await node.model(name)) as generation:
    async for delivery in generation:
      out[delivery.choice] += [token.token_id for token in delivery.tokens]
  return out


# the policy of a first stage


def test_line_4_a_smaller_lease_is_kept_to_at_once_by_all_but_those_who_run() -> None:
  scheduler = Scheduler(replace(LIMITS, lease_tokens=300))
  ring = FakeRing(scheduler)
  for name, first in (("a", 10), ("b", 200)):
    scheduler.add(replace(request(name, 40, 20), prompt_ids=tuple(range(first, first + 40))))
    while ring.turn():
      pass
  assert scheduler.counts.kept == 2 and scheduler.room.lease == 300
  scheduler.add(replace(request("c", 50, 70), prompt_ids=tuple(range(400, 450))))
  ring.turn()
  assert scheduler.counts.reserved_kv_tokens == 120
  assert scheduler.room.set_lease(10) == 120 and scheduler.counts.kept == 0
  scheduler.add(replace(request("d", 5, 5), prompt_ids=tuple(range(600, 605))))
  assert scheduler.admission.wanted_lease == 130
  while ring.turn():
    assert scheduler.counts.running <= 1
  assert ring.output["c"] == ring.expected(50, 70) and ring.output["d"] == ring.expected(5, 5)  # d fits exactly
  assert scheduler.room.lease == 10 and sum(map(len, ring.caches.values())) <= 10
  scheduler.add(request("e", 50, 70))
  assert not ring.turn()
  assert scheduler.waiting == 1 and scheduler.admission.wanted_lease == 120
  assert scheduler.room.set_lease(1000) == LIMITS.max_kv_tokens and scheduler.admission.wanted_lease == 0
  assert ring.turn()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40), st.integers(1, 400)), min_size=1, max_size=12),
    st.integers(1, 3)
)
def test_line_4_whatever_the_lease_answers_are_the_same(requests: list[tuple[int, int, int]], stages: int) -> None:
  """It shrinks and grows between all steps; whoever waits for it is served once it has grown."""
  scheduler = Scheduler(replace(LIMITS, stages=stages))
  ring, wanted = FakeRing(scheduler), {}
  for i, (prompt, max_tokens, lease) in enumerate(requests):
    wanted[str(i)] = ring.expected(prompt, max_tokens)
    scheduler.add(request(str(i), prompt, max_tokens))
    assert scheduler.room.set_lease(lease) == max(lease, scheduler.counts.reserved_kv_tokens)
    ring.turn()
    assert scheduler.counts.kept_kv_tokens <= scheduler.room.lease
  while scheduler.requests():
    if not ring.turn():
      lease = scheduler.admission.wanted_lease
      assert lease > scheduler.room.lease
      scheduler.room.set_lease(lease)
  ring.finish()
  assert ring.output == wanted


# workers


def test_line_4_a_second_model_takes_its_memory_from_what_the_first_does_not_need(
    tmp_path: Path, goldens: Path
) -> None:
  async def scenario() -> None:
    async with nodes_with(tmp_path, goldens, (200, CONFIG)) as (nodes, _):
      (node, ) = nodes
      alone = await tokens_of(node, "a")
      before = lease_of(node, "a")
      assert before == plan_of(node, "a").driver.scheduler.room.lease  # type: ignore[union-attr]
      async with watched(nodes):
        await tokens_of(node, "b")
        assert loaded(node) == {"a", "b"} and 0 < lease_of(node, "a") < before and lease_of(node, "b") > 0
        rooms = {room.model_id: room.max_kv_tokens for room in node.plans.rooms}
        assert rooms == {name: lease_of(node, name) for name in "ab"}
        # halves of what was left, as near as a token of each goes
        shares = [lease_of(node, name) * kv_bytes(node, name) for name in "ab"]
        assert shares[0] == pytest.approx(shares[1], rel=0.1)
        assert await tokens_of(node, "a") == alone

  run(scenario)


def kv_bytes(node: Node, name: str) -> int:
  (stage, ) = plan_of(node, name).stages.values()
  return stage.loaded.model.memory.kv_bytes_per_token


@pytest.mark.parametrize("count", [1, 2])
def test_line_4_who_needs_more_gets_it_from_whoever_does_not(tmp_path: Path, goldens: Path, count: int) -> None:
  """Of a model that has given up nearly all, a request that needs much is served; the other one has given it."""
  async def scenario() -> None:
    async with nodes_with(tmp_path, goldens, *[(200, CONFIG)] * count) as (nodes, _):
      node = nodes[0]
      expected = await tokens_of(node, "a", 100, 100, n=8)
      await tokens_of(node, "b")
      for one in nodes:  # as if a third model had come and gone
        await one.plans.leases.free(one.workers[0], 10**12)
      (first, ) = (one for one in nodes if plan_of(one, "a").driver is not None)
      driver = plan_of(first, "a").driver
      assert driver is not None and driver.scheduler.room.lease < 1600
      for one in nodes:  # and b had taken all of it
        worker = one.workers[0]
        (stage, ) = plan_of(one, "b").stages.values()
        worker.grow_lease(stage.loaded.model, 10**9)
      other = next(plan_of(one, "b").driver for one in nodes if plan_of(one, "b").driver is not None)
      assert other is not None
      most = min(lease_of(one, "b") for one in nodes)
      other.grow_lease(most, most, most)
      had = other.scheduler.room.lease
      async with watched(nodes):
        assert await tokens_of(node, "a", 100, 100, n=8) == expected
        assert driver.scheduler.room.lease >= 1600 and other.scheduler.room.lease < had
        assert loaded(node) == {"a", "b"}

  run(scenario)


@pytest.mark.parametrize("keep", [(), ("a", )])
def test_line_4_caches_of_running_requests_are_not_taken(tmp_path: Path, goldens: Path, keep: tuple[str, ...]) -> None:
  """A model for which there is no room beside them waits, and its turn comes, whether the one that runs is kept or not."""
  async def scenario() -> None:
    async with nodes_with(tmp_path, goldens, (100, replace(CONFIG, keep=keep))) as (nodes, _):
      (node, ) = nodes
      alone = await tokens_of(node, "b")
      await _until(lambda: plan_of(node, "b").unused)
      await node.plans.close_model("b")
      await tokens_of(node, "a")
      driver = plan_of(node, "a").driver
      assert driver is not None
      async with watched(nodes):
        # 64 requests of 512 tokens: 50 MB, which leave less than the 35 MB that b takes
        running = asyncio.create_task(tokens_of(node, "a", 8, 504, n=64))
        await _until(lambda: driver.scheduler.counts.reserved_kv_tokens == 64 * 512)
        waiting = asyncio.create_task(tokens_of(node, "b"))
        await _until(lambda: node.workers[0]._claimed > 0)
        await asyncio.sleep(0.3)
        assert loaded(node) == {"a"} and not waiting.done() and not running.done()
        # what becomes free is for who waits: a does not get more meanwhile
        assert node.workers[0].grow_lease(
            plan_of(node, "a").stages[0].loaded.model, 10**9
        ) == driver.scheduler.room.lease
        running.cancel()
        assert await waiting == alone
      assert loaded(node) == {"a", "b"}

  run(scenario)


def test_line_4_a_model_that_is_not_open_yet_begins_with_what_was_left_to_it(tmp_path: Path, goldens: Path) -> None:
  """One of its stages waits for another, and has memory that somebody wants."""
  async def scenario() -> None:
    async with nodes_with(tmp_path, goldens, (200, CONFIG)) as (nodes, _):
      (node, ) = nodes
      await tokens_of(node, "a")
      opened, leases = plan_of(node, "a"), node.plans.leases
      opened.driver, driver = None, opened.driver
      assert driver is not None
      assert await leases.on_shrink("n0", ShrinkLease(opened.plan.plan_id, 2000)) == Lease(opened.plan.plan_id, 2000)
      assert await leases.on_shrink("n0", ShrinkLease(opened.plan.plan_id, 3000)) == Lease(opened.plan.plan_id, 3000)
      opened.driver = node.plans._driver_of(opened.plan, driver.scheduler.limits)
      assert opened.driver.scheduler.room.lease == 2000
      assert leases.first_lease(opened.plan.plan_id, 5000) == 5000

  run(scenario)


def test_line_4_what_can_never_be_had_is_refused_and_keeps_nobody_waiting(tmp_path: Path, goldens: Path) -> None:
  """A kept model takes for good what another one could have when it was loaded: its long prompts are refused, long answers cut."""
  async def scenario() -> None:
    async with nodes_with(tmp_path, goldens, (200, replace(CONFIG, keep=("b", )))) as (nodes, _):
      (node, ) = nodes
      await tokens_of(node, "a")
      opened = plan_of(node, "a")
      driver, (stage, ) = opened.driver, opened.stages.values()
      assert driver is not None
      driver.shrink_lease(300)
      node.workers[0]._models[stage.loaded.model].least_tokens = 300
      node.workers[0].shrink_lease(stage.loaded.model, 300)
      node.workers[0].offered_bytes -= node.workers[0].free
      with pytest.raises(
          NoRoomError, match="its prompt has 400 tokens; beside other models there is room for the caches of 300"
      ):
        await tokens_of(node, "a", 400, 4)
      assert len((await tokens_of(node, "a", 100, 300))[0]) == 200
      assert len((await tokens_of(node, "a", 100, 50))[0]) == 50

  run(scenario)


def test_line_4_memory_that_becomes_free_is_filled_with_kept_caches_again(tmp_path: Path, goldens: Path) -> None:
  """Of the model that stays; while both are there, neither takes it from the other for that."""
  async def scenario() -> None:
    async with nodes_with(tmp_path, goldens, (200, CONFIG)) as (nodes, _):
      (node, ) = nodes
      await tokens_of(node, "a")
      alone = lease_of(node, "a")
      await tokens_of(node, "b")
      driver = plan_of(node, "a").driver
      assert driver is not None
      driver.shrink_lease(1300)
      node.workers[0].shrink_lease(plan_of(node, "a").stages[0].loaded.model, 1300)
      node.workers[0].grow_lease(plan_of(node, "b").stages[0].loaded.model, 10**9)

      async def fill() -> None:  # with prompts that have nothing in common
        for first in range(1, 5):
          wanted = GenerationSpec(uuid.uuid4().hex, (first, ) * 400, 4, frozenset(), SamplingParams(temperature=0))
          async with node.generation(wanted, await node.model("a")) as generation:
            async for _ in generation:
              pass

      async with watched(nodes):
        await fill()
        assert driver.scheduler.counts.kept == 3 and driver.scheduler.room.lease == 1300 and loaded(node) == {"a", "b"}
        await node.plans.close_model("b")
        node.plans.leases._growing.clear()  # instead of waiting
        await fill()
        await _until(lambda: driver.scheduler.room.lease == 2600 <= lease_of(node, "a") < alone)
        await fill()
        assert driver.scheduler.counts.kept == 4

  run(scenario)


@pytest.mark.parametrize("count", [1, 3])
def test_line_4_three_models_in_a_small_memory_all_answer_and_nothing_exceeds_it(
    tmp_path: Path, goldens: Path, count: int
) -> None:
  async def scenario() -> None:
    sizes = [(7, 5), (40, 30), (100, 60)]
    async with nodes_with(tmp_path, goldens, *[(280 // count, CONFIG)] * count) as (nodes, _):
      expected = {(name, size): await tokens_of(nodes[0], name, *size) for name in "abc" for size in sizes}
      choose = random.Random(count)
      async with watched(nodes):
        for _ in range(2):
          asked = [(choose.choice("abc"), choose.choice(sizes), choose.choice([1, 3])) for _ in range(6)]
          got = await asyncio.gather(*(tokens_of(nodes[0], name, *size, n=n) for name, size, n in asked))
          for (name, size, n), texts in zip(asked, got, strict=True):
            assert texts == expected[name, size] * n
      assert not any(node.planner.ailments() for node in nodes)

  run(scenario)


def test_line_4_only_those_who_have_part_in_a_plan_change_what_it_holds(tmp_path: Path, goldens: Path) -> None:
  async def scenario() -> None:
    async with nodes_with(tmp_path, goldens, (200, CONFIG)) as ((node, ), _):
      await tokens_of(node, "a")
      leases, plan_id = node.plans.leases, plan_of(node, "a").plan.plan_id
      before = lease_of(node, "a")
      with pytest.raises(ProtocolError, match="stranger has no stage"):
        await leases.on_shrink("stranger", ShrinkLease(plan_id, 0))
      for sender, message in (("stranger", GrowLease(plan_id, 0,
                                                     9)), ("n0", GrowLease(plan_id, 1,
                                                                           9)), ("n0", GrowLease("other", 0, 9))):
        with pytest.raises(ProtocolError, match="has no plan"):
          await leases.on_grow(sender, message)
      assert await leases.on_shrink("n0", ShrinkLease("other", 9)) == Lease("other", 0)
      assert await leases.on_grow("n0", GrowLease(plan_id, 0, 2**62)) == Lease(plan_id, before, most=before)

  run(scenario)


def test_line_4_a_first_node_that_answers_nonsense_keeps_its_caches(tmp_path: Path, goldens: Path) -> None:
  """And whoever needs memory gets it from the others, or waits."""
  async def scenario() -> None:
    async with nodes_with(tmp_path, goldens, (200, CONFIG)) as ((node, ), _):
      await tokens_of(node, "a")
      leases, before = node.plans.leases, lease_of(node, "a")

      async def nonsense(node_id: str, message: Message, timeout_s: float) -> Message:
        return Done()

      leases._call = nonsense  # type: ignore[method-assign]
      assert not await leases.free(node.workers[0], 10**9)
      assert lease_of(node, "a") == before

  run(scenario)


def test_line_4_of_two_who_wait_one_gives_nothing_up(tmp_path: Path, goldens: Path) -> None:
  """Else each would take from the other what it has gathered."""
  scheduler = Scheduler(replace(LIMITS, lease_tokens=100))
  plan = RingPlan("m", "epoch", (Stage("n", Shard("m", 0, 7, 8), "cpu"), ))
  driver = PlanDriver(plan, scheduler, lambda _: None, lambda *_: None, Meter(), 300.0, lambda *_: None)

  async def scenario() -> None:
    driver.submit(request("a", 60, 100))
    assert driver.shrink_lease(10, "~") == 100 and driver.times_shrunk == 0  # a greater id than any
    assert driver.shrink_lease(10, "") == 10 and driver.times_shrunk == 1
    driver.grow_lease(128, 128, 400)
    assert driver.shrink_lease(10, "~") == 128 == scheduler.counts.reserved_kv_tokens  # it runs
    driver.close(PlanClosedError("it ends"))

  run(scenario)
