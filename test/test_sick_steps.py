"""Steps that raise: only the guilty entry gets the error."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from exo.errors import (
    CacheReuseError,
    EngineError,
    OutOfMemoryError,
    PlanClosedError,
)
from exo.inference.dummy.engine import BREAK_LAST, DummyStage
from exo.inference.engine import Batch, StageModel
from test.support.local_rings import local_ring, run, runner_of, settled, spec, text_of
from test.support.sickness import LONG, ROOMY, Sickness, Step, ill, raising, until

pytestmark = pytest.mark.usefixtures("soon")


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
            held += [weakref.ref(runner_of(opened)), weakref.ref(runner_of(opened).model)]
          for plan_id in list(node.plans._open):
            await node.plans._close_here(plan_id, PlanClosedError("over"))
        del opened
        await asyncio.sleep(0.1)
        assert held and [ref() for ref in held] == [None] * len(held)
      finally:
        gc.enable()

  run(scenario)


def test_line_5_steps_behind_one_that_failed_come_back_too(tmp_path: Path) -> None:
  """Several parts of a prompt are on their way in a ring when the first of them fails: the places of the others are free again."""
  async def scenario() -> None:
    async with local_ring(tmp_path, ROOMY, ROOMY) as (nodes, _):
      expected = await text_of(nodes[0], spec("hello", 20))

      def guilty(own: Step, batch: Batch) -> np.ndarray:
        if any(entry.position == 0 and entry.n_tokens > 50 for entry in batch.entries):
          time.sleep(0.2)  # until the next parts are here
          raise RuntimeError("this prompt")
        return own(batch)

      sick = Sickness(nodes[-1])
      (loaded, ) = (stage.loaded.model for opened in nodes[-1].plans._open.values() for stage in opened.stages.values())
      loaded.step = partial(sick._step, loaded.step)  # type: ignore[method-assign]
      sick.step = guilty
      with pytest.raises(EngineError, match="this prompt"):
        await text_of(nodes[0], spec("x" * 2000, 5))
      (driver, ) = (driver for node in nodes for driver in node.plans.drivers)
      await until(lambda: driver.idle, "the return of all steps")
      assert await text_of(nodes[0], spec("hello", 20)) == expected
      await settled(nodes)

  run(scenario)
