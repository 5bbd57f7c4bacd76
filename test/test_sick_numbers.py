"""Numbers that are not finite: the stage that makes them is found and left out, and streams go on exact."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from exo.errors import (
    BadNumbersError,
    CacheReuseError,
    ModelRefusedError,
)
from exo.inference.dummy.engine import DummyStage
from exo.inference.engine import Batch
from exo.inference.shard import Shard
from exo.model_file import ModelFile
from exo.orchestration import ailments
from exo.orchestration.planner import ModelRing
from exo.tasks import TaskOwner
from exo.worker.step_guard import CHECK_SEQUENCE
from test.support.local_rings import local_ring, run, runner_of, settled, spec, text_of
from test.support.sickness import LONG, ROOMY, Sickness, Step, ill, raising, rows_of, until

pytestmark = pytest.mark.usefixtures("soon")


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
      feed, spoilt = runner_of(opened).feed, []

      def spoil(frame) -> None:  # type: ignore[no-untyped-def]
        if frame.hidden is not None and frame.entries and frame.entries[0].position > 7 and len(spoilt) < times:
          spoilt.append(frame)
          frame = type(frame)(
              **{f: getattr(frame, f)
                 for f in frame.__struct_fields__} | {"hidden": frame.hidden * np.inf}
          )
        feed(frame)

      monkeypatch.setattr(runner_of(opened), "feed", spoil)
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
          model = runner_of(opened).model
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
    ill = ailments.Ailments("cpu", "a", tasks, recover)
    bad, file = BadNumbersError("not finite", node="a"), ModelFile("f")
    for _ in range(3):
      ill.fall_ill(Shard("m", 0, 1, 2), file, bad, frozenset({"entry"}))
      ill.absolve(file.key, "nobody")
      assert file.key in ill
      ill.absolve(file.key, "entry")
      assert file.key not in ill
    ill.fall_ill(Shard("m", 0, 1, 2), file, bad)
    await asyncio.sleep(1)
    assert file.key not in ill and most == 1
    await tasks.close()

  asyncio.run(asyncio.wait_for(scenario(), 10))


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
      model = runner_of(opened).model
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
