"""Whole rings inside one process, without sockets: requests, splits, cancels, losses and errors, on the dummy engine."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from exo.errors import (
    EngineError,
    InvalidRequestError,
    ModelNotFoundError,
    ModelTooLargeError,
    PeerLostError,
    ProtocolError,
)
from exo.networking.messages import OpenPlan, TokenDelivery
from exo.orchestration.planner import Planner
from exo.worker.shard_loader import ShardLoader
from exo.worker.worker import Resident
from test.support.local_rings import local_ring, make_node, run, runner_of, settled, spec, text_of


def test_rings_of_one_to_five_nodes_answer_alike(tmp_path: Path) -> None:
  """Fault 16: also with more nodes than layers would like, and unequal memory."""
  async def scenario() -> None:
    expected = None
    for memories in ((1000, ), (1000, 1000), (1000, 700, 20), (5, 4, 3, 2), (9, 9, 9, 9, 9), tuple(range(10, 22))):
      async with local_ring(tmp_path, *memories) as (nodes, _):
        texts = [await text_of(node, spec("hello", 30)) for node in (nodes[0], nodes[-1])]
        expected = expected or texts[0]
        assert texts == [expected, expected]
        assert len(expected[0]) == 30
        await settled(nodes)

  run(scenario)


def test_many_requests_at_once_each_get_their_own_text(tmp_path: Path) -> None:
  async def scenario() -> None:
    prompts = [f"prompt {i} " * (1 + i % 7) for i in range(40)]
    async with local_ring(tmp_path, 1000) as (nodes, _):
      alone = [await text_of(nodes[0], spec(p, 10 + len(p) % 13)) for p in prompts]
    async with local_ring(tmp_path, 1000, 800, 500) as (nodes, _):
      together = await asyncio.gather(
          *(text_of(nodes[i % 3], spec(p, 10 + len(p) % 13)) for i, p in enumerate(prompts))
      )
      assert list(together) == alone
      await settled(nodes)

  run(scenario)


def test_choices_differ_and_seeds_repeat(tmp_path: Path) -> None:
  async def scenario() -> None:
    async with local_ring(tmp_path, 10, 10) as (nodes, _):
      four = await text_of(nodes[0], spec("hi", 12, n=4, temperature=2.0, seed=5))
      assert len(set(four)) == 4
      assert await text_of(nodes[1], spec("hi", 12, n=4, temperature=2.0, seed=5)) == four
      assert await text_of(nodes[0], spec("hi", 12, n=4, temperature=2.0, seed=6)) != four

  run(scenario)


def test_leaving_a_generation_frees_it_everywhere(tmp_path: Path) -> None:
  async def scenario() -> None:
    async with local_ring(tmp_path, 10, 10, 10) as (nodes, _):
      model = await nodes[1].model("dummy")
      for taken in (0, 1, 5):
        async with nodes[1].generation(spec("hello", 5000, temperature=1.0), model) as generation:
          for _ in range(taken):
            await generation.__anext__()
        await settled(nodes)
      assert await text_of(nodes[0], spec("hello", 30)) == await text_of(nodes[2], spec("hello", 30))

  run(scenario)


def test_a_joining_node_serves_new_requests_once_its_shard_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """Fault 10: what runs stays where it is, and capacity never drops to zero."""
  async def scenario() -> None:
    async with local_ring(tmp_path, 10, 10) as (nodes, network):
      expected = await text_of(nodes[0], spec("hello", 300))
      loaded, load = asyncio.Event(), ShardLoader.load

      async def slowly(self, *args):
        await loaded.wait()
        return await load(self, *args)

      monkeypatch.setattr(ShardLoader, "load", slowly)
      newcomer = make_node(tmp_path, network, "n9", 10)
      model = await nodes[0].model("dummy")
      async with nodes[0].generation(spec("hello", 300), model) as running:
        first = [await running.__anext__()]
        await newcomer.start()
        async with nodes[0].generation(spec("hello", 300), model) as other:  # nothing waits for the newcomer
          assert not other.plan.has("n9")
          text = [delivery async for delivery in other]
        assert b"".join(bytes(t.token_id for t in d.tokens) for d in text).decode() == expected[0]
        loaded.set()
        rest = [delivery async for delivery in running]
        assert not running.plan.has("n9") and not running.resumptions
        assert b"".join(bytes(t.token_id for t in d.tokens) for d in first + rest).decode() == expected[0]
      for _ in range(200):
        async with nodes[0].generation(spec("hello", 30), model) as later:
          [_ async for _ in later]
        if later.plan.has("n9"):
          break
        await asyncio.sleep(0.01)
      assert later.plan.has("n9")
      assert await text_of(newcomer, spec("hello", 300)) == expected
      await newcomer.stop()

  run(scenario)


def test_where_two_plans_do_not_fit_the_old_one_drains_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  async def scenario() -> None:
    async with local_ring(tmp_path, 10, 10) as (nodes, network):
      expected = await text_of(nodes[0], spec("hello", 300))
      # as if every stage needed more than half of the memory that is offered
      monkeypatch.setattr(Resident, "own_bytes", 6 * 2**20)
      monkeypatch.setattr(ShardLoader, "needed_bytes", lambda *_: 6 * 2**20)
      newcomer = make_node(tmp_path, network, "n9", 10)
      model = await nodes[0].model("dummy")
      async with nodes[0].generation(spec("hello", 8000, temperature=1.0, logit_bias={256: -100}), model) as running:
        await running.__anext__()
        await newcomer.start()
        assert await text_of(nodes[0], spec("hello", 300)) == expected  # beside the one that runs, on the old plan
        waiting = asyncio.create_task(text_of(nodes[0], spec("hello", 300)))
        await asyncio.sleep(0.2)
        assert not running.resumptions
      assert await waiting == expected
      assert await text_of(nodes[0], spec("hello", 300)) == expected
      assert {plan.node_ids for plan in nodes[0].plans.plans} == {("n9", "n1", "n0")}
      await newcomer.stop()

  run(scenario)


def test_line_2_a_plan_that_outlives_its_first_node_is_neither_opened_nor_kept(tmp_path: Path) -> None:
  """Nobody would close it: a message that is read after its sender has left opens nothing, and what is left of such a plan makes room."""
  async def scenario() -> None:
    async with local_ring(tmp_path, 10, 10) as (nodes, network):
      expected = await text_of(nodes[0], spec("hello", 20))
      await settled(nodes)
      (opened, ) = nodes[0].plans._open.values()
      plan = opened.plan
      first, other = (n for name in plan.node_ids for n in nodes if n.node_id == name)
      leftover = dict(other.plans._open)
      await network.kill(first.node_id)
      for _ in range(500):
        if not other.plans._open:
          break
        await asyncio.sleep(0.01)
      with pytest.raises(PeerLostError, match=f"{first.node_id}, where the plan begins, has left"):
        await other.plans.open(OpenPlan(plan, stage=1))
      assert not other.plans._open and not other.plans._opening
      # as if it had been opened all the same
      other.plans._open |= leftover
      assert await other.plans.residents.give_way(other.workers[0], replace(plan, epoch="another"), None)
      assert not other.plans._open and await text_of(other, spec("hello", 20)) == expected

  run(scenario)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 3, "frequency_penalty": 0.5}])
def test_a_request_that_loses_a_stage_goes_on_exactly(tmp_path: Path, sampling: dict[str, float]) -> None:
  """Faults 1 and 2, at every moment: before the first token, and after k of them."""
  async def scenario() -> None:
    async with local_ring(tmp_path, 10) as (nodes, _):
      unbroken = await text_of(nodes[0], spec("hello", 60, n=2, **sampling))
    for victim in ("n1", "n2"):  # a stage in the middle or first, and the last
      for k in (0, 1, 7, 40):
        async with local_ring(tmp_path, 10, 10, 10) as (nodes, network):
          model = await nodes[0].model("dummy")
          out, notices, taken = [b"", b""], [], 0
          async with nodes[0].generation(spec("hello", 60, n=2, **sampling), model) as generation:
            if k == 0:
              await network.kill(victim)
            async for delivery in generation:
              out[delivery.choice] += bytes(token.token_id for token in delivery.tokens)
              notices += [str(resumption) for resumption in generation.resumptions]
              generation.resumptions.clear()
              taken += 1
              if taken == k:
                await network.kill(victim)
          assert [text.decode() for text in out] == unbroken
          assert len(notices) == 1 and notices[0].startswith("resumed on 2 nodes after"), notices
          await settled([node for node in nodes if node.node_id != victim])

  run(scenario)


def test_many_requests_fail_over_together_and_again(tmp_path: Path) -> None:
  async def scenario() -> None:
    wanted = [spec(f"prompt {i} " * (1 + i % 5), 40 + i, temperature=float(i % 2), seed=i) for i in range(20)]
    async with local_ring(tmp_path, 10) as (nodes, _):
      alone = [await text_of(nodes[0], w) for w in wanted]
    async with local_ring(tmp_path, 10, 10, 10, 10) as (nodes, network):
      running = [asyncio.create_task(text_of(nodes[i % 2], w)) for i, w in enumerate(wanted)]
      for victim in ("n3", "n2"):
        await asyncio.sleep(0.05)
        assert not all(task.done() for task in running)
        await network.kill(victim)
      assert await asyncio.gather(*running) == alone
      await settled(nodes[:2])

  run(scenario)


def test_survivors_that_cannot_hold_the_model_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  async def scenario() -> None:
    async with local_ring(tmp_path, 10, 10) as (nodes, network):
      model = await nodes[0].model("dummy")
      monkeypatch.setattr(
          Planner, "plan", lambda self, *_, plan=Planner.plan: plan(self, *_) if self._mesh.peers() else too_large()
      )
      with pytest.raises(ModelTooLargeError, match="45 MB are missing"):
        async with nodes[0].generation(spec("hello", 5000, temperature=1.0), model) as generation:
          await generation.__anext__()
          await network.kill("n1")
          async for _ in generation:
            pass
      await settled(nodes[:1])

  def too_large() -> None:
    raise ModelTooLargeError("45 MB are missing", missing_mb=45)

  run(scenario)


def test_a_lost_entry_node_leaves_nothing_behind(tmp_path: Path) -> None:
  async def scenario() -> None:
    async with local_ring(tmp_path, 5000, 5000, 1) as (nodes, network):
      model = await nodes[2].model("dummy")
      async with nodes[2].generation(spec("hello", 5000, temperature=1.0), model) as generation:
        await generation.__anext__()
        assert not generation.plan.has("n2")  # it is outside the ring
        await network.kill("n2")
        await settled(nodes[:2])

  run(scenario)


def test_an_engine_that_raises_is_heard_of_and_the_ring_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """Fault 15: the error reaches the client, and the sequences of that step are freed."""
  async def scenario() -> None:
    async with local_ring(tmp_path, 10, 10) as (nodes, _):
      expected = await text_of(nodes[0], spec("hello", 30))
      for node in nodes:
        (opened, ) = node.plans._open.values()
        original, calls = runner_of(opened).model.step, []

        def broken(batch, original=original, calls=calls):
          calls.append(batch)
          if len(calls) in (3, 5):  # the step, a check of the engine, and the entry alone
            raise EngineError("out of luck")
          return original(batch)

        monkeypatch.setattr(runner_of(opened).model, "step", broken)
        with pytest.raises(EngineError, match="out of luck"):
          await text_of(nodes[0], spec("hello", 30))
        monkeypatch.setattr(runner_of(opened).model, "step", original)
        await settled(nodes)
        assert await text_of(nodes[0], spec("hello", 30)) == expected

  run(scenario)


def test_errors_of_opening_reach_the_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  async def scenario() -> None:
    async with local_ring(tmp_path, 10, 10) as (nodes, _):

      async def no_memory(*_: object) -> None:
        raise ModelTooLargeError("no room on n0", missing_mb=3)

      for node in nodes:
        monkeypatch.setattr(node.workers[0].loader, "load", no_memory)
      with pytest.raises(ModelTooLargeError, match="no room on n0"):
        await text_of(nodes[1], spec("hello", 30))
      with pytest.raises(ModelNotFoundError):
        await nodes[0].model("dumy")

  run(scenario)


def test_forged_tokens_change_nothing_and_misplaced_ones_end_the_request(tmp_path: Path) -> None:
  """n1 is the first stage and delivers nothing; n0 is the last and left a gap."""
  async def scenario() -> None:
    async with local_ring(tmp_path, 10, 10) as (nodes, _):
      model = await nodes[0].model("dummy")
      expected = await text_of(nodes[0], spec("hello", 100))

      async def with_lie(sender: str, index: int) -> str:
        wanted, out = spec("hello", 100), b""
        async with nodes[0].generation(wanted, model) as generation:
          nodes[0].message(sender, TokenDelivery(generation.plan.plan_id, wanted.request_id, 0, index, ()))
          async for delivery in generation:
            out += bytes(token.token_id for token in delivery.tokens)
        return out.decode()

      assert [await with_lie("n1", 0)] == expected
      with pytest.raises(ProtocolError, match="was due"):
        await with_lie("n0", 7)
      await settled(nodes)

  run(scenario)


def test_frames_from_strangers_change_nothing(tmp_path: Path) -> None:
  import numpy as np

  from exo.inference.engine import BatchEntry, LogitsOf
  from exo.networking.messages import Frame

  async def scenario() -> None:
    async with local_ring(tmp_path, 10, 10, 10) as (nodes, _):
      expected = await text_of(nodes[0], spec("hello", 30))
      (plan, ) = nodes[0].plans.plans
      frame = Frame(
          plan.plan_id,
          plan.epoch,
          99, (BatchEntry(1, 0, 1, LogitsOf.LAST), ),
          np.zeros(1, np.int32),
          np.zeros((1, 8), np.float32),
          drops=(1, 2, 3),
          stage=plan.node_ids.index("n0")
      )
      nodes[0].message("n2", frame)  # not its neighbour
      nodes[0].message("n9", frame)
      assert await text_of(nodes[1], spec("hello", 30)) == expected

  run(scenario)


def test_a_prompt_longer_than_the_context_is_refused(tmp_path: Path) -> None:
  async def scenario() -> None:
    async with local_ring(tmp_path, 10) as (nodes, _):
      with pytest.raises(InvalidRequestError, match="the context has room for 8192"):
        await text_of(nodes[0], spec("x" * 9000, 5))

  run(scenario)
