"""Nodes that cannot load or compute a model: each is left out of it, everybody else goes on, and it comes back by itself."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from exo.errors import (
    DownloadError,
    EngineError,
    ExoError,
    ModelFilesError,
    PlanClosedError,
    UnsupportedModelError,
)
from exo.inference.dummy.engine import DummyStage
from exo.inference.engine import Batch
from exo.inference.shard import Shard
from exo.networking.grpc.peer_codec import heartbeat_in, heartbeat_out
from exo.networking.messages import ClosePlan, Message, TokenDelivery
from exo.networking.peer_messages import Ailment, Heartbeat
from exo.orchestration.node import Node
from exo.worker.worker import WorkerOptions
from test.support.local_rings import local_ring, run, settled, spec, text_of
from test.support.sickness import ROOMY, Sickness, Step, golden_folder, ill, raising, until

pytestmark = pytest.mark.usefixtures("soon")

FAULTS = [
    DownloadError("no space left on device"),
    ModelFilesError("the file is damaged"),
    UnsupportedModelError("this engine cannot run it"),
    KeyError("blk.0"),
    MemoryError(),
    IndexError("list index out of range"),
    RecursionError("too deep"),
    SystemExit(3),
]


@pytest.mark.parametrize("error", FAULTS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("count", [1, 3])
def test_line_1_whatever_a_load_raises_reaches_every_client_at_once(
    tmp_path: Path, error: BaseException, count: int
) -> None:
  """And what fails alike on every node is the model's error, with its own class; once it is gone, requests are answered."""
  async def scenario() -> None:
    async with local_ring(tmp_path, *[ROOMY] * count) as (nodes, _):
      sick = [Sickness(node) for node in nodes]
      for one in sick:
        one.load = raising(error)
      answers = await asyncio.gather(*(text_of(node, spec("hello", 20)) for node in nodes), return_exceptions=True)
      for answer in answers:
        assert isinstance(answer, ExoError) and str(answer), answer
        if isinstance(error, ExoError):
          assert type(answer) is type(error)
        else:
          assert type(error).__name__ in str(answer)
      for one in sick:
        one.load = None
      assert len((await text_of(nodes[0], spec("hello", 20)))[0]) == 20
      await until(lambda: ill(nodes) == [set()] * count, "recovery")
      assert all(node.unhealthy is None for node in nodes)
      await settled(nodes)

  run(scenario)


@pytest.mark.parametrize("error", FAULTS[:5], ids=lambda e: type(e).__name__)
def test_line_2_a_node_that_cannot_load_leaves_that_models_plans_and_comes_back(
    tmp_path: Path, error: BaseException
) -> None:
  """The requests that waited go on with the others, in the same attempt; fault 17."""
  async def scenario() -> None:
    async with local_ring(tmp_path, ROOMY) as (nodes, _):
      expected = await text_of(nodes[0], spec("hello", 30))
    async with local_ring(tmp_path, ROOMY, ROOMY, ROOMY) as (nodes, _):
      sick = Sickness(nodes[1])
      sick.load = raising(error)
      answers = await asyncio.gather(*(text_of(node, spec("hello", 30)) for node in nodes for _ in range(3)))
      assert answers == [expected] * 9
      await until(lambda: ill(nodes) == [{"n1"}] * 3, "the news")
      reason = nodes[0].planner.ailments()["n1"][0].reason
      assert (str(error) if isinstance(error, ExoError) else type(error).__name__) in reason
      assert nodes[1].unhealthy is None
      plan = nodes[2].planner.plan(nodes[2].hello, await nodes[2].model("dummy"))
      assert set(plan.node_ids) == {"n0", "n2"}
      sick.load = None
      await until(lambda: ill(nodes) == [set()] * 3, "recovery")
      plan = nodes[2].planner.plan(nodes[2].hello, await nodes[2].model("dummy"))
      assert set(plan.node_ids) == {"n0", "n1", "n2"}
      assert await text_of(nodes[1], spec("hello", 30)) == expected
      await settled(nodes)

  run(scenario)


def test_line_2_a_node_that_loads_but_cannot_compute_is_left_out_too(tmp_path: Path) -> None:
  async def scenario() -> None:
    async with local_ring(tmp_path, ROOMY) as (nodes, _):
      expected = await text_of(nodes[0], spec("hello", 30))
    for wrong in (np.nan, None):
      async with local_ring(tmp_path, ROOMY, ROOMY, ROOMY) as (nodes, _):
        sick = Sickness(nodes[2])
        sick.step = lambda own, batch, wrong=wrong: own(batch) * wrong  # None cannot be multiplied by
        assert await text_of(nodes[2], spec("hello", 30)) == expected
        await until(lambda: ill(nodes) == [{"n2"}] * 3, "the news")

  run(scenario)


def test_line_2_survivors_that_are_too_small_say_so_and_whose_absence_it_is(tmp_path: Path) -> None:
  async def scenario() -> None:
    async with local_ring(tmp_path, ROOMY, ROOMY) as (nodes, _):
      Sickness(nodes[0]).load = raising(ModelFilesError("the file is damaged"))
      Sickness(nodes[1]).load = raising(DownloadError("the disk is full"))
      with pytest.raises(ExoError, match=r"damaged.*full|full.*damaged"):
        await text_of(nodes[0], spec("hello", 5))

  run(scenario)


def test_line_3_models_that_fail_in_a_row_make_the_worker_prove_itself(
    tmp_path: Path, goldens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """It stays healthy where it can, and leaves the ring only where it cannot."""
  async def scenario() -> None:
    folder = golden_folder(goldens, tmp_path, "one")
    async with local_ring(tmp_path, ROOMY, model_dirs=(folder, )) as ((node, ), _):
      sick, proofs = Sickness(node), []
      prove = node.workers[0].health._prove

      async def counted() -> None:
        proofs.append(1)
        await prove()

      node.workers[0].health._prove = counted  # type: ignore[method-assign]
      sick.load = raising(KeyError("contradiction"))
      for _ in range(3):
        with pytest.raises(ExoError):
          await text_of(node, spec("hello", 5), "one")
      await asyncio.sleep(0.05)
      assert not proofs  # one model's failures are that model's
      with pytest.raises(ExoError):
        await text_of(node, spec("hello", 5), "dummy")
      await until(lambda: len(proofs) == 1, "the proof")
      assert node.unhealthy is None

      async def broken() -> None:
        raise EngineError("no device")

      node.workers[0].health._prove = broken  # type: ignore[method-assign]
      renew, node.workers[0].health._renew = node.workers[0].health._renew, broken  # type: ignore[method-assign]
      with pytest.raises(ExoError):
        await text_of(node, spec("hello", 5), "one")
      with pytest.raises(ExoError):
        await text_of(node, spec("hello", 5), "dummy")
      await until(lambda: node.unhealthy is not None, "bad health")
      assert "no device" in str(node.unhealthy) and node.leaving
      node.workers[0].health._renew, sick.load = renew, None  # type: ignore[method-assign]
      await until(lambda: node.unhealthy is None, "recovery")
      assert len((await text_of(node, spec("hello", 5), "dummy"))[0]) == 5

  run(scenario)


def test_line_17_a_model_on_disk_does_not_wait_for_anothers_download(
    tmp_path: Path, goldens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  async def scenario() -> None:
    folder = golden_folder(goldens, tmp_path, "one")
    async with local_ring(tmp_path, ROOMY, model_dirs=(folder, )) as ((node, ), _):
      fetch, fetched = node.catalog.fetch_shard, asyncio.Event()

      async def slowly(shard, file) -> None:  # type: ignore[no-untyped-def]
        if shard.model_id == "dummy":
          await fetched.wait()
        await fetch(shard, file)

      monkeypatch.setattr(node.catalog, "fetch_shard", slowly)
      waiting = asyncio.create_task(text_of(node, spec("hello", 5), "dummy"))
      model = await node.model("one")
      async with node.generation(spec("hello", 5), model) as generation:
        assert [delivery async for delivery in generation]
      assert not waiting.done()
      fetched.set()
      assert len((await waiting)[0]) == 5

  run(scenario)


def test_line_17_one_models_failed_preparation_puts_off_no_other(tmp_path: Path) -> None:
  from exo.networking.messages import OpenPlan
  from exo.orchestration.plan_book import PlanBook
  from exo.topology.ring_plan import RingPlan, Stage

  def plan(model: str, node: str) -> OpenPlan:
    return OpenPlan(RingPlan(model, "e", (Stage(node, Shard(model, 0, 1, 2), "cpu"), )))

  async def scenario() -> None:
    opened: list[str] = []

    async def open_stages(message: OpenPlan) -> None:
      if message.plan.model_id == "bad":
        raise KeyError("unexpected")
      opened.append(message.plan.model_id)

    book = PlanBook(open_stages)
    for model in ("bad", "good"):
      book.choose(plan(model, "a"), lambda used: True)
    assert book.choose(plan("bad", "b"), lambda used: True).plan.first.node_id == "a"
    await asyncio.sleep(0.01)
    book.choose(plan("good", "b"), lambda used: True)
    await asyncio.sleep(0.01)
    assert opened == ["good"] and book.choose(plan("good", "b"), lambda used: True).plan.first.node_id == "b"
    assert not book._preparing  # the bad one is tried again later, not "being prepared" for good
    await book.close()

  run(scenario)


def test_line_17_a_recovery_loads_with_the_options_of_every_load(tmp_path: Path) -> None:
  async def scenario() -> None:
    async with local_ring(tmp_path, ROOMY) as ((node, ), _):
      node.workers[0].options = WorkerOptions(12345)
      sick, options = Sickness(node), []
      load = node.workers[0].loader.load

      async def noted(shard, checkpoint, given, wanted):  # type: ignore[no-untyped-def]
        options.append(given)
        return await load(shard, checkpoint, given, wanted)

      node.workers[0].loader.load = noted  # type: ignore[method-assign]
      sick.load = raising(MemoryError())
      with pytest.raises(ExoError):
        await text_of(node, spec("hello", 5))
      sick.load = None
      await until(lambda: not node.planner.ailments(), "recovery")
      assert len(options) >= 2 and {o.kv_memory_bytes for o in options} == {12345}

  run(scenario)


class Odd(Exception):
  """One that cannot be shown."""
  def __str__(self) -> str:
    raise RuntimeError("no words")


@pytest.mark.parametrize(
    "error",
    [StopIteration(), Odd(), ValueError("bad \udcff name"),
     ValueError("x" * 50_000_000)],
    ids=lambda e: str(type(e))
)
def test_line_1_whatever_an_error_looks_like_it_is_told(tmp_path: Path, error: BaseException) -> None:
  """A future takes no StopIteration, a message no half characters, and nobody reads 50 MB."""
  async def scenario() -> None:
    async with local_ring(tmp_path, ROOMY, ROOMY) as (nodes, _):
      for node in nodes:
        Sickness(node).load = raising(error)
      with pytest.raises(ExoError) as told:
        await asyncio.wait_for(text_of(nodes[1], spec("hello", 5)), 10)
      assert type(error).__name__ in str(told.value) and len(str(told.value)) < 10_000
      str(told.value).encode()

  run(scenario)


def test_line_2_a_model_that_cannot_be_closed_costs_no_other_its_load(
    tmp_path: Path, goldens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  async def scenario() -> None:
    async with local_ring(tmp_path, ROOMY, model_dirs=(golden_folder(goldens, tmp_path, "one"), )) as ((node, ), _):
      await text_of(node, spec("hello", 10))
      monkeypatch.setattr(DummyStage, "close", lambda self: raising(MemoryError("it cannot be closed"))())
      await with_room_for(node, "one")
      assert await tokens_of(node, "one") == 5
      assert ill([node]) == [set()]

  run(scenario)


async def tokens_of(node: Node, name: str) -> int:
  async with node.generation(spec("hello", 5), await node.model(name)) as generation:
    return sum([len(delivery.tokens) async for delivery in generation])


async def with_room_for(node: Node, name: str) -> None:
  """No other model fits beside that one."""
  model = await node.model(name)
  shard = Shard(name, 0, model.n_layers - 1, model.n_layers)
  node.workers[0].offered_bytes = node.workers[0].loader.needed_bytes(shard, model.checkpoint)


def test_line_2_what_cannot_be_tried_for_want_of_room_is_trusted_again(tmp_path: Path, goldens: Path) -> None:
  """Else a fault that has long passed would keep a node out for as long as it runs other models."""
  async def scenario() -> None:
    async with local_ring(tmp_path, ROOMY, model_dirs=(golden_folder(goldens, tmp_path, "one"), )) as ((node, ), _):
      sick = Sickness(node)
      sick.load = raising(DownloadError("a short absence of the hub"))
      with pytest.raises(DownloadError):
        await text_of(node, spec("hello", 5))
      sick.load = None
      await with_room_for(node, "one")
      assert await tokens_of(node, "one") == 5
      node.workers[0].offered_bytes = 10
      await until(lambda: not node.planner.ailments(), "recovery")

  run(scenario)


def test_line_2_what_other_or_deleted_files_could_not_do_is_over(tmp_path: Path, goldens: Path) -> None:
  async def scenario() -> None:
    one = tmp_path / "models" / "one"
    shutil.copytree(goldens / "llama", one)
    async with local_ring(tmp_path / "home", ROOMY, model_dirs=(one.parent, )) as ((node, ), _):
      sick = Sickness(node)
      sick.load = raising(KeyError("contradiction"))
      with pytest.raises(ExoError):
        await tokens_of(node, "one")
      sick.load = None
      shutil.rmtree(one)
      shutil.copytree(goldens / "gemma3_text", one)
      (known, ) = node.planner.ailments()["n0"]
      async with asyncio.timeout(10):
        while (await node.model("one")).fingerprint == known.fingerprint:  # noqa: ASYNC110
          await asyncio.sleep(0.05)
      assert await tokens_of(node, "one") == 5
      assert not node.planner.ailments()
      await until(lambda: node.plans.idle, "rest")
      await node.plans.close_model("one")
      sick.load = raising(KeyError("contradiction"))
      with pytest.raises(ExoError):
        await tokens_of(node, "one")
      shutil.rmtree(one)
      await until(lambda: not node.planner.ailments(), "the end of the ailment")

  run(scenario)


def test_line_2_a_reason_is_one_line_whoever_gives_it(tmp_path: Path) -> None:
  """Else it could look like another line of a log or a screen."""
  def told(reason: str) -> Ailment:
    sent = Heartbeat(0, ailments=(Ailment("m\nn", "f", reason, "cpu"), ))
    return heartbeat_in(heartbeat_out(sent)["heartbeat"]).ailments[0]

  async def scenario() -> None:
    async with local_ring(tmp_path, ROOMY) as ((node, ), _):
      Sickness(node).load = raising(ValueError("one\r\nnode9 joined"))
      with pytest.raises(ExoError):
        await text_of(node, spec("hello", 5))
      ((ailment, ), ) = node.planner.ailments().values()
      assert ailment.reason == "ValueError: one node9 joined"

  assert told("one\r\nnode9 joined") == Ailment("m n", "f", "one node9 joined", "cpu")
  run(scenario)


def test_a_plan_that_is_closed_in_the_last_moment_of_its_opening_is_not_open(tmp_path: Path) -> None:
  async def scenario() -> None:
    async with local_ring(tmp_path, ROOMY) as ((node, ), _):
      loop, model = asyncio.get_running_loop(), await node.model("dummy")
      opening = node.planner.open_plan(node.hello, model, frozenset())

      def closed_meanwhile(own: Step, batch: Batch) -> np.ndarray:
        loop.call_soon_threadsafe(node.plans.on_message, "n0", ClosePlan(opening.plan.plan_id))
        return own(batch)

      Sickness(node).step = closed_meanwhile
      with pytest.raises(PlanClosedError):
        await node.plans.open(opening)
      assert not node.plans.plans and not node.workers[0].loaded_bytes

  run(scenario)


@pytest.mark.parametrize("when", ["opening", "amid", "at the end"])
@pytest.mark.parametrize("stage", [0, 1])
def test_line_1_who_asked_hears_of_what_is_freed_because_a_link_broke(tmp_path: Path, stage: int, when: str) -> None:
  """A stage frees what another node had asked for, and that one, which it has another link to, has noticed nothing. The first
  stage has the request, also while its plan opens; what the last one has sent is lost, the end of the text, too.
  """
  async def scenario() -> None:
    async with local_ring(tmp_path, ROOMY, ROOMY, 1) as (nodes, _):
      (expected, ) = await text_of(nodes[0], spec("hello", 60))
      entry, text, lost, broken = nodes[2], b"", 0, False
      model = await entry.model("dummy")
      plan = entry.planner.plan(entry.hello, model)
      assert not plan.has("n2")
      there = next(node for node in nodes if node.node_id == plan.stages[stage].node_id)
      Sickness(there).step = slowly
      send = there._mesh.send

      def losing(node_id: str, message: Message) -> None:
        nonlocal lost
        if isinstance(message, TokenDelivery) and not broken and len(text) >= (1 if when == "opening" else 20):
          lost += 1
        else:
          send(node_id, message)

      async def cut() -> None:
        nonlocal broken
        if stage:
          await until(lambda: lost > 0, "a loss")
        if when == "at the end":
          await until(lambda: all(o.idle for node in nodes for o in node.plans._open.values()), "the last step")
        broken = True
        there.peer_left("n2", "cut by the test")
        there.peer_joined(entry.hello)

      await settled(nodes)
      for node in nodes:  # they are loaded anew, to become slow
        await node.plans.close_model("dummy")
      if stage:
        there._mesh.send = losing  # type: ignore[method-assign]
      async with entry.generation(spec("hello", 60), model) as generation:
        cutting = asyncio.create_task(cut()) if when != "amid" or stage else None
        async for delivery in generation:
          text += bytes(token.token_id for token in delivery.tokens)
          if cutting is None and len(text) >= 20:
            cutting = asyncio.create_task(cut())
        assert cutting is not None
        await cutting
      assert text.decode() == expected

  run(scenario)


def slowly(own: Step, batch: Batch) -> np.ndarray:
  time.sleep(0.005)
  return own(batch)
