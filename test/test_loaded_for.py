"""What a model is loaded for (`--context`, `--parallel`), which models stay (`--keep`), and what a node offers by itself."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from exo import system_figures
from exo.config import Config, config_from
from exo.errors import ConfigError, InvalidRequestError, ModelTooLargeError, QueueFullError
from exo.inference.engines import probe_engine
from exo.inference.sampling import SamplingParams
from exo.networking.local.local_mesh import LocalNetwork
from exo.networking.peer_messages import WorkerOffer
from exo.orchestration.generation import GenerationSpec
from exo.orchestration.model_list import list_models
from exo.orchestration.node import Node
from exo.topology.fit import Where, fit
from exo.topology.loaded_for import WHAT_FITS, LoadedFor
from exo.topology.model_size import MIN_KV_TOKENS, ModelSize
from exo.topology.placements import load_strategy
from exo.topology.ring_state import ModelNeeds, RingState, WorkerState
from exo.worker.devices import offers_mb
from test.support.control_groups import entering, group
from test.support.local_rings import CONFIG, local_ring, make_node, run, runner_of, settled, spec, text_of
from test.support.nodes import NodeProcess, exo, ring, wait_until
from test.test_sick_surroundings import TREES, tree

MB = 2**20
PLACE = load_strategy("memory")
ROOMY = 1000


def needs(kv_tokens: int) -> ModelNeeds:
  """Eight layers of 10 MB, each with 4 kB of KV a token."""
  return ModelNeeds("m", ModelSize((10 * MB, ) * 8, 0, 0, 4096), kv_tokens)


def one_worker(usable_mb: int) -> RingState:
  return RingState((WorkerState("n0", "", 1, usable_mb * MB, usable_mb * MB), ))


# 80 MB of weights, and 32 MB for 1024 tokens of KV
@pytest.mark.parametrize(("kv_tokens", "usable_mb", "where", "missing_mb"), [
    (1024, 112, Where.HERE, 0),
    (4096, 112, Where.NOWHERE, 96),
    (4096, 208, Where.HERE, 0),
])
def test_line_4_the_kv_that_is_asked_for_decides_whether_a_model_fits(
    kv_tokens: int, usable_mb: int, where: Where, missing_mb: int
) -> None:
  found = fit(needs(kv_tokens), one_worker(usable_mb), "n0", PLACE)
  assert (found.where, found.missing_mb) == (where, missing_mb)
  if found.runs:
    assert found.max_context == kv_tokens
  else:
    with pytest.raises(ModelTooLargeError, match="96 MB are missing"):
      PLACE(needs(kv_tokens), one_worker(usable_mb))


def test_line_4_what_is_asked_for_in_tokens() -> None:
  """By a model of 8192 tokens: no more than that is ever needed for one request."""
  assert WHAT_FITS.kv_tokens(8192) == MIN_KV_TOKENS and WHAT_FITS.max_kv_tokens(8192) is None
  assert LoadedFor(4096).kv_tokens(8192) == 4096 and LoadedFor(4096).max_kv_tokens(8192) is None
  assert LoadedFor(parallel=4).kv_tokens(8192) == 4 * MIN_KV_TOKENS and LoadedFor(parallel=4
                                                                                  ).max_kv_tokens(8192) is None
  assert LoadedFor(10**6, 4).kv_tokens(8192) == LoadedFor(10**6, 4).max_kv_tokens(8192) == 4 * 8192
  assert LoadedFor(10**6, 4).kv_tokens(None) == 4 * 10**6


@pytest.mark.parametrize(("flag", "number"), [("context", 1), ("context", 2**24 + 1), ("parallel", 0),
                                              ("parallel", 257)])
def test_line_4_what_nobody_could_mean_is_refused_with_the_flag(flag: str, number: int) -> None:
  with pytest.raises(ConfigError, match=f"--{flag} must be at (least|most)"):
    config_from({flag: number}, {"EXO_HOME": "/nowhere"})


def test_line_4_a_ring_plans_by_the_flags_of_whoever_makes_the_plan(tmp_path: Path) -> None:
  """Of two nodes one has flags: for its clients both load a part with these bounds, for the other's what fits."""
  async def scenario() -> None:
    bounded = replace(CONFIG, context=64, parallel=2)
    async with local_ring(tmp_path, ROOMY, ROOMY, configs=[bounded]) as (nodes, _):
      (expected, ) = await text_of(nodes[1], spec("hello", 30))
      assert [node.plans.rooms[0].loaded_for for node in nodes if node.plans.rooms] == [WHAT_FITS]
      assert await text_of(nodes[0], spec("hello", 30)) == [expected]
      (room, ) = [room for node in nodes for room in node.plans.rooms if room.loaded_for != WHAT_FITS]
      assert room.loaded_for == LoadedFor(64, 2)
      assert (room.max_sequences, room.max_context, room.max_kv_tokens) == (2, 64, 128)
      for node in nodes:
        memories = {runner_of(opened).model.memory.max_context for opened in node.plans._open.values()}
        assert memories == {64, 8192}
      assert str(
          room
      ) == "loaded for 2 requests at once of up to 64 tokens; room for 128 tokens, 64 in one request, 2 at once"
      # more at once than it is loaded for wait for their turn
      texts = await text_of(nodes[0], spec("hello", 30, n=5))
      assert texts == [expected] * 5
      with pytest.raises(InvalidRequestError, match="70 tokens, the context has room for 64"):
        await text_of(nodes[0], spec("x" * 70, 4))
      assert await text_of(nodes[1], spec("x" * 70, 4))
      await settled(nodes)

  run(scenario)


def test_line_4_what_does_not_fit_is_refused_with_the_mb_that_are_missing(tmp_path: Path) -> None:
  """256 requests of 8192 tokens: 128 MB of KV with the dummy model."""
  async def scenario() -> None:
    everything = replace(CONFIG, context=8192, parallel=256)
    async with local_ring(tmp_path, 50, configs=[everything]) as ((node, ), _):
      with pytest.raises(ModelTooLargeError, match=r"\d+ MB are missing") as caught:
        await text_of(node, spec("hello"))
      assert caught.value.details["missing_mb"] == 128 - 50
    less = replace(CONFIG, context=8192, parallel=2)
    async with local_ring(tmp_path, 50, configs=[less]) as ((node, ), _):
      assert await text_of(node, spec("hello"))

  run(scenario)


def test_line_4_a_node_tells_what_models_are_loaded_for_and_refuses_what_is_longer(tmp_path: Path) -> None:
  flags = ("--inference-engine", "dummy", "--default-model", "dummy", "--context", "100", "--parallel", "3")
  with ring(tmp_path, 2, *flags) as nodes:
    listed = nodes[0].get("/v1/models/dummy")[1]
    assert (listed["context_length"], listed["max_model_len"]) == (8192, 100)
    for stream in (False, True):
      status, answer = nodes[0].chat("x" * 200, stream=stream)
      assert status == 400 and answer["error"]["code"] == "context_length_exceeded"
      assert "the context of dummy is 100, as --context says: its own is 8192" in answer["error"]["message"]
      assert "tokens" in answer["error"]["message"]
    status, answer = nodes[0].chat("hello")
    assert [node.get("/v1/models/dummy")[1]["max_model_len"] for node in nodes] == [100, 100]
    assert status == 200 and answer["usage"]["total_tokens"] <= 100
    entries = []
    for node in nodes:
      wait_until(lambda node=node: node.get("/v1/topology")[1]["loaded"], 10, "news of what is loaded")
      entries += node.get("/v1/topology")[1]["loaded"]
    assert entries[0] == entries[1] and len(entries) == 2
    assert entries[0]["model"] == "dummy" and entries[0]["loaded_for"] == {"context": 100, "parallel": 3}
    assert entries[0]["room"] == {"context": 100, "parallel": 3, "kv_tokens": 300}
    status = exo(tmp_path, "status", nodes[1].node_id)
    assert "loaded    dummy: loaded for 3 requests at once of up to 100 tokens; room for 300 tokens" in status.stdout


def test_line_3_exo_models_counts_the_kv_of_what_is_asked_for(tmp_path: Path) -> None:
  """SmolLM2 takes 180 kB of KV a token as floats: 64 whole contexts are beyond any small machine, one of 1024 tokens is not."""
  def fits(*flags: str) -> tuple[bool, int]:
    listed = exo(tmp_path, "models", "--json", "--inference-engine", "onnx", "--max-memory", "1500", *flags)
    (found, ) = [model for model in json.loads(listed.stdout) if model["id"] == "smollm2-135m"]
    return found["fits"], found["fit"]["missing_mb"]

  assert fits("--context", "1024") == (True, 0)
  can, missing_mb = fits("--context", "8192", "--parallel", "64")
  assert not can and missing_mb > 8192 * 64 * 30 * 384 * 2 // MB - 1500


# several models: with these bounds each of the golden ones takes 192 MB, nearly all of it for caches

BOUNDS = replace(CONFIG, context=512, parallel=256)
ONE, TWO = 300, 500  # MB in which so many of them fit
ONNX = (probe_engine("onnx"), )


@asynccontextmanager
async def nodes_with(tmp_path: Path, goldens: Path, *offers:
                     tuple[int, Config]) -> AsyncIterator[tuple[list[Node], Callable[..., Awaitable[str]]]]:
  """Nodes n0, n1, … that offer so many MB to the models a, b and c, and what answers with one of them, on n0."""
  shelf, network, nodes = tmp_path / "shelf", LocalNetwork(), list[Node]()
  for name, golden in (("a", "llama"), ("b", "qwen2"), ("c", "mistral")):
    shutil.copytree(goldens / golden, shelf / name)
  for i, (memory_mb, config) in enumerate(offers):
    offer = WorkerOffer("cpu", ONNX, memory_mb)
    nodes.append(make_node(tmp_path, network, f"n{i}", memory_mb, [shelf], [offer], config))

  async def answer(name: str, max_tokens: int = 4) -> str:
    wanted = GenerationSpec(uuid.uuid4().hex, (1, 2, 3), max_tokens, frozenset(), SamplingParams(temperature=0))
    model = await nodes[0].model(name)
    async with nodes[0].generation(wanted, model) as generation:
      return " ".join([str(token.token_id) async for delivery in generation for token in delivery.tokens])

  try:
    for node in nodes:
      await node.start()
    yield nodes, answer
  finally:
    for node in nodes:
      await node.stop()


def loaded(node: Node) -> set[str]:
  return {shard.model_id for shard in node.plans.shards(node.workers[0])}


@asynccontextmanager
async def held_up(node: Node) -> AsyncIterator[None]:
  """Steps of this node's device wait until the end of the block, and with them what they are for."""
  gate = threading.Event()
  holding = asyncio.create_task(node.workers[0].thread.run(gate.wait, 30))
  try:
    yield
  finally:
    gate.set()
    await holding


def test_line_4_what_has_not_been_used_for_longest_gives_way(tmp_path: Path, goldens: Path) -> None:
  async def scenario() -> None:
    async with nodes_with(tmp_path, goldens, (TWO, BOUNDS)) as ((node, ), answer):
      first = await answer("a")
      await answer("b")
      assert loaded(node) == {"a", "b"}
      await answer("a")
      await answer("c")
      assert loaded(node) == {"a", "c"}
      await answer("b")
      assert loaded(node) == {"b", "c"} and await answer("a") == first

  run(scenario)


def test_line_4_what_is_kept_never_gives_way(tmp_path: Path, goldens: Path) -> None:
  """It is loaded when it is first asked for. Where what is kept leaves no room, that is said at once, by lists too."""
  async def scenario() -> None:
    async with nodes_with(tmp_path, goldens, (TWO, replace(BOUNDS, keep=("a", )))) as ((node, ), answer):
      assert not loaded(node)
      first = await answer("a")
      for name in ("b", "c", "b", "c"):
        await answer(name)
        assert loaded(node) == {"a", name}
      assert [(room.model_id, room.kept) for room in node.plans.rooms] == [("a", True), ("c", False)]
      assert await answer("a") == first
    async with nodes_with(tmp_path / "both", goldens, (TWO, replace(BOUNDS, keep=("a", "b")))) as ((node, ), answer):
      await answer("a")
      await answer("b")
      async with held_up(node):
        with pytest.raises(ModelTooLargeError, match=r"beside \d+ MB of models that it keeps") as caught:
          await answer("c")
      assert 50 < int(str(caught.value.details["missing_mb"])) < 250 and loaded(node) == {"a", "b"}
      (found, ) = [model for model in await list_models(node, everything=True) if model.id == "c"]
      assert found.fit.where is Where.NOWHERE and found.fit.missing_mb == caught.value.details["missing_mb"]
      assert "MB of models that are kept" in found.fit.reason
      kept = [model for model in await list_models(node, everything=True) if model.id in "ab"]
      assert [model.fit.where for model in kept] == [Where.HERE, Where.HERE]

  run(scenario)


def test_line_4_a_ring_knows_what_each_node_keeps(tmp_path: Path, goldens: Path) -> None:
  """Of two nodes that hold a model together one keeps it: the other one's clients hear that there is no room for more."""
  async def scenario() -> None:
    async with nodes_with(tmp_path, goldens, (150, BOUNDS), (150, replace(BOUNDS, keep=("a", )))) as (nodes, answer):
      await answer("b")
      first = await answer("a")
      assert [loaded(node) for node in nodes] == [{"a"}, {"a"}]
      await _until(lambda: any(worker.pinned for worker in nodes[0].planner.workers(nodes[0].hello)))
      with pytest.raises(ModelTooLargeError, match=r"n1 can use \d+ MB beside \d+ MB of models that it keeps"):
        await answer("b")
      assert await answer("a") == first

  run(scenario)


def test_line_4_a_model_to_keep_that_is_none_is_an_error_at_the_start(tmp_path: Path) -> None:
  started = exo(tmp_path, "--inference-engine", "dummy", "--keep", "lama-3.2-3b", timeout_s=30)
  assert started.returncode != 0
  assert "--keep: there is no model 'lama-3.2-3b'. Did you mean llama-3.2-3b" in started.stderr


@pytest.mark.parametrize("count", [1, 2])
def test_line_4_what_finds_no_room_waits_and_is_refused_when_its_time_is_over(
    tmp_path: Path, goldens: Path, count: int
) -> None:
  """While another model is in use. Of two who wait, the first is refused after a second; the other one's turn comes."""
  async def scenario() -> None:
    offers = [(ONE // count, replace(BOUNDS, queue_timeout=1))] * count
    async with nodes_with(tmp_path, goldens, *offers) as (nodes, answer):
      first = await answer("a")
      async with held_up(nodes[-1]):
        using = asyncio.create_task(answer("a"))
        await _until(lambda: any(node.plans.busy for node in nodes))
        early = asyncio.create_task(answer("b"))
        await asyncio.sleep(0.6)
        late = asyncio.create_task(answer("b"))
        why = r"^its turn did not come within 1 s \(--queue-timeout\): n\d has no room for b while a is in use$"
        with pytest.raises(QueueFullError, match=why) as caught:
          await early
        assert caught.value.details["retry_after_s"] == 10
        assert not late.done() and not using.done() and [loaded(node) for node in nodes] == [{"a"}] * count
      assert await using == first and await late
      assert [loaded(node) for node in nodes] == [{"b"}] * count and not nodes[0].planner.ailments()

  run(scenario)


def test_line_4_models_that_want_the_same_room_of_a_ring_at_once_all_get_it(tmp_path: Path, goldens: Path) -> None:
  """None waits with a part of its own for the part of another one that waits for it."""
  async def scenario() -> None:
    async with nodes_with(tmp_path, goldens, *[(ONE // 2, BOUNDS)] * 2) as (nodes, answer):
      alone = {name: await answer(name) for name in "abc"}
      for _ in range(3):
        answers = await asyncio.gather(*(answer(name) for name in "abcabc"))
        assert dict(zip("abcabc", answers, strict=True)) == alone
      assert not nodes[0].planner.ailments() and not nodes[1].planner.ailments()

  run(scenario)


# what a node offers by itself


@pytest.mark.parametrize("name", TREES)
def test_line_4_the_limit_of_a_control_group_bounds_the_offer(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """Of either version, also where --max-memory says more, and of all workers together."""
  cgroup, mounts, files, memory_mb, *_ = TREES[name]
  groups = tree(tmp_path, cgroup, mounts, files)
  monkeypatch.setattr(system_figures, "own_groups", lambda: groups)
  assert offers_mb(["cpu"], None) == offers_mb(["cpu"], 10**6) == [memory_mb]
  assert offers_mb(["one", "two"], None) == offers_mb(["one", "two"], 10**6) == [memory_mb // 2] * 2
  assert offers_mb(["cpu"], 64) == [64]


def test_line_4_a_node_in_a_small_control_group_announces_no_more_than_that(tmp_path: Path) -> None:
  with group("memory", {"memory.limit_in_bytes": str(150 * MB)}) as procs:
    flags = ("--inference-engine", "dummy", "--default-model", "dummy", "--discovery-module", "none")
    node = NodeProcess(tmp_path, *flags, node_id="small", prefix=entering(procs))
    try:
      told = node.wait_ready().get("/v1/topology")[1]["nodes"]["small"]
    finally:
      node.stop()
    assert 140 < told["memory"] <= 150 and [worker["memory"] for worker in told["workers"]] == [told["memory"]]
    assert told["workers"][0]["free_memory"] < 150


async def _until(condition: Callable[[], bool]) -> None:
  async with asyncio.timeout(10):
    while not condition():  # noqa: ASYNC110 - of what another node says there is no event
      await asyncio.sleep(0.02)
