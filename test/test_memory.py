"""What a stage takes of memory is what its plan says, while it loads and afterwards."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.inference.engine import LoadOptions
from exo.inference.engines import load_engine, probe_engine
from exo.inference.shard import Shard
from exo.inference.weights.checkpoint import open_checkpoint
from exo.process_memory import held_bytes
from exo.sizes import shown_mb
from exo.topology.model_size import ModelSize, PackedWeights
from exo.topology.weight_memory import WeightMemory
from test.support.control_groups import entering, group
from test.support.nodes import NodeProcess, exo
from test.support.shaped_models import LLAMA_1B, SMALL, TINY, Shape, write_shaped
from test.support.watched_memory import watched

MB = 2**20
ENGINES = [name for name in ("onnx", "tinygrad", "mlx", "llama_cpp") if probe_engine(name).available]
PROMPT = "ab" * 450  # tokens, of which most of the KV that a plan counts is filled

parts = st.floats(0, 8)
memories = st.builds(
    WeightMemory, parts, parts,
    st.lists(st.tuples(st.sampled_from(["Q4_K", "F16", "Q8_0"]), parts), max_size=2).map(tuple), parts, parts,
    st.booleans(), st.integers(0, 2**30), parts, parts, st.booleans()
)


@st.composite
def sizes(draw: st.DrawFn) -> ModelSize:
  n = draw(st.integers(1, 12))
  counts = st.integers(0, 10**9)
  packed = [
      PackedWeights(
          encoding, draw(st.floats(0.1, 8)), tuple(draw(st.lists(counts, min_size=n, max_size=n))),
          *(draw(counts) for _ in range(4))
      )
      for encoding in draw(st.lists(st.sampled_from(["Q4_K", "F16", "F32", "Q6_K", "other"]), max_size=3, unique=True))
  ]
  layers = tuple(draw(st.lists(counts, min_size=n, max_size=n)))
  return ModelSize(
      layers, draw(counts), draw(counts), draw(counts), draw(st.booleans()), draw(counts), draw(counts), tuple(packed),
      draw(counts)
  )


def mapped_bytes(path: Path) -> int:
  """Of a file's pages, those that this process has mapped and touched."""
  found = 0
  for mapping in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE):
    if str(path) in mapping.partition("\n")[0]:
      found += int(re.search(r"^Rss:\s+(\d+) kB", mapping, re.MULTILINE)[1]) * 1024
  return found


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="this system does not tell what is mapped")
@pytest.mark.parametrize("engine", ENGINES)
def test_line_4_a_load_leaves_nothing_of_its_file_in_memory(engine: str, tmp_path: Path) -> None:
  path = write_shaped(tmp_path / "m.gguf", TINY, "Q8_0")

  shard, options = Shard("m", 0, TINY.layers - 1, TINY.layers), LoadOptions(2**32, 1)
  stage = load_engine(engine).load(shard, open_checkpoint(path), options, lambda _: None)
  assert mapped_bytes(path) < path.stat().st_size / 10
  stage.close()


@given(memories, sizes(), st.integers(0, 5000))
def test_line_4_all_stages_at_once_are_what_each_is(memory: WeightMemory, size: ModelSize, kv_tokens: int) -> None:
  table = memory.table(size, kv_tokens)
  for start, end in itertools.product(range(size.n_layers + 1), repeat=2):
    assert table[start, end] == memory.stage_bytes(size, start, end, kv_tokens)
    assert start < end or table[start, end] == 0


@given(memories, sizes(), st.integers(0, 5000))
def test_line_4_more_layers_and_longer_caches_take_no_less(
    memory: WeightMemory, size: ModelSize, kv_tokens: int
) -> None:
  n = size.n_layers
  whole = memory.stage(size, 0, n, kv_tokens)
  assert min(whole) >= 0
  for end in range(1, n):
    less, more = memory.stage(size, 0, end,
                              kv_tokens), memory.stage(size, 0, end + 1 if end + 1 < n else end, kv_tokens)
    assert less.loading <= more.loading and less.held <= more.held
  longer = memory.stage(size, 0, n, kv_tokens + 1000)
  assert longer.loading == whole.loading and longer.held >= whole.held


def test_line_4_a_list_of_large_models_is_judged_in_no_time() -> None:
  """617 models of 512 layers from a stranger: a table for each, not a step of Python for each of its 131,328 stages."""
  size = ModelSize((10**9, ) * 512, 0, 0, 1, n_weights=10**12)
  table = WeightMemory(1.0, 1.0).table(size)
  assert table.shape == (513, 513) and (table.diagonal() == 0).all() and table[0, 512] > table[0, 511]


# a real node


def check_figures(engine: str, shape: Shape, encoding: str, tmp_path: Path) -> None:
  """Loads the model on a node in a control group of the loading figure and the tolerance, computes, and compares both figures."""
  path = write_shaped(tmp_path / "shelf" / "shaped" / "m.gguf", shape, encoding)
  planned = probe_engine(engine).weights.stage(open_checkpoint(path).size, 0, shape.layers)
  allowed = planned.most * 11 // 10 + 200 * MB
  flags = ("--inference-engine", engine, "--discovery-module", "none", "--model-dir", str(path.parents[1]))
  flags += ("--default-model", "shaped", "--max-memory", str(planned.most // MB + 50))
  with group("memory", {"memory.limit_in_bytes": str(allowed)}) as procs:
    node = NodeProcess(tmp_path / "home", *flags, node_id="n", prefix=entering(procs))
    try:
      node.wait_ready()
      with watched(node) as most:
        status, answer = node.post("/v1/completions", {"prompt": "ab", "max_tokens": 1}, timeout_s=600)
      assert status == 200, (answer, node.log)
      assert node.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 4}, timeout_s=600)[0] == 200
      held = held_bytes(node.process.pid)
      topology = node.get("/v1/topology")[1]
      (shard, ) = topology["nodes"]["n"]["workers"][0]["loaded"]
      told = {"loading": -(-planned.loading // MB), "held": -(-planned.held // MB)}
      assert shard["planned_memory"] == told == topology["plans"][0]["stages"][0]["planned_memory"]
      node.wait_said(f"(planned: {planned.loading // MB})")
      status_text = exo(tmp_path / "home", "status").stdout
      assert f"(plan, with caches: {shown_mb(told['held'])})" in status_text
      assert f"(plan: {shown_mb(told['loading'])})" in status_text
      print(
          f"{engine} {encoding}: loading {told['loading']} planned {most[0] // MB} measured; held {told['held']} planned {held // MB} measured"
      )
      for plan, measured in ((planned.loading, most[0]), (planned.held, held)):
        assert measured <= plan * 1.1 + 200 * MB and plan <= measured * 1.15 + 200 * MB, (shard, most, held)
    finally:
      node.stop()


@pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="this system does not tell what processes share"
)
@pytest.mark.parametrize(
    "engine",
    [*(pytest.param(name, marks=pytest.mark.slow) if name == "tinygrad" else name for name in ENGINES), "dummy"]
)
def test_line_4_both_figures_of_a_plan_are_what_is_measured(engine: str, tmp_path: Path) -> None:
  check_figures(engine, SMALL, "Q4_K_M", tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="this system does not tell what processes share"
)
@pytest.mark.parametrize("encoding", ["Q4_K_M", "Q8_0"])
@pytest.mark.parametrize("engine", ENGINES)
def test_line_4_both_figures_of_a_model_of_real_size(engine: str, encoding: str, tmp_path: Path) -> None:
  check_figures(engine, LLAMA_1B, encoding, tmp_path)


@pytest.mark.slow
def test_line_4_a_1b_file_in_1500_mb_is_refused_with_what_is_missing(tmp_path: Path) -> None:
  """Or is within the bound, where an engine is there that holds it."""
  path = write_shaped(tmp_path / "shelf" / "shaped" / "m.gguf", LLAMA_1B, "Q4_K_M")
  flags = (
      "--discovery-module", "none", "--model-dir", str(path.parents[1]), "--default-model", "shaped", "--max-memory",
      "1500"
  )
  node = NodeProcess(tmp_path / "home", *flags, node_id="n")
  try:
    node.wait_ready()
    with watched(node) as most:
      status, answer = node.post("/v1/completions", {"prompt": "ab", "max_tokens": 1}, timeout_s=600)
    assert most[0] <= 1500 * 1.1 * MB + 200 * MB
    assert status == 200 or re.search(r"\d+ MB are missing", answer["error"]["message"]), answer
  finally:
    node.stop()
