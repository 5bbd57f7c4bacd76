"""Nodes and models that are sick rather than dead: each is left out where it is at fault, and everybody else goes on exactly.

Rings inside one process, with the dummy engine, whose text tells of every lost or doubled token.
"""

from __future__ import annotations

import asyncio
import gc
import shutil
import threading
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from exo.errors import (
    BadNumbersError,
    CacheReuseError,
    DownloadError,
    EngineError,
    ExoError,
    ModelFilesError,
    ModelRefusedError,
    OutOfMemoryError,
    PlanClosedError,
    UnsupportedModelError,
)
from exo.inference.dummy.engine import BREAK_LAST, DummyStage
from exo.inference.engine import Batch, StageModel
from exo.inference.shard import Shard
from exo.networking.grpc.peer_codec import heartbeat_in, heartbeat_out
from exo.networking.messages import Ailment, Heartbeat
from exo.orchestration import ailments, planner, worker_health
from exo.orchestration.node import Node
from exo.orchestration.planner import ModelRing
from exo.orchestration.step_guard import CHECK_SEQUENCE
from exo.tasks import TaskOwner
from test.support.local_rings import local_ring, run, settled, spec, text_of

Step = Callable[[Batch], np.ndarray]
ROOMY = 1000


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
  """What is tried again is tried soon."""
  monkeypatch.setattr(ailments, "_FIRST_PAUSE_S", 0.5)
  monkeypatch.setattr(planner, "_MARK_S", 0.3)
  monkeypatch.setattr(worker_health, "_FIRST_PAUSE_S", 0.1)


class Sickness:
  """Faults of one node: `load` raises before each load, `step` is called in place of every model's own."""
  def __init__(self, node: Node) -> None:
    self.load: Callable[[], None] | None = None
    self.step: Callable[[Step, Batch], np.ndarray] | None = None
    self.loads = 0
    loader = node.plans._opener._loader
    original = loader.load

    async def load(*arguments: object) -> StageModel:
      self.loads += 1
      if self.load is not None:
        await node._device.run(self.load)
      model = await original(*arguments)  # type: ignore[arg-type]
      model.step = partial(self._step, model.step)  # type: ignore[method-assign]
      return model

    loader.load = load  # type: ignore[method-assign, assignment]

  def _step(self, own: Step, batch: Batch) -> np.ndarray:
    return own(batch) if self.step is None else self.step(own, batch)


def raising(error: BaseException) -> Callable[[], None]:
  def fail() -> None:
    raise error

  return fail


def ill(nodes: list[Node]) -> list[set[str]]:
  """Which nodes each of them leaves out of some model."""
  return [set(node.planner.ailments()) for node in nodes]


async def until(condition: Callable[[], bool], what: str) -> None:
  for _ in range(500):
    if condition():
      return
    await asyncio.sleep(0.02)
  raise AssertionError(f"{what} did not happen")


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


def golden_folder(goldens: Path, tmp_path: Path, *names: str) -> Path:
  folder = tmp_path / "models"
  folder.mkdir()
  for name in names:
    (folder / name).symlink_to(goldens / "llama")
  return folder


def test_line_3_models_that_fail_in_a_row_make_the_worker_prove_itself(
    tmp_path: Path, goldens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """It stays healthy where it can, and leaves the ring only where it cannot."""
  async def scenario() -> None:
    folder = golden_folder(goldens, tmp_path, "one")
    async with local_ring(tmp_path, ROOMY, model_dirs=(folder, )) as ((node, ), _):
      sick, proofs = Sickness(node), []
      prove = node.plans.worker._prove

      async def counted() -> None:
        proofs.append(1)
        await prove()

      node.plans.worker._prove = counted  # type: ignore[method-assign]
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

      node.plans.worker._prove = broken  # type: ignore[method-assign]
      renew, node.plans.worker._renew = node.plans.worker._renew, broken  # type: ignore[method-assign]
      with pytest.raises(ExoError):
        await text_of(node, spec("hello", 5), "one")
      with pytest.raises(ExoError):
        await text_of(node, spec("hello", 5), "dummy")
      await until(lambda: node.unhealthy is not None, "bad health")
      assert "no device" in str(node.unhealthy) and node.leaving
      node.plans.worker._renew, sick.load = renew, None  # type: ignore[method-assign]
      await until(lambda: node.unhealthy is None, "recovery")
      assert len((await text_of(node, spec("hello", 5), "dummy"))[0]) == 5

  run(scenario)


def rows_of(batch: Batch, out: np.ndarray, sequences: set[int] | None, value: float) -> np.ndarray:
  """`out` with bad numbers in it, in rows of some sequences; of all where None."""
  out, start = out.copy(), 0
  by_token = len(out) == batch.n_tokens
  for entry in batch.entries:
    count = entry.n_tokens if by_token else entry.logit_rows
    if sequences is None or entry.sequence in sequences:
      out[start:start + count, -1:] = value
    start += count
  return out


class Turning:
  """A step that gives bad numbers from its `since`-th real step on, `times` times."""
  def __init__(self, value: float, since: int = 3, times: int = 1 << 30) -> None:
    self.value, self.since, self.times, self.steps, self.made = value, since, times, 0, 0

  def __call__(self, own: Step, batch: Batch) -> np.ndarray:
    out = own(batch)
    if batch.entries[0].sequence != CHECK_SEQUENCE:
      self.steps += 1
    if self.steps < self.since or self.made >= self.times:
      return out
    self.made += 1
    return rows_of(batch, out, None, self.value)


BAD = [float("nan"), float("inf"), float("-inf"), 3e38, -3e38, 2e18]


@pytest.mark.parametrize(("where", "value"), [("n0", BAD[0]), ("n2", BAD[1]), *(("n1", value) for value in BAD)])
def test_line_4_the_stage_that_makes_bad_numbers_is_taken_out_and_the_stream_goes_on_exact(
    tmp_path: Path, value: float, where: str
) -> None:
  """Fault 18, requirement 19: on the first, a middle and the last stage, two streams at once."""
  async def scenario() -> None:
    async with local_ring(tmp_path, ROOMY) as (nodes, _):
      expected = await asyncio.gather(*(text_of(nodes[0], spec(p, 40)) for p in ("hello", "world")))
    async with local_ring(tmp_path, ROOMY, ROOMY, ROOMY) as (nodes, _):
      victim = next(node for node in nodes if node.node_id == where)
      others = [node for node in nodes if node is not victim]
      Sickness(victim).step = Turning(value)
      answers = await asyncio.gather(*(text_of(others[0], spec(p, 40)) for p in ("hello", "world")))
      assert answers == expected
      await until(lambda: ill(nodes) == [{where}] * 3, "the news")
      assert all(node.unhealthy is None for node in nodes)
      await settled(others)

  run(scenario)


@pytest.mark.parametrize("value", BAD[:3])
def test_line_4_bad_numbers_once_are_computed_again_and_nobody_is_taken_out(tmp_path: Path, value: float) -> None:
  async def scenario() -> None:
    async with local_ring(tmp_path, ROOMY, ROOMY) as (nodes, _):
      expected = await text_of(nodes[0], spec("hello", 40))
    for victim in range(2):
      async with local_ring(tmp_path, ROOMY, ROOMY) as (nodes, _):
        turning = Sickness(nodes[victim]).step = Turning(value, times=1)
        assert await text_of(nodes[0], spec("hello", 40)) == expected
        assert turning.made == 1
        assert ill(nodes) == [set(), set()]
        await settled(nodes)

  run(scenario)


@pytest.mark.parametrize("times", [1, 1 << 30])
def test_line_4_numbers_that_are_bad_when_they_arrive_are_the_senders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
  """Its own check saw nothing. Once: computed again where it was; twice: its requests go on without it."""
  async def scenario() -> None:
    async with local_ring(tmp_path, ROOMY) as (nodes, _):
      expected = await text_of(nodes[0], spec("hello", 40))
    async with local_ring(tmp_path, ROOMY, ROOMY) as (nodes, _):
      model = await nodes[0].model("dummy")
      assert await text_of(nodes[0], spec("hello", 40)) == expected
      (plan, ) = nodes[0].plans.plans
      last = next(node for node in nodes if node.node_id == plan.last.node_id)
      (opened, ) = last.plans._open.values()
      feed, spoilt = opened.runner.feed, []

      def spoil(frame) -> None:  # type: ignore[no-untyped-def]
        if frame.hidden is not None and frame.entries and frame.entries[0].position > 7 and len(spoilt) < times:
          spoilt.append(frame)
          frame = type(frame)(
              **{f: getattr(frame, f)
                 for f in frame.__struct_fields__} | {"hidden": frame.hidden * np.inf}
          )
        feed(frame)

      monkeypatch.setattr(opened.runner, "feed", spoil)
      async with nodes[1].generation(spec("hello", 40), model) as generation:
        out = [token.token_id async for delivery in generation for token in delivery.tokens]
      assert bytes(out).decode() == expected[0]
      guilty = {plan.first.node_id} if times > 1 else set()
      assert set(nodes[1].planner.ailments()) == guilty
      assert guilty.isdisjoint(generation.plan.node_ids)

  run(scenario)


def test_line_4_a_request_with_bad_numbers_everywhere_fails_and_two_refuse_the_model(tmp_path: Path) -> None:
  async def scenario() -> None:
    async with local_ring(tmp_path, ROOMY, ROOMY, ROOMY) as (nodes, _):
      expected = await text_of(nodes[0], spec("hello", 20))
      # no node can compute a prompt with this token
      for node in nodes:
        for opened in node.plans._open.values():
          model = opened.runner.model
          model.step = partial(poisoned, model.step)  # type: ignore[method-assign]
        Sickness(node).step = poisoned
      with pytest.raises(BadNumbersError, match="not finite, on n. and on n."):
        await text_of(nodes[0], spec("hel\x07lo", 20))
      await until(lambda: ill(nodes) == [set()] * 3, "acquittal")
      assert await text_of(nodes[0], spec("hello", 20)) == expected
      with pytest.raises(BadNumbersError):
        await text_of(nodes[0], spec("\x07", 20))
      await until(lambda: ill(nodes) == [set()] * 3, "acquittal")
      with pytest.raises(ModelRefusedError, match="not finite, whichever node computes it"):
        await text_of(nodes[0], spec("hello", 20))
      assert nodes[0].planner.refused.told().keys() == {"dummy"}

  def poisoned(own: Step, batch: Batch) -> np.ndarray:
    out = own(batch)
    return rows_of(batch, out, None, np.nan) if 7 in batch.token_ids else out

  run(scenario)


def test_line_5_only_the_guilty_entry_gets_the_error(tmp_path: Path) -> None:
  """Eight streams in one step, one of which makes every step raise that it is in; requirement 20."""
  async def scenario() -> None:
    prompts = [f"prompt {i}" for i in range(7)]
    async with local_ring(tmp_path, ROOMY) as (nodes, _):
      expected = [await text_of(nodes[0], spec(p, 60)) for p in prompts]
    for count in (1, 2):
      async with local_ring(tmp_path, *[ROOMY] * count) as (nodes, _):
        for node in nodes:
          Sickness(node).step = partial(guilty, since=20)
        asked = [text_of(nodes[0], spec(p, 60)) for p in prompts]
        *answers, failed = await asyncio.gather(*asked, text_of(nodes[0], spec("\x07", 60)), return_exceptions=True)
        assert answers == expected
        assert isinstance(failed, EngineError) and "this entry" in str(failed)
        assert ill(nodes) == [set()] * count and all(node.unhealthy is None for node in nodes)
        await settled(nodes)

  culprits: set[int] = set()

  def guilty(own: Step, batch: Batch, since: int) -> np.ndarray:
    start = 0
    for entry in batch.entries:
      if entry.position == 0:
        (culprits.add if batch.token_ids[start] == 7 else culprits.discard)(entry.sequence)
      start += entry.n_tokens
    out = own(batch)  # the caches have grown when it raises
    if any(e.sequence in culprits and e.position > since for e in batch.entries):
      raise RuntimeError("this entry")
    return out

  run(scenario)


def test_line_5_a_cache_that_cannot_be_cut_back_is_computed_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  async def scenario() -> None:
    prompts = [f"prompt {i}" for i in range(5)]
    async with local_ring(tmp_path, ROOMY) as (nodes, _):
      expected = [await text_of(nodes[0], spec(p, 60)) for p in prompts]
    async with local_ring(tmp_path, ROOMY, ROOMY) as (nodes, _):
      steps = []

      def once(own: Step, batch: Batch) -> np.ndarray:
        out = own(batch)
        steps.append(batch)
        if len(steps) == 40:
          raise RuntimeError("a hiccup")
        return out

      Sickness(nodes[0]).step = once
      monkeypatch.setattr(DummyStage, "truncate", uncut)
      assert await asyncio.gather(*(text_of(nodes[0], spec(p, 60)) for p in prompts)) == expected
      assert ill(nodes) == [set(), set()]
      await settled(nodes)

  def uncut(self: StageModel, sequence: int, length: int) -> None:
    raise CacheReuseError("this cache has no rows")

  run(scenario)


def test_line_5_a_broken_engine_moves_what_it_had_computed_before(tmp_path: Path) -> None:
  async def scenario() -> None:
    async with local_ring(tmp_path, ROOMY) as (nodes, _):
      expected = await text_of(nodes[0], spec("hello", 500))
    async with local_ring(tmp_path, ROOMY, ROOMY) as (nodes, _):
      running = asyncio.create_task(text_of(nodes[0], spec("hello", 500)))
      await until(lambda: any(node.plans.plans for node in nodes), "a plan")
      with pytest.raises(EngineError, match="broken"):
        await text_of(nodes[0], spec(f"a{chr(BREAK_LAST)}b", 5))
      assert await running == expected
      await until(lambda: all(node.unhealthy is None for node in nodes) and ill(nodes) == [set(), set()], "recovery")
      await settled(nodes)

  run(scenario)


def test_line_17_a_model_on_disk_does_not_wait_for_anothers_download(
    tmp_path: Path, goldens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  async def scenario() -> None:
    folder = golden_folder(goldens, tmp_path, "one")
    async with local_ring(tmp_path, ROOMY, model_dirs=(folder, )) as ((node, ), _):
      fetch, fetched = node.catalog.fetch_shard, asyncio.Event()

      async def slowly(shard) -> None:  # type: ignore[no-untyped-def]
        if shard.model_id == "dummy":
          await fetched.wait()
        await fetch(shard)

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
    return OpenPlan(RingPlan(model, "e", (Stage(node, Shard(model, 0, 1, 2)), )), "f")

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
      node.plans._opener._kv_memory_bytes = 12345
      sick, options = Sickness(node), []
      load = node.plans._opener._loader.load

      async def noted(shard, fingerprint, given):  # type: ignore[no-untyped-def]
        options.append(given)
        return await load(shard, fingerprint, given)

      node.plans._opener._loader.load = noted  # type: ignore[method-assign]
      sick.load = raising(MemoryError())
      with pytest.raises(ExoError):
        await text_of(node, spec("hello", 5))
      sick.load = None
      await until(lambda: not node.planner.ailments(), "recovery")
      assert len(options) >= 2 and {o.kv_memory_bytes for o in options} == {12345}

  run(scenario)


def test_line_4_an_illness_that_was_absolved_and_comes_back_is_looked_after_by_one_task(
    monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(ailments, "_FIRST_PAUSE_S", 0.05)
  trying, most = 0, 0

  async def recover(illness: ailments.Illness) -> None:
    nonlocal trying, most
    trying += 1
    most = max(most, trying)
    await asyncio.sleep(0.3)
    trying -= 1

  async def scenario() -> None:
    tasks = TaskOwner("test")
    ill = ailments.Ailments("a", tasks, recover)
    bad = BadNumbersError("not finite", node="a")
    for _ in range(3):
      ill.fall_ill(Shard("m", 0, 1, 2), "f", bad, frozenset({"entry"}))
      ill.absolve("f", "nobody")
      assert "f" in ill
      ill.absolve("f", "entry")
      assert "f" not in ill
    ill.fall_ill(Shard("m", 0, 1, 2), "f", bad)
    await asyncio.sleep(1)
    assert "f" not in ill and most == 1
    await tasks.close()

  asyncio.run(asyncio.wait_for(scenario(), 10))


LONG = "a prompt that is long enough to be kept, and used again"


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
  node.plans._opener._offered_bytes = await node._loader.needed_bytes(shard)


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
      node.plans._opener._offered_bytes = 10
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


@pytest.mark.parametrize("victim", range(3))
def test_line_4_bad_numbers_where_no_cache_can_be_cut_back_are_that_stages_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: int
) -> None:
  async def scenario() -> None:
    async with local_ring(tmp_path, ROOMY) as (nodes, _):
      expected = await text_of(nodes[0], spec("hello", 40))
    async with local_ring(tmp_path, ROOMY, ROOMY, ROOMY) as (nodes, _):
      Sickness(nodes[victim]).step = later
      monkeypatch.setattr(DummyStage, "truncate", lambda *_: raising(CacheReuseError("this cache has no rows"))())
      assert await text_of(nodes[0], spec("hello", 40)) == expected
      assert set(nodes[0].planner.ailments()) == {f"n{victim}"}

  def later(own: Step, batch: Batch) -> np.ndarray:
    out, entry = own(batch), batch.entries[0]
    return rows_of(batch, out, None, np.nan) if entry.position > 10 and entry.logits else out

  run(scenario)


def test_line_4_no_request_begins_with_a_cache_that_gives_bad_numbers_once_that_is_known(tmp_path: Path) -> None:
  async def scenario() -> None:
    async with local_ring(tmp_path, ROOMY) as (nodes, _):
      expected = [await text_of(nodes[0], spec(LONG + end, 20)) for end in "ab"]
    async with local_ring(tmp_path, ROOMY, ROOMY) as (nodes, _):
      await text_of(nodes[0], spec(LONG + " which is kept" * 5, 5))
      (opened, ) = nodes[1].plans._open.values()
      model = opened.runner.model
      (poisoned, ), copies = model._cache, set[int]()  # type: ignore[attr-defined]
      copy, step = model.copy, model.step

      def copied(source: int, target: int, length: int) -> None:
        copies.add(target)
        assert source == poisoned
        copy(source, target, length)

      model.copy = copied  # type: ignore[method-assign]
      model.step = lambda batch: rows_of(batch, step(batch), copies, np.nan)  # type: ignore[method-assign]
      ring = ModelRing(nodes[0].planner, nodes[0].hello, await nodes[0].model("dummy"))
      for end, text in zip("ab", expected, strict=True):
        assert await text_of(nodes[0], spec(LONG + end, 20)) == text
        await until(lambda: ill(nodes) == [set(), set()], "recovery")
        await until(lambda: len(ring.open_plan(frozenset()).plan.stages) == 2, "the plan of both")
        assert len(copies) == 1

  run(scenario)


@pytest.mark.parametrize("count", [1, 2])
def test_line_5_a_cache_that_was_lost_while_its_request_ended_begins_no_other(tmp_path: Path, count: int) -> None:
  """A client goes while its step fails, and asks the same again."""
  async def scenario() -> None:
    async with local_ring(tmp_path, ROOMY) as (nodes, _):
      expected = await text_of(nodes[0], spec(LONG, 40))
    async with local_ring(tmp_path, *[ROOMY] * count) as (nodes, _):
      entered, go_on, failed = threading.Event(), threading.Event(), []

      def twice(own: Step, batch: Batch) -> np.ndarray:
        out = own(batch)
        if len(failed) < 2 and batch.entries[0].position > len(LONG) + 5:
          entered.set()
          go_on.wait(5)
          failed.append(batch)
          raise RuntimeError("while its client goes")
        return out

      Sickness(nodes[-1]).step = twice
      first = asyncio.create_task(text_of(nodes[0], spec(LONG, 40)))
      await asyncio.to_thread(entered.wait)
      first.cancel()
      await asyncio.sleep(0.05)
      second = asyncio.create_task(text_of(nodes[0], spec(LONG, 40)))
      await asyncio.sleep(0.05)
      go_on.set()
      assert await asyncio.wait_for(second, 10) == expected
      assert len(failed) == 2 and ill(nodes) == [set()] * count
      await settled(nodes)

  run(scenario)


@pytest.mark.parametrize("count", [1, 2])
def test_line_5_a_cache_that_cannot_be_copied_is_nobody_elses_affair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
  async def scenario() -> None:
    async with local_ring(tmp_path, ROOMY) as (nodes, _):
      expected = [await text_of(nodes[0], spec(p, n)) for p, n in (("other", 400), (LONG + "b", 40))]
    async with local_ring(tmp_path, *[ROOMY] * count) as (nodes, _):
      await text_of(nodes[0], spec(LONG + " which is kept" * 5, 5))
      before = [list(node.plans._open.values()) for node in nodes]
      monkeypatch.setattr(DummyStage, "copy", lambda *_: raising(MemoryError("no room for a copy"))())
      answers = await asyncio.gather(text_of(nodes[0], spec("other", 400)), text_of(nodes[0], spec(LONG + "b", 40)))
      assert answers == expected
      assert [list(node.plans._open.values()) for node in nodes] == before
      await settled(nodes)

  run(scenario)


def test_line_5_a_stage_that_is_full_is_not_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  """Where every row has a cache, there is none for the look whether it still computes."""
  async def scenario() -> None:
    async with local_ring(tmp_path, ROOMY) as ((node, ), _):
      step = DummyStage.step

      def full(self: DummyStage, batch: Batch) -> np.ndarray:
        if len({*self._cache, *(e.sequence for e in batch.entries)}) > 64:
          raise OutOfMemoryError("all rows are taken")
        if any(e.position > 60 for e in batch.entries):
          raise RuntimeError("this entry")
        return step(self, batch)

      monkeypatch.setattr(DummyStage, "step", full)
      for i in range(66):
        await text_of(node, spec(f"{i:4} of many prompts", 3))
      before = list(node.plans._open.values())
      with pytest.raises(EngineError, match="this entry"):
        await text_of(node, spec(LONG, 100))
      assert list(node.plans._open.values()) == before and ill([node]) == [set()]

  run(scenario)


@pytest.mark.parametrize("times", [3, 1 << 30])
def test_line_4_a_stream_waits_for_its_only_node_once(tmp_path: Path, times: int) -> None:
  """It goes on exact where that is well again, and ends with the reason where it makes bad numbers again."""
  async def scenario() -> None:
    async with local_ring(tmp_path, ROOMY) as ((node, ), _):
      expected = await text_of(node, spec("hello", 40))
    async with local_ring(tmp_path, ROOMY) as ((node, ), _):
      made = []

      def later(own: Step, batch: Batch) -> np.ndarray:
        if batch.entries[0].position < 20 or not batch.entries[0].logits or len(made) >= times:
          return own(batch)
        made.append(batch)
        return own(batch) * np.nan

      Sickness(node).step = later
      answer = asyncio.create_task(text_of(node, spec("hello", 40)))
      if times == 3:
        assert await asyncio.wait_for(answer, 10) == expected
      else:
        with pytest.raises(BadNumbersError, match="not finite"):
          await asyncio.wait_for(answer, 10)
      await until(lambda: not node.planner.ailments(), "recovery")

  run(scenario)


def test_line_2_a_reason_is_one_line_whoever_gives_it(tmp_path: Path) -> None:
  """Else it could look like another line of a log or a screen."""
  def told(reason: str) -> Ailment:
    sent = Heartbeat(0, False, 0, False, (), ailments=(Ailment("m\nn", "f", reason), ))
    return heartbeat_in(heartbeat_out(sent)["heartbeat"]).ailments[0]

  async def scenario() -> None:
    async with local_ring(tmp_path, ROOMY) as ((node, ), _):
      Sickness(node).load = raising(ValueError("one\r\nnode9 joined"))
      with pytest.raises(ExoError):
        await text_of(node, spec("hello", 5))
      ((ailment, ), ) = node.planner.ailments().values()
      assert ailment.reason == "ValueError: one node9 joined"

  assert told("one\r\nnode9 joined") == Ailment("m n", "f", "one node9 joined")
  run(scenario)


def test_a_plan_that_is_over_leaves_nothing_to_the_garbage_collector(tmp_path: Path) -> None:
  """What is in a cycle when the next model is loaded would stay, with its caches."""
  async def scenario() -> None:
    async with local_ring(tmp_path, ROOMY, ROOMY) as (nodes, _):
      await text_of(nodes[0], spec("hello", 30))
      await settled(nodes)
      await asyncio.sleep(0.1)
      gc.collect()
      gc.disable()
      try:
        held = []
        for node in nodes:
          for opened in node.plans._open.values():
            held += [weakref.ref(opened.runner), weakref.ref(opened.runner.model)]
          for plan_id in list(node.plans._open):
            await node.plans._close_here(plan_id, PlanClosedError("over"))
        del opened
        await asyncio.sleep(0.1)
        assert held and [ref() for ref in held] == [None] * len(held)
      finally:
        gc.enable()

  run(scenario)
