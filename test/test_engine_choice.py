"""Which engine runs a model: of those that can, the one measured fastest, and what is broken costs nothing but itself."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from exo.errors import EngineError, UnsupportedModelError
from exo.inference.dummy.checkpoint import DummyCheckpoint
from exo.inference.engine_names import engine_names
from exo.inference.engine_news import MAX_SETTLED, EngineNews
from exo.inference.engines import offered_engines, probe_engine
from exo.inference.model_facts import ModelFacts
from exo.inference.offer import EngineOffer, EngineSpeed, Suitability, choose, in_order, suitability, why_none
from exo.inference.repertoire import Repertoire
from exo.inference.shard import Shard
from exo.networking.local.local_mesh import LocalNetwork
from exo.networking.peer_messages import WorkerOffer
from exo.orchestration.model_fit import RingWorker
from exo.orchestration.node import Node
from exo.orchestration.ring_view import ring_view
from exo.topology.model_size import ModelSize
from exo.topology.ring_state import WorkerState
from exo.topology.weight_memory import WeightMemory
from exo.worker import engine_speeds
from exo.worker.engine_speeds import EngineSpeeds
from exo.worker.engines import WorkerEngines
from exo.worker.worker import Worker, WorkerOptions
from test.support.engine_folders import add_engine
from test.support.engine_rings import scores
from test.support.local_rings import make_node, run
from test.support.sickness import until

LLAMA = ModelFacts(
    "llama", "llama", "safetensors", frozenset({"BF16"}), frozenset({"model.norm.weight"}), frozenset({"default"}), 64,
    "silu"
)
SHARD = Shard("dummy", 0, 7, 8)
SIZE = ModelSize((2**20, ) * 4, 0, 0, 0)


def offer(name: str, rank: int = 10, models: tuple[str, ...] = ("llama", ), **more: object) -> EngineOffer:
  return replace(EngineOffer(name, "CPU", "", rank, repertoire=Repertoire(models)), **more)  # type: ignore[arg-type]


def names(offers: Sequence[EngineOffer]) -> list[str]:
  return [offer.name for offer in offers]


# the order


def test_line_2_engines_are_tried_as_they_declare_themselves_before_anything_is_measured() -> None:
  assert names(in_order([offer("a", 5),
                         offer("b", 20),
                         offer("c", -1),
                         offer("d", 30, missing="is not installed")])) == ["b", "a", "c", "d"]


def test_line_2_the_fastest_at_a_prompt_of_512_and_128_decoded_comes_first() -> None:
  reader, writer = EngineSpeed(2000, 20), EngineSpeed(200, 60)  # 6.7 s and 4.7 s
  assert reader.seconds == pytest.approx(512 / 2000 + 128 / 20) and writer.seconds < reader.seconds
  assert names(in_order([offer("a", 90), offer("b", 20, speed=reader),
                         offer("c", 10, speed=writer)])) == ["c", "b", "a"]


def test_line_2_of_those_that_can_the_first_is_taken_and_else_each_has_its_reason() -> None:
  offers = [offer("a", models=("mamba", )), offer("b", missing="is not installed (pip install b)"), offer("c")]
  chosen = choose(offers, LLAMA)
  assert chosen is not None and chosen.name == "c"
  assert choose(offers[:2], LLAMA) is None
  assert why_none(offers[:2], LLAMA) == "a has no model of type 'llama'; b is not installed (pip install b)"
  # what would not help is not advised
  other = replace(LLAMA, model_type="rwkv", repository_type="rwkv")
  assert why_none(offers[1:2], other) == "b has no model of type 'rwkv'"


def test_line_2_exactness_decides_about_small_models_of_floats() -> None:
  offers = [offer("a", 20, rounds=True), offer("b", 10)]
  small, large = replace(LLAMA, n_weights=10**6), replace(LLAMA, n_weights=10**9)
  packed = replace(small, encodings=frozenset({"F32", "Q4_K"}))
  assert [choose(offers, facts) for facts in (small, large, packed)] == [offers[1], offers[0], offers[0]]
  assert choose(offers[:1], small) == offers[0]
  assert probe_engine("onnx").rounds and not probe_engine("onnx", "8").rounds


def test_line_2_memory_decides_about_models_that_are_large_for_a_worker() -> None:
  """An engine that expands the weights is the fastest, and takes what fits; another one what does not."""
  wide, narrow = offer("a", 20, weights=WeightMemory(packed=4.0)), offer("b", 10, weights=WeightMemory(packed=1.0))
  size = ModelSize((10**8, ) * 10, 0, 0, 0, n_weights=2 * 10**9)
  for mb, first in ((9000, "a"), (7000, "b"), (1000, "b")):
    engines = WorkerEngines([wide, narrow], mb * 10**6)
    for shard in (Shard("m", 0, 9, 10), Shard("m", 0, 4, 10)):
      assert engines.able(LLAMA, shard, size, "f")[0].name == first
    state = WorkerState("n", "cpu", 1, mb * 10**6, 0)
    assert RingWorker(state, (wide, narrow)).for_model("m", LLAMA, "f",
                                                       size).weights == engines.able(LLAMA, shard, size, "f")[0].weights
  engines.settle("f", "a")
  assert engines.able(LLAMA, shard, size, "f")[0].name == "a"


@pytest.mark.parametrize(("change", "why"), [
    ({"encodings": frozenset({"BF16", "F8_E4M3"}), "packing": "fp8"}, "packed as F8_E4M3 (fp8)"),
    ({"tensors": frozenset({"model.layers.#.self_attn.sinks"})}, "has no place for model.layers.#.self_attn.sinks"),
    ({"ropes": frozenset({"proportional"})}, "the rotary embedding proportional"),
    ({"activation": "relu2"}, "the activation 'relu2'"),
    ({"rotary_dim": 12}, "cannot turn 12 numbers of a head"),
])  # yapf: disable
def test_what_a_file_holds_and_an_engine_would_not_read_is_named(change: dict[str, object], why: str) -> None:
  repertoire = probe_engine("onnx").repertoire
  assert repertoire.cannot(LLAMA) is None
  assert why in (repertoire.cannot(replace(LLAMA, **change)) or "")  # type: ignore[arg-type]


def test_an_engine_that_reads_one_kind_of_file_says_which() -> None:
  repertoire = Repertoire(("llama", ), containers=("gguf", ))
  assert repertoire.cannot(LLAMA) == "reads no safetensors files: take the model as gguf"
  assert repertoire.cannot(replace(LLAMA, container="gguf")) is None


def cutting(can_cut: bool, name: str = "a", rank: int = 10) -> EngineOffer:
  return offer(name, rank, repertoire=Repertoire(models=("llama", ), uncut=() if can_cut else ("llama", )))


def test_line_2_a_worker_shares_a_model_with_an_engine_that_can_cut_it() -> None:
  assert suitability([cutting(False)], LLAMA) == Suitability(cutting(False), whole_only=True)
  both = [cutting(False), cutting(True, "b", 5)]
  assert suitability(both, LLAMA) == Suitability(both[1])
  assert suitability([offer("a", models=("mamba", ))], LLAMA).cannot == "a has no model of type 'llama'"


def test_line_2_a_worker_says_of_each_engine_why_it_cannot_run_a_part() -> None:
  engines = WorkerEngines([offer("a", models=("mamba", )), cutting(False, "b"), cutting(True, "c")], 2**30)
  part, whole = Shard("m", 0, 1, 4), Shard("m", 0, 3, 4)
  assert names(engines.able(LLAMA, part, SIZE, "")) == ["c"] and names(engines.able(LLAMA, whole, SIZE, "")
                                                                       ) == ["b", "c"]
  engines.give_up("c", "libc is gone")
  with pytest.raises(UnsupportedModelError) as refusal:
    engines.able(LLAMA, part, SIZE, "")
  assert str(
      refusal.value
  ).endswith(": a has no model of type 'llama'; b can only run it whole, on one worker; c is broken: libc is gone")
  with pytest.raises(UnsupportedModelError, match="run m.*: b can only run it whole, on one worker$"):
    WorkerEngines([cutting(False, "b")], 2**30).able(LLAMA, part, SIZE, "")


def added(*wanted: str) -> tuple[EngineOffer, ...]:
  """Of these engines, in the order of choice."""
  return tuple(offer for offer in offered_engines("auto") if offer.name in wanted)


# what is broken

DUMMY_ENGINE = "from exo.inference.dummy.engine import create\n"


def load_and_close(offers: Sequence[EngineOffer]) -> tuple[str, ...]:
  """Which engines a worker has imported once it has loaded the dummy model and proved itself."""
  async def scenario() -> tuple[str, ...]:
    worker = Worker("cpu", "here", offers, 2**30, WorkerOptions())
    try:
      await worker.unload(await worker.load(SHARD, DummyCheckpoint()))
      await worker._renew()
      return worker.engines.in_use
    finally:
      await worker.close()

  return asyncio.run(scenario())


@pytest.mark.parametrize(
    "broken", [
        "import a_library_that_is_not_there",
        "raise SystemExit(3)",
        "raise AttributeError('libx.so: undefined symbol: begin')",
        "def create():\n  raise OSError('libx.so cannot be opened')",
    ]
)
def test_line_2_a_broken_library_costs_nothing_but_its_engine(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  add_engine(tmp_path, monkeypatch, "first_of_two", 99, broken)
  add_engine(tmp_path, monkeypatch, "second_of_two", 98, DUMMY_ENGINE)
  offers = added("first_of_two", "second_of_two")
  assert names(offers) == ["first_of_two", "second_of_two"]
  assert load_and_close(offers[:2]) == ("second_of_two", )
  with pytest.raises(Exception, match="the library of engine first_of_two does not work"):
    load_and_close(offers[:1])


def test_line_2_a_probe_that_fails_is_an_engine_that_cannot_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  add_engine(tmp_path, monkeypatch, "no_probe", 99, DUMMY_ENGINE)
  (tmp_path / "no_probe" / "probe.py").write_text("import a_library_that_is_not_there")
  assert "no_probe" in engine_names()
  assert "a_library_that_is_not_there" in probe_engine("no_probe").missing
  assert offered_engines("auto")[0].available


def test_line_2_a_model_that_one_engine_fails_at_goes_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  add_engine(
      tmp_path, monkeypatch, "fails_at_it", 99, """
import weakref
from exo.errors import EngineError
from exo.inference.engine import InferenceEngine

class Weights:
  held = []

def load(*what):
  weights = Weights()
  Weights.held.append(weakref.ref(weights))
  raise EngineError("this one is too hard")

def create():
  return InferenceEngine("fails_at_it", load)
"""
  )
  add_engine(
      tmp_path, monkeypatch, "succeeds", 98, """
from exo.inference.dummy import engine as dummy
from exo.inference.engine import InferenceEngine
from exo.inference.fails_at_it.engine import Weights

def load(*what):
  assert [ref() for ref in Weights.held] == [None], "there would be two at once"
  return dummy.create().load(*what)

def create():
  return InferenceEngine("succeeds", load)
"""
  )
  offers = added("fails_at_it", "succeeds")

  async def scenario() -> None:
    worker = Worker("cpu", "here", offers, 2**30, WorkerOptions())
    await worker.unload(await worker.load(SHARD, DummyCheckpoint()))
    await worker.close()
    worker = Worker("cpu", "here", offers[:1], 2**30, WorkerOptions())
    with pytest.raises(EngineError, match="too hard"):
      await worker.load(SHARD, DummyCheckpoint())
    await worker.close()

  asyncio.run(scenario())


def test_line_2_what_no_engine_can_run_is_refused_with_each_reason() -> None:
  async def scenario() -> None:
    worker = Worker("cpu", "here", offered_engines("auto"), 2**30, WorkerOptions())
    with pytest.raises(UnsupportedModelError, match="onnx has no model of type 'dummy'"):
      await worker.load(SHARD, DummyCheckpoint())
    await worker.close()

  asyncio.run(scenario())


# figures


def speeds(folder: Path, **more: object) -> EngineSpeeds:
  settings = {"chip": "a chip", "threads": 1, "quantize": None} | more
  return EngineSpeeds(folder, **settings)  # type: ignore[arg-type]


def test_line_2_figures_are_kept_by_device_engine_and_library(tmp_path: Path) -> None:
  a, b = offer("a", 20, version="1"), offer("b", 10, version="1")
  kept = speeds(tmp_path)
  assert names(kept.unknown("cpu", [a, b])) == ["a", "b"] and kept.unknown("cpu", [a]) == []
  kept.keep("cpu", {a: EngineSpeed(100, 10), b: EngineSpeed(1000, 100)})
  assert names(speeds(tmp_path).ordered("cpu", [a, b])) == ["b", "a"] and speeds(tmp_path).unknown("cpu", [a, b]) == []
  for other in (speeds(tmp_path, chip="another"), speeds(tmp_path, threads=2), speeds(tmp_path, quantize="8")):
    assert names(other.ordered("cpu", [a, b])) == ["a", "b"]
  assert names(kept.unknown("cpu", [a, replace(b, version="2")])) == ["b"]
  assert kept.ordered("gpu0", [a])[0].speed is None
  assert names(kept.ordered("cpu", [a, replace(b, device="GPU")])) == ["a", "b"]  # a has a figure, b none


FAST, SLOW = EngineSpeed(1000, 100), EngineSpeed(100, 10)


def test_line_2_figures_decide_about_what_is_loaded_later_and_never_about_what_has_been_run_here() -> None:
  engines, shard = WorkerEngines([offer("a", 20), offer("b", 10)], 2**30), Shard("m", 0, 3, 4)
  engines.settle("run before", "a")
  engines.learn({"a": SLOW, "b": FAST})
  assert names(engines.offers) == ["b", "a"] and engines.first.name == "b"
  assert names(engines.able(LLAMA, shard, SIZE, "run before")) == ["a", "b"]
  assert names(engines.able(LLAMA, shard, SIZE, "another")) == ["b", "a"]
  engines.give_up("a", "liba is gone from /usr/lib/liba.so")
  assert names(engines.able(LLAMA, shard, SIZE, "run before")) == ["b"]
  assert engines.news.broken == {"a": "liba is gone from liba.so"}
  # others reckon with the same engine
  heard = engines.news
  worker = RingWorker(WorkerState("n", "cpu", 1, 0, 0), heard.of([offer("a", 20), offer("b", 10)]), heard.settled)
  assert worker.engines == engines.offers
  for i in range(2 * MAX_SETTLED):
    engines.settle(f"model {i}", "b")
  assert len(engines.news.settled) == MAX_SETTLED and "run before" not in engines.news.settled


def test_line_2_every_node_reckons_with_the_engine_that_a_worker_would_take() -> None:
  narrow, wide = WeightMemory(1.0), WeightMemory(4.0)
  greeted = [offer("a", 20, weights=narrow), offer("b", 10, weights=wide)]
  state, news = WorkerState("n", "cpu", 1, 0, 0), EngineNews({"a": SLOW, "b": FAST}, {}, {"run before": "a"})
  for said, expected in ((EngineNews(), [narrow, narrow]), (news, [wide, narrow])):
    worker = RingWorker(state, said.of(greeted), said.settled)
    assert [worker.for_model("m", LLAMA, files).weights for files in ("another", "run before")] == expected


NAMED_ENGINE = """
from exo.inference.onnx import engine as onnx
from exo.inference.engine import InferenceEngine

def load(*what):
  stage = onnx.create().load(*what)
  stage.made_by = {name!r}
  return stage

def create():
  return InferenceEngine({name!r}, load)
"""


def test_line_2_a_running_ring_turns_to_the_faster_engine_for_what_it_has_not_run(
    goldens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """A model that was loaded stays with its engine, also when it is loaded again; another one gets the faster, on all nodes."""
  for name, rank in (("first", 99), ("faster", 98)):
    add_engine(tmp_path / "engines", monkeypatch, name, rank, NAMED_ENGINE.format(name=name))
  engines = added("first", "faster")

  def loaded(node: Node) -> dict[str, str]:
    return {o.plan.model_id: o.stages[i].loaded.model.made_by for o in node.plans._open.values() for i in o.stages}

  async def scenario() -> None:
    network, ids = LocalNetwork(), list(range(20))
    offers = (WorkerOffer("cpu", engines, 1000), )
    nodes = [make_node(tmp_path, network, f"n{i}", 1000, [goldens], offers) for i in range(2)]
    for node in nodes:
      await node.start()
    before = await scores(nodes[0], "llama", ids)
    assert [loaded(node) for node in nodes] == [{"llama": "first"}] * 2
    for node in nodes:
      await node.workers[0].learn({"first": SLOW, "faster": FAST})

    def news_is_out() -> bool:
      return all(w.engines[0].name == "faster" for node in nodes for w in node.planner.workers(node.hello))

    await until(news_is_out, "the news")
    for node in nodes:
      told = {view.node_id: (view.engine, view.workers[0].engines) for view in ring_view(node).nodes}
      assert told == dict.fromkeys(("n0", "n1"), ("faster", ("faster", "first")))
    assert (await scores(nodes[1], "llama", ids) == before).all()
    await until(lambda: all(node.plans.idle for node in nodes), "the end of all requests")
    for node in nodes:
      await node.plans.close_model("llama")
    assert [loaded(node) for node in nodes] == [{}] * 2
    assert (await scores(nodes[0], "llama", ids) == before).all()
    assert [loaded(node) for node in nodes] == [{"llama": "first"}] * 2
    await scores(nodes[1], "qwen2", ids)
    assert [loaded(node) for node in nodes] == [{"llama": "first", "qwen2": "faster"}] * 2
    for node in nodes:
      await node.stop()

  run(scenario)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"x": 1}', '{"x": [0, 1]}', '{"x": ["a", "b"]}', "{}"])
def test_figures_that_are_none_change_nothing(text: str, tmp_path: Path) -> None:
  (tmp_path / "engine_speeds.json").write_text(text)
  assert names(speeds(tmp_path).ordered("cpu", [offer("a", 5), offer("b", 6)])) == ["b", "a"]
  for bad in (float("inf"), float("nan"), 0.0, -1.0):
    speeds(tmp_path).keep("cpu", {offer("a"): EngineSpeed(bad, 1.0)})
    assert speeds(tmp_path).ordered("cpu", [offer("a")])[0].speed is None


def learn(folder: Path, offers: Sequence[EngineOffer], busy: Callable[[], bool],
          for_s: float) -> dict[str, list[float]]:
  async def scenario() -> None:
    worker = Worker("cpu", "here", offers, 2**30, WorkerOptions())
    try:
      async with asyncio.timeout(for_s):
        await speeds(folder).learn([worker], busy)
    except TimeoutError:
      pass
    finally:
      await worker.close()
    known = speeds(folder).known("cpu", offers)
    assert worker.engines.news.speeds == known and worker.engines.offers == in_order(worker.engines.offers)
    again = WorkerEngines(worker.engines.offers, 0)
    again.learn(known)
    assert again.news == EngineNews(), "that is in its greeting"

  asyncio.run(scenario())
  file = folder / "engine_speeds.json"
  return json.loads(file.read_text()) if file.exists() else {}


def test_a_measurement_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  for name, value in (("_QUIET_S", 0.1), ("_POLL_S", 0.05), ("_MEASURE_S", 0.2)):
    monkeypatch.setattr(engine_speeds, name, value)
  told: list[str] = []

  async def scenario() -> None:
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
    worker = Worker("cpu", "here", [offer("a"), offer("b")], 2**30, WorkerOptions())
    await speeds(tmp_path).learn([worker], lambda: False)
    assert worker.engines.news == EngineNews()
    await worker.close()
    for _ in range(40):  # until both processes are seen to be gone
      await asyncio.sleep(0.05)
    gc.collect()

  asyncio.run(scenario())
  assert told == [] and not (tmp_path / "engine_speeds.json").exists()


@pytest.mark.timeout(300)
def test_line_2_engines_are_measured_while_nobody_wants_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(engine_speeds, "_QUIET_S", 0.2)
  monkeypatch.setattr(engine_speeds, "_POLL_S", 0.05)
  offers = [o for name in ("onnx", "mlx") if (o := probe_engine(name)).available]
  if len(offers) < 2:
    pytest.skip("there is no choice here")
  assert learn(tmp_path, offers, lambda: True, 2) == {}
  broken = replace(offers[0], name="not_an_engine")
  found = learn(tmp_path, [broken, *offers], lambda: False, 250)
  assert len(found) == 2 and all(0 < number < 1e6 for pair in found.values() for number in pair)
  assert speeds(tmp_path).ordered("cpu", offers)[0].speed is not None
