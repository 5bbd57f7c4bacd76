"""Placement as a pure function: every layer once and in order, within memory, by those that can, the same on every node.

What holds of every strategy is tested with each file in `placement/`; a real ring serves by one that was added to it.
"""

from __future__ import annotations

import importlib
import itertools
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import exo.topology.placement
from exo.errors import ConfigError, EngineUnavailableError, ModelTooLargeError, PeerUnreachableError
from exo.topology.layer_fit import fit_layers
from exo.topology.model_size import ModelSize
from exo.topology.partitioning_strategy import Partition, map_partitions_to_shards
from exo.topology.placements import load_strategy, strategy_names
from exo.topology.ring_plan import RingPlan
from exo.topology.ring_state import ModelNeeds, RingState, WorkerState
from exo.topology.weight_memory import WeightMemory
from test.support.nodes import ROOT
from test.support.nodes import exo as exo_command
from test.support.nodes import ring as ring_of

MB = 2**20
NO_ROOM = (ModelTooLargeError, PeerUnreachableError, EngineUnavailableError)
memory = load_strategy("memory")

weights = st.sampled_from([WeightMemory(), WeightMemory(4.0, 4.0), WeightMemory(1.125), WeightMemory(packed=0.6)])
workers = st.builds(
    WorkerState,
    node_id=st.text("abcdef0123456789", min_size=1, max_size=4),
    worker=st.sampled_from(["cpu", "gpu0"]),
    incarnation=st.integers(1, 3),
    offered_bytes=st.integers(0, 2000).map(lambda mb: mb * MB),
    usable_bytes=st.integers(0, 2000 * MB),
    weights=weights,
    cannot=st.sampled_from([None, None, None, "its engine cannot run this family"]),
    whole_only=st.sampled_from([False, False, False, True]),
)
rings = st.lists(workers, max_size=12, unique_by=lambda w: (w.node_id, w.worker)).map(tuple)
models = st.builds(
    lambda layers, ends, kv, tied, n: ModelNeeds("m", ModelSize(tuple(layers), *ends, kv, tied, n)),
    st.lists(st.integers(0, 300 * MB), min_size=1, max_size=24), st.tuples(*[st.integers(0, 200 * MB)] * 2),
    st.integers(0, 100_000), st.booleans(), st.sampled_from([0, 10**8, 10**9])
)


def plain(n_layers: int, layer_mb: int = 0, ends_mb: int = 0, kv_bytes: int = 0, tied: bool = False) -> ModelNeeds:
  return ModelNeeds("m", ModelSize((layer_mb * MB, ) * n_layers, ends_mb * MB, ends_mb * MB, kv_bytes, tied))


def ring(**memory_mb: int) -> RingState:
  return RingState(tuple(WorkerState(n, "", 1, mb * MB, mb * MB) for n, mb in memory_mb.items()))


def layers_of(plan: RingPlan) -> dict[str, int]:
  return {stage.node_id: stage.shard.layer_count for stage in plan.stages}


# what holds of every strategy


@pytest.mark.parametrize("name", strategy_names())
@given(model=models, told=rings, order=st.randoms(use_true_random=False))
def test_line_7_a_plan_is_whole_within_memory_and_of_able_workers_or_there_is_an_error(
    name: str, model: ModelNeeds, told: tuple[WorkerState, ...], order
) -> None:
  place = importlib.import_module(f"exo.topology.placement.{name}").place  # as it is, without the check of its plans
  state = RingState(told)
  able = {w.by: w for w in told if w.cannot is None}
  try:
    plan = place(model, state)
  except NO_ROOM as error:
    assert all(
        model_bytes(model, w) > min(w.offered_bytes, w.usable_bytes) for w in able.values()
    ), "one would do alone"
    if not told:
      assert isinstance(error, PeerUnreachableError)
    elif not able:
      assert isinstance(error, EngineUnavailableError)
    else:
      assert isinstance(error, ModelTooLargeError) and int(error.details["missing_mb"] or 0) >= 1
    with pytest.raises(type(error), match=re.escape(str(error))):
      place(model, RingState(tuple(order.sample(told, len(told)))))
    return
  assert [i for stage in plan.stages for i in stage.shard.layers] == list(range(model.n_layers))
  for stage in plan.stages:
    worker = able[stage.by]
    assert stage.shard.layer_count > 0 and (not worker.whole_only or len(plan.stages) == 1)
    held = worker.weights.stage_bytes(model.size, stage.shard.start_layer, stage.shard.end_layer + 1)
    assert held <= worker.offered_bytes and held <= worker.usable_bytes
  other = place(model, RingState(tuple(order.sample(told, len(told)))))
  assert other == plan and other.plan_id == plan.plan_id


def model_bytes(model: ModelNeeds, worker: WorkerState) -> int:
  return worker.weights.stage_bytes(model.size, 0, model.n_layers)


@given(rings, st.data())
def test_line_7_an_epoch_tells_memberships_apart_and_nothing_else(told: tuple[WorkerState, ...], data) -> None:
  epoch = RingState(told).epoch
  assert RingState(tuple(reversed(told))).epoch == epoch
  assert RingState(tuple(replace(w, usable_bytes=0) for w in told)).epoch == epoch, "what is free makes no new plans"
  able = [w for w in told if w.cannot is None]
  assert RingState(tuple(able)).epoch == epoch, "nor does one that takes no part"
  if able:
    one = data.draw(st.sampled_from(able))
    others = tuple(w for w in told if w is not one)
    for changed in ((), (replace(one, incarnation=one.incarnation + 1), ),
                    (replace(one, offered_bytes=one.offered_bytes + 1), )):
      assert RingState(others + changed).epoch != epoch


def test_line_7_a_worker_is_there_once() -> None:
  one = WorkerState("a", "", 1, MB, MB)
  with pytest.raises(ValueError, match="twice"):
    RingState((one, replace(one, offered_bytes=0)))


# the strategy `memory`


@given(
    st.dictionaries(st.text("abcdef", min_size=1, max_size=4), st.integers(0, 200_000), min_size=1, max_size=32),
    st.integers(1, 130)
)
def test_line_7_memory_divides_as_the_memory_weighted_ring_does(memory_mb: dict[str, int], n_layers: int) -> None:
  plan = memory(plain(n_layers), ring(**memory_mb))
  total, partitions, done = sum(memory_mb.values()), [], 0
  for node_id, mb in sorted(memory_mb.items(), key=lambda item: (item[1], item[0]), reverse=True):
    start, done = done, done + (mb if total else 1)
    partitions.append(Partition(node_id, start, round(done / (total or len(memory_mb)), 5)))
  assert [s.shard for s in plan.stages] == map_partitions_to_shards(partitions, n_layers, "m")


@given(
    st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=3),
    st.lists(st.integers(0, 4), min_size=1, max_size=5), st.integers(0, 3), st.booleans(), st.data()
)
def test_line_7_the_fit_is_the_nearest_of_all_divisions_and_so_is_what_is_missing(
    sizes: list[tuple[int, bool]], layer_mb: list[int], ends_mb: int, tied: bool, data
) -> None:
  """Compared with every division that there is, one after the other."""
  model = ModelNeeds("m", ModelSize(tuple(mb * MB for mb in layer_mb), ends_mb * MB, ends_mb * MB, 0, tied))
  there = tuple(WorkerState(f"n{i}", "", 1, mb * MB, mb * MB, whole_only=uncut) for i, (mb, uncut) in enumerate(sizes))
  every = [c for c in itertools.product(range(len(layer_mb) + 1), repeat=len(there)) if sum(c) == len(layer_mb)]
  wanted = data.draw(st.sampled_from(every))
  found = []
  for counts in every:
    if any(worker.whole_only and 0 < count < len(layer_mb) for worker, count in zip(there, counts, strict=True)):
      continue
    ends = list(itertools.accumulate(counts))
    missing = sum(
        max(0,
            worker.stage_bytes(model, end - count, end) - worker.room_bytes)
        for worker, count, end in zip(there, counts, ends, strict=True)
    )
    found.append((missing, sum(abs(a - b) for a, b in zip(counts, wanted, strict=True)), counts))
  missing, _, nearest = min(found)
  if not missing:
    assert fit_layers(model, RingState(there), there, wanted) == nearest
    return
  with pytest.raises(ModelTooLargeError) as caught:
    fit_layers(model, RingState(there), there, wanted)
  assert caught.value.details["missing_mb"] == missing // MB


def test_line_7_more_memory_than_layers_needs_no_index_error() -> None:
  """Version 0 made 2 shards of 3 partitions here and then indexed the third."""
  assert layers_of(memory(plain(16), ring(a=64000, b=1000, c=1000))) == {"a": 16}


def test_line_7_a_model_that_fits_no_single_node_is_split_and_a_ring_too_small_says_who_lacks_what() -> None:
  model = plain(30, layer_mb=3, ends_mb=30, kv_bytes=1536, tied=True)
  assert layers_of(memory(model, ring(a=110, b=110))) == {"b": 15, "a": 15}
  with pytest.raises(ModelTooLargeError) as caught:
    memory(model, ring(a=110))
  assert caught.value.details["missing_mb"] == 55
  assert "needs about 165 MB, this ring can use 110 MB: 55 MB are missing" in caught.value.message
  assert "a can use 110 MB, layers 0 to 29 need 165 MB" in caught.value.message


def test_line_7_what_is_missing_is_counted_in_pieces_that_fit() -> None:
  """Two times 60 MB are no place for one layer of 100."""
  with pytest.raises(
      ModelTooLargeError, match=r"40 MB are missing \(a can use 60 MB, layers 0 to 0 need 100 MB; b can use 60 MB\)"
  ):
    memory(plain(1, layer_mb=100), ring(a=60, b=60))


def test_line_7_what_is_free_now_bounds_a_plan_and_does_not_weigh_it() -> None:
  model = plain(10, layer_mb=10)
  state = RingState((WorkerState("a", "", 1, 100 * MB, 30 * MB), WorkerState("b", "", 1, 100 * MB, 100 * MB)))
  assert layers_of(memory(model, state)) == {"b": 7, "a": 3}
  assert layers_of(memory(model, ring(a=100, b=100))) == {"b": 5, "a": 5}


def test_line_7_an_engine_that_holds_more_than_the_files_gets_fewer_layers() -> None:
  model = ModelNeeds("m", ModelSize((10 * MB, ) * 10, 0, 0, 0, n_weights=50 * MB))
  state = RingState(
      (WorkerState("a", "", 1, 70 * MB, 70 * MB, WeightMemory(4.0, 4.0)), WorkerState("b", "", 1, 70 * MB, 70 * MB))
  )
  assert layers_of(memory(model, state)) == {"b": 7, "a": 3}


def test_line_7_a_worker_that_runs_the_whole_only_gets_no_part() -> None:
  large, small = WorkerState("a", "", 1, 90 * MB, 90 * MB, whole_only=True), WorkerState("b", "", 1, 50 * MB, 50 * MB)
  assert layers_of(memory(plain(8, layer_mb=10), RingState((large, small)))) == {"a": 8}
  assert layers_of(memory(plain(4, layer_mb=10), RingState((large, small)))) == {"a": 4}
  assert layers_of(memory(plain(4, layer_mb=10), RingState((replace(large, usable_bytes=30 * MB), small)))) == {"b": 4}
  with pytest.raises(ModelTooLargeError, match=r"10 MB are missing \(a can use 90 MB, layers 0 to 9 need 100 MB"):
    memory(plain(10, layer_mb=10), RingState((large, small)))


def test_line_7_those_that_cannot_run_a_model_take_no_part_and_are_named_when_nobody_can() -> None:
  able, unable = WorkerState("a", "", 1, 50 * MB,
                             50 * MB), WorkerState("b", "", 1, 900 * MB, 900 * MB, cannot="no kernel")
  assert layers_of(memory(plain(4, layer_mb=10), RingState((able, unable)))) == {"a": 4}
  with pytest.raises(ModelTooLargeError, match=r"30 MB are missing.*\. No part is taken by b: no kernel\. Add a node"):
    memory(plain(4, layer_mb=20), RingState((able, unable)))
  with pytest.raises(EngineUnavailableError, match="can run m: a: too old; b: no kernel"):
    memory(plain(4), RingState((replace(able, cannot="too old"), unable)))
  with pytest.raises(PeerUnreachableError, match="no node is there to run m"):
    memory(plain(4), RingState(()))


def test_line_7_an_error_stays_readable_in_a_large_ring() -> None:
  with pytest.raises(EngineUnavailableError) as caught:
    memory(plain(4), RingState(tuple(WorkerState(f"n{i:02}", "", 1, MB, MB, cannot="no") for i in range(40))))
  assert caught.value.message.endswith("n07: no; and 32 more")


# the registry


def test_line_7_a_name_that_is_none_is_refused_with_those_that_are() -> None:
  with pytest.raises(ConfigError, match=r"there is no placement 'fastest': choose memory"):
    load_strategy("fastest")


@pytest.mark.parametrize(("body", "why"), [
    ("return ring.plan(model, [(ring.workers[0], model.n_layers)])", "a has no room"),
    ("return ring.plan(model, [(ring.workers[1], model.n_layers)])", "b cannot run its part of m"),
    ("return ring.plan(model, [(ring.workers[2], model.n_layers - 1)])", "do not cover"),
    (
        "return replace(ring.plan(model, [(ring.workers[2], model.n_layers)]), epoch='e')",
        "not of this model and this ring"
    ),
])
def test_line_7_a_strategy_that_is_wrong_is_an_error_and_no_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, why: str
) -> None:
  name = f"wrong_{tmp_path.name}"
  (tmp_path / f"{name}.py").write_text(f"from dataclasses import replace\ndef place(model, ring):\n  {body}\n")
  monkeypatch.setattr(exo.topology.placement, "__path__", [*exo.topology.placement.__path__, str(tmp_path)])
  state = RingState((
      WorkerState("a", "", 1, MB, MB), WorkerState("b", "", 1, 99 * MB, 99 * MB,
                                                   cannot="no"), WorkerState("c", "", 1, 99 * MB, 99 * MB)
  ))
  with pytest.raises(ValueError, match=why):
    load_strategy(name)(plain(4, layer_mb=10), state)


def test_line_7_a_strategy_and_an_engine_are_added_as_the_docs_say_and_a_ring_serves_by_them(tmp_path: Path) -> None:
  """A copy of exo with one file and one folder more: the file is the example of docs/adding.md."""
  adding = (ROOT / "docs" / "adding.md").read_text()
  name, code = re.search(r"`exo/topology/placement/(\w+)\.py`:\n\n```python\n(.+?)```", adding, re.DOTALL).groups()
  shutil.copytree(ROOT / "exo", tmp_path / "exo")
  (tmp_path / "exo" / "topology" / "placement" / f"{name}.py").write_text(code)
  parrot = tmp_path / "exo" / "inference" / "parrot"
  shutil.copytree(ROOT / "exo" / "inference" / "dummy", parrot)
  for file in (parrot / "probe.py", parrot / "engine.py"):
    file.write_text(file.read_text().replace('"dummy"', '"parrot"'))
  probe = (parrot / "probe.py").read_text()  # it is the best that there is, and finds two GPUs
  probe = probe.replace("any_device=True",
                        'devices=("gpu0", "gpu1")').replace('"it computes nothing", -1', '"a test wants it", 99')
  (parrot / "probe.py").write_text(probe)
  helped = exo_command(tmp_path, "--help", root=tmp_path)
  assert f"{name}, memory" in helped.stdout and "parrot" in helped.stdout
  stages = {}
  for placement, engine, asked in (("memory", "dummy", "dummy"), (name, "parrot", "auto"),
                                   ("memory", "parrot", "parrot")):
    flags = ("--inference-engine", asked, "--placement", placement, "--default-model", "dummy", "--max-memory", "1000")
    with ring_of(tmp_path / placement / asked, 2, *flags, root=tmp_path) as nodes:
      answers = [node.chat("Hello", max_tokens=8) for node in nodes]
      assert [status for status, _ in answers] == [200, 200], answers
      topology = nodes[0].get("/v1/topology")[1]
      assert {node["engine"] for node in topology["nodes"].values()} == {engine}
      plans = [plan for node in nodes for plan in node.get("/v1/topology")[1]["plans"]]
      stages[placement, engine] = {(f"{s['node_id']}/{s['worker']}", s["start_layer"], s["end_layer"])
                                   for plan in plans
                                   for s in plan["stages"]}
      on = {
          node_id: [(w["name"], w["engines"][0]) for w in node["workers"]]
          for node_id, node in topology["nodes"].items()
      }
      assert on == dict.fromkeys(("node0", "node1"), [("gpu0", engine),
                                                      ("gpu1", engine)] if engine == "parrot" else [("cpu", engine)])
      text = answers[0][1]["choices"][0]["message"]["content"]
      assert text and text == answers[1][1]["choices"][0]["message"]["content"]
  assert stages["memory", "dummy"] == {("node1/cpu", 0, 3), ("node0/cpu", 4, 7)}
  assert stages[name, "parrot"] == {("node1/gpu1", 0, 7)}, "the same plan on both, and another than before"
  assert stages["memory", "parrot"] == {("node1/gpu1", 0, 1), ("node1/gpu0", 2, 3), ("node0/gpu1", 4, 5),
                                        ("node0/gpu0", 6, 7)}, "a worker for each GPU"
