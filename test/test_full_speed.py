"""The ring at full speed keeps its promises: the same text however it was computed, and nothing left behind."""

from __future__ import annotations

import asyncio
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from exo.cli.bench_load import Load, prose
from exo.inference.engine import Batch, BatchEntry, LoadOptions, LogitsOf
from exo.inference.engines import load_engine
from exo.inference.shard import Shard
from exo.inference.weights.checkpoint import Checkpoint
from test.support.local_rings import local_ring, run, settled, spec, text_of
from test.support.nodes import NodeProcess, ring

MODEL = {"model": "smollm2-135m"}


def ask(node: NodeProcess, prompts: list[str], tokens: int, together: bool) -> list[str]:
  """The greedy answers, one after another or all at once."""
  async def work() -> list[str]:
    async with Load(node.url, "smollm2-135m") as load:
      if together:
        return [answer.text for answer in await load.together(prompts, tokens)]
      return [(await load.complete(prompt, tokens)).text for prompt in prompts]

  return asyncio.run(work())


def all_but_two_are_kept(node: NodeProcess, prompt: str) -> bool:
  status, answer = node.post("/v1/completions", MODEL | {"prompt": prompt, "max_tokens": 1})
  assert status == 200
  usage = answer["usage"]
  return bool(usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] - 2)


def same_everywhere(home: Path, counts: tuple[int, ...], batch: int, tokens: int) -> None:
  """Line 6: alone, in a batch, on every number of nodes, and beginning with a prefilled cache."""
  prompts = [prose(12 + 9 * k, k) for k in range(batch)]
  expected: list[str] | None = None
  for count in counts:
    with ring(home, count) as nodes:
      alone = ask(nodes[0], prompts, tokens, together=False)
      expected = expected or alone
      assert alone == expected, f"{count} nodes, alone"
      assert ask(nodes[-1], prompts, tokens, together=True) == expected, f"{count} nodes, together, from kept caches"
      # as soon as it is known where prompts may be cut, which is found out while nobody asks
      pauses = (8, 15, 30, 60, 90)  # whoever asks has it begun anew
      assert any(all_but_two_are_kept(nodes[0], prompts[-1]) or time.sleep(pause) for pause in pauses)
  with ring(home, 1) as (fresh, ):
    assert ask(fresh, prompts, tokens, together=True) == expected, "together, without any cache"


def test_greedy_text_is_the_same_however_it_was_computed(model_home: Path) -> None:
  same_everywhere(model_home, (1, 2), 4, 16)


@pytest.mark.slow
def test_greedy_text_is_the_same_in_a_batch_of_16_on_1_2_and_3_nodes(model_home: Path) -> None:
  same_everywhere(model_home, (1, 2, 3), 16, 48)


def test_drafts_flip_only_tokens_that_are_closer_than_the_engine_s_own_steps(smollm2: Checkpoint) -> None:
  """Line 6: how far one-token and several-token steps of the engine lie apart, and that a flip needs no larger gap."""
  n = smollm2.config.n_layers
  model = load_engine("onnx").load(Shard("m", 0, n - 1, n), smollm2, LoadOptions(2**33, 1), lambda _: None)
  ids = np.random.default_rng(3).integers(100, 40000, 60).astype(np.int32)
  for sequence in (1, 2):
    model.step(Batch((BatchEntry(sequence, 0, 40, LogitsOf.NONE), ), ids[:40]))
  single = [
      np.array(model.step(Batch((BatchEntry(1, 40 + k, 1, LogitsOf.LAST), ), ids[40 + k:41 + k]))[0])
      for k in range(20)
  ]
  together = np.array(model.step(Batch((BatchEntry(2, 40, 20, LogitsOf.ALL), ), ids[40:])))
  apart = max(float(np.abs(a - b).max()) for a, b in zip(single, together, strict=True))
  print(f"one-token against several-token steps: logits differ by at most {apart:.3f}")
  for a, b in zip(single, together, strict=True):
    if a.argmax() != b.argmax():
      assert float(a.max() - a[b.argmax()]) <= 2 * apart
  model.close()


def test_64_requests_at_once_some_cancelled_are_all_right_and_leave_nothing(tmp_path: Path) -> None:
  """Line 7, on three nodes within this process, whose tasks, caches and descriptors are counted."""
  async def scenario() -> None:
    draw = random.Random(7)
    wanted = [(f"request {i} " * draw.randint(1, 30), draw.randint(1, 60)) for i in range(64)]
    async with local_ring(tmp_path, 1000) as (nodes, _):
      alone = [await text_of(nodes[0], spec(prompt, count)) for prompt, count in wanted]
    async with local_ring(tmp_path, 1000, 800, 500) as (nodes, _):
      await text_of(nodes[0], spec("warm", 2))
      await settled(nodes)
      process = psutil.Process()
      before = (len(asyncio.all_tasks()), process.num_fds())

      async def one(i: int) -> list[str] | None:
        prompt, count = wanted[i]
        if i % 5:
          return await text_of(nodes[i % 3], spec(prompt, count))
        model = await nodes[i % 3].model("dummy")
        async with nodes[i % 3].generation(spec(prompt, 5000, temperature=1.0), model) as generation:
          for _ in range(i % 4):
            await generation.__anext__()
        return None

      for i, text in enumerate(await asyncio.gather(*map(one, range(64)))):
        assert text is None or text == alone[i]
      await settled(nodes)
      await asyncio.sleep(0.05)
      assert (len(asyncio.all_tasks()), process.num_fds()) == before

  run(scenario)


@pytest.mark.slow
def test_64_requests_over_http_to_a_ring_of_real_processes(model_home: Path) -> None:
  """Line 7 with the real model: every fifth client goes away in the middle."""
  draw = random.Random(11)
  wanted = [(prose(draw.randint(5, 200), 5000 + i), draw.randint(2, 40)) for i in range(64)]
  with ring(model_home, 2) as nodes:
    expected = ask(nodes[0], [prompt for prompt, _ in wanted], 40, together=False)
    processes = [psutil.Process(node.process.pid) for node in nodes]
    before = [(process.num_threads(), process.num_fds()) for process in processes]

    async def one(load: Load, i: int) -> Any:
      prompt, count = wanted[i]
      if i % 5:
        return (await load.complete(prompt, count)).text
      task = asyncio.create_task(load.complete(prompt, 2000))
      await asyncio.sleep(0.2 + draw.random())
      task.cancel()
      await asyncio.gather(task, return_exceptions=True)
      return None

    async def work() -> list[Any]:
      async with Load(nodes[0].url, "smollm2-135m") as load:
        return list(await asyncio.gather(*(one(load, i) for i in range(64))))

    for text, whole in zip(asyncio.run(work()), expected, strict=True):
      assert text is None or whole.startswith(text.rstrip("\ufffd"))
    ask(nodes[0], ["one more"], 2, together=False)
    after = [(process.num_threads(), process.num_fds()) for process in processes]
    # the thread pool of asyncio, of processors + 4, fills when it is first needed
    workers = (psutil.cpu_count() or 1) + 4
    assert all(a[0] <= b[0] + workers and a[1] <= b[1] + 2 for a, b in zip(after, before, strict=True)), (before, after)
    status, topology = nodes[0].get("/v1/topology")
    assert status == 200 and json.dumps(topology)
