"""What llama.cpp's stages hold: weights once, contexts as measured and promised, files on disk only where nothing else can be."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.errors import ModelFilesError
from exo.inference.engine import Batch, BatchEntry, LoadOptions, LogitsOf, StageModel
from exo.inference.llama_cpp import cache_plan
from exo.inference.llama_cpp.cache_plan import CacheRoom, plan_caches
from exo.inference.llama_cpp.kv_pool import Classes, KvPool
from exo.inference.llama_cpp.library_file import library_files
from exo.inference.llama_cpp.probe import WEIGHTS
from exo.inference.llama_cpp.stage import Device, LlamaCppStage
from exo.inference.shard import Shard
from exo.inference.weights.checkpoint import open_checkpoint
from exo.made_files import MadeFiles, made_files_dir
from exo.process_memory import held_bytes
from test.support.disks import own_disk
from test.support.families import Form, all_forms, few_forms
from test.support.nodes import NodeProcess, exo, wait_until
from test.support.shaped_models import LLAMA_1B, SMALL, Shape, write_shaped
from test.support.watched_memory import watched
from test.test_llama_states import HereDevice

MB = 2**20
IDS = np.random.default_rng(3).integers(5, 4000, 5000).astype(np.int32)

pytestmark = pytest.mark.skipif(next(library_files(), None) is None, reason="xllamacpp is not installed")
needs_shares = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="this system does not tell what processes share"
)
FORMS = [
    pytest.param(form, marks=() if form in few_forms() else pytest.mark.slow, id=form.family) for form in all_forms()
    if form.form == "gguf"
]

# what is promised


@dataclass
class EvenCosts:
  """Of a model in which every token costs the same. What computing takes grows with the length of the context, if it does."""
  token_bytes: int
  sequence_bytes: int
  work_bytes: int
  work_token_bytes: int

  def caches(self, length: int, count: int) -> int:
    return count * (length * self.token_bytes + self.sequence_bytes)

  def work(self, length: int, count: int) -> int:
    return self.work_bytes + length * self.work_token_bytes + count

  def whole(self, length: int, count: int) -> int:
    return self.caches(length, count) + self.work(length, count)


class Written:
  has_gaps = False


@dataclass
class PaperContext:
  """Only the books of one: that a sequence is somewhere."""
  length: int
  count: int
  holds: set[int] = field(default_factory=set)

  def held(self, number: int) -> int:
    return int(number in self.holds)

  def state(self, number: int) -> Written:
    assert number in self.holds
    return Written()

  def set_state(self, number: int, _: Written) -> None:
    self.holds.add(number)

  def drop(self, number: int) -> None:
    self.holds.discard(number)

  def close(self) -> None:
    self.holds.clear()


rooms = st.builds(
    lambda n_bytes, share, reckoned, longest, sequences, asked, tokens:
    CacheRoom(n_bytes, int(n_bytes * share), reckoned, 256 * longest, 0, sequences, asked, tokens),
    st.integers(2**20, 2**31), st.floats(0.2, 1.0), st.integers(0, 2**27), st.integers(1, 128), st.integers(1, 32),
    st.booleans(), st.one_of(st.none(), st.integers(2, 65536))
)
costs_of_models = st.builds(
    EvenCosts, st.integers(1, 100_000), st.integers(0, 2**22), st.integers(0, 2**26), st.integers(0, 20_000)
)


def pool_of(costs: EvenCosts, room: CacheRoom) -> tuple[KvPool, Any]:
  plan = plan_caches(costs, room)
  classes = Classes(plan.shortest, plan.longest, 0, plan.at_once)
  return KvPool(PaperContext, costs.whole, plan.pool_bytes, classes), plan  # type: ignore[arg-type]


@settings(max_examples=300, deadline=None)
@given(costs_of_models, rooms)
def test_memory_a_request_of_as_many_tokens_as_are_promised_has_room_while_it_grows(
    costs: EvenCosts, room: CacheRoom
) -> None:
  """A sequence that grows by any steps to the last token that a plan promises is never without room, and the plan is within what there is."""
  pool, plan = pool_of(costs, room)
  assert plan.tokens * plan.token_bytes + plan.fixed_bytes + max(
      0, plan.work_bytes - room.reckoned_bytes
  ) <= room.n_bytes or not plan.tokens
  for most in (1, 100, 511, 513, plan.tokens // 2, plan.tokens - 1, plan.tokens):
    if 0 < most <= min(plan.tokens, plan.longest):
      place = pool.place(1, most)
      place.context.holds.add(place.number)  # type: ignore[attr-defined]
      assert pool.n_bytes <= room.n_bytes + room.reckoned_bytes


@settings(max_examples=300, deadline=None)
@given(costs_of_models, rooms, st.data())
def test_memory_many_requests_of_as_many_tokens_as_are_promised_have_room(
    costs: EvenCosts, room: CacheRoom, data: st.DataObject
) -> None:
  pool, plan = pool_of(costs, room)
  lengths: dict[int, int] = {}
  for _ in range(data.draw(st.integers(0, 40))):
    left = plan.tokens - sum(lengths.values())
    sequence = data.draw(st.integers(1, plan.sequences))
    if data.draw(st.integers(0, 9)) == 0:
      pool.drop(sequence)
      lengths.pop(sequence, None)
    elif more := min(left, plan.longest - lengths.get(sequence, 0)):
      lengths[sequence] = lengths.get(sequence, 0) + data.draw(st.integers(1, more))
      place = pool.place(sequence, lengths[sequence])
      place.context.holds.add(place.number)  # type: ignore[attr-defined]
    assert pool.n_bytes <= room.n_bytes + room.reckoned_bytes


# what is measured


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
  found = Device()
  yield found
  found._process.kill()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """Some 50 MB."""
  return write_shaped(tmp_path_factory.mktemp("small") / "shelf" / "shaped" / "m.gguf", SMALL, "Q4_K_M")


def stage_of(
    device: Any,
    path: Path,
    options: LoadOptions,
    start: int = 0,
    end: int | None = None,
    virtual: bool | None = None
) -> LlamaCppStage:
  checkpoint = open_checkpoint(path)
  n = checkpoint.config.n_layers
  shard = Shard("m", start, n - 1 if end is None else end, n)
  return LlamaCppStage(device, shard, checkpoint, options, lambda _: None, virtual)


def fed(
    stage: StageModel,
    sequence: int,
    start: int,
    end: int,
    logits: LogitsOf = LogitsOf.LAST,
    hidden: np.ndarray | None = None
) -> np.ndarray:
  return stage.step(Batch((BatchEntry(sequence, start, end - start, logits), ), IDS[start:end], hidden)).copy()


@pytest.mark.parametrize("form", FORMS)
def test_memory_a_plan_counts_what_layers_of_each_kind_keep(form: Form, device: Device, tmp_path: Path) -> None:
  """Keys and values for each token, of layers that have them, and what recurrent layers keep of a sequence: what plans reckon from the header
  is what the library measures."""
  checkpoint = open_checkpoint(form.lay_out(tmp_path))
  n, size = checkpoint.config.n_layers, checkpoint.size
  options = LoadOptions(2**33, 1, max_context=512, max_sequences=2, max_kv_tokens=1024, kv_type="f32")
  stage = LlamaCppStage(device, Shard("m", 0, n - 1, n), checkpoint, options, lambda _: None)
  ids = np.array([5, 6], np.int32)
  stage.step(Batch((BatchEntry(1, 0, 2, LogitsOf.LAST), ), ids))
  took = stage.buffers()
  # one context of two sequences of 512; the log tells hundredths of a MiB
  assert abs(took.cache - 1024 * n * size.kv_bytes_per_token) <= 0.02 * took.cache + MB / 50
  assert abs(took.states - 2 * n * size.state_bytes) <= 0.02 * took.states + MB / 20
  assert took.weights and took.compute
  stage.close()
  checkpoint.close()


@pytest.mark.parametrize("kv_type", [None, "f16"])
def test_memory_scores_of_prompts_without_flash_attention_are_counted(
    kv_type: str | None, device: Device, small: Path
) -> None:
  """512 rows of as many scores as the context is long, for each head: what is promised is the less for them."""
  options = LoadOptions(2**33, 1, max_context=8192, max_sequences=1, max_kv_tokens=8192, kv_type=kv_type)
  stage = stage_of(device, small, options)
  fed(stage, 1, 0, 300)
  took, scores = stage.buffers(), 512 * 8192 * SMALL.heads * 4
  assert (took.compute > scores) == (kv_type == "f16")
  stage.close()

  memory = stage.memory
  reckoned = 0 if kv_type is None else scores // 8192
  assert memory.kv_bytes_per_token >= took.cache // 8192 + 0.9 * reckoned


def test_memory_what_a_stage_promises_it_keeps_to_the_bit_in_no_more_memory(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """Sequences grow by turns to all the tokens that are promised, in contexts that are made anew again and again: all numbers are those of a
  stage that has room, and no more is taken than there is."""
  monkeypatch.setattr(cache_plan, "_CONVERSATION", 0)  # they grow, however few tokens that leaves
  device = HereDevice()
  weights, spare = open_checkpoint(small).size.stage_bytes(0, SMALL.layers), 120 * MB
  tight = stage_of(device, small, LoadOptions(weights + spare, 2, max_sequences=16))
  roomy = stage_of(device, small, LoadOptions(2**33, 2, max_sequences=16))
  memory = tight.memory
  assert 1000 < memory.max_kv_tokens < 4000 and memory.max_sequences == 16, memory
  random, lengths = np.random.default_rng(4), dict.fromkeys(range(1, 9), 0)
  left, allowed = memory.max_kv_tokens, spare + WEIGHTS.overhead(open_checkpoint(small).size)
  while left:
    sequence = int(random.integers(1, 9))
    start = lengths[sequence]
    end = min(start + int(random.integers(1, 300)), start + left)
    assert np.array_equal(fed(tight, sequence, start, end), fed(roomy, sequence, start, end))
    lengths[sequence], left = end, left - end + start
    took = tight.buffers()
    assert took.cache + took.states + took.compute <= allowed
  tight.close()
  roomy.close()
  device.close()


def test_memory_a_request_alone_may_have_all_that_is_promised_and_a_longer_one_is_refused(
    device: Device, small: Path
) -> None:
  weights = open_checkpoint(small).size.stage_bytes(0, SMALL.layers)
  stage = stage_of(device, small, LoadOptions(weights + 8 * MB, 1))
  most = min(stage.memory.max_kv_tokens, stage.memory.max_context)
  assert most > 600
  for start in range(0, most, 256):
    fed(stage, 1, start, min(most, start + 256))
  assert stage.length(1) == most
  stage.close()


def test_memory_a_request_that_cannot_fit_is_refused_before_it_begins_with_the_tokens_that_would(
    small: Path, tmp_path: Path
) -> None:
  flags = ("--inference-engine", "llama_cpp", "--discovery-module", "none", "--model-dir", str(small.parents[1]))
  node = NodeProcess(tmp_path / "home", *flags, "--default-model", "shaped", "--max-memory", "520", node_id="n")
  try:
    node.wait_ready()
    status, answer = node.post("/v1/completions", {"prompt": "a" * 8000, "max_tokens": 4}, timeout_s=120)
    assert status == 400, answer
    message = answer["error"]["message"]
    room = int(re.findall(r"(?:holds|room for) (\d+)", message)[0])
    assert answer["error"]["code"] == "context_length_exceeded" and 600 < room < 8000
    prompt = {"prompt": "a" * (room - 8), "max_tokens": 4}
    status, answer = node.post("/v1/completions", prompt, timeout_s=300)
    assert status == 200, (message, answer, node.log)
  finally:
    node.stop()


def test_memory_logits_of_whole_prompts_are_computed_in_parts_and_given_back(device: Device, small: Path) -> None:
  """Of 256 rows of logits, 33 MB, the library has a part at a time, and what is shared with the node is free again."""
  stage = stage_of(device, small, LoadOptions(2**33, 1))
  every = fed(stage, 1, 0, 256, LogitsOf.ALL)
  assert every.shape == (256, SMALL.words) and np.isfinite(every).all()
  kept = os.fstat(device.memory.descriptor).st_blocks * 512
  assert kept <= 17 * MB < every.nbytes
  last = fed(stage, 2, 0, 256)
  assert np.abs(every[-1] - last[0]).max() < 0.05 * np.abs(last).max()
  assert stage.buffers().compute < 256 * SMALL.words * 4 + 512 * 4 * (4 * SMALL.hidden + 6 * SMALL.wide)
  stage.close()


# private and mapped


def shares(pid: int, path: Path) -> tuple[int, int]:
  """(bytes of a file's pages that the process has in memory, bytes that are its alone)"""
  mapped = private = 0
  for mapping in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path(f"/proc/{pid}/smaps").read_text(), flags=re.MULTILINE):
    if str(path) in mapping.partition("\n")[0]:
      mapped += int(re.search(r"^Rss:\s+(\d+) kB", mapping, re.MULTILINE)[1]) * 1024
    elif (found := re.search(r"^Anonymous:\s+(\d+) kB", mapping, re.MULTILINE)) is not None:
      private += int(found[1]) * 1024
  return mapped, private


@needs_shares
def test_memory_weights_are_private_or_mapped_never_both(small: Path) -> None:
  """Private ones lie in the process alone; mapped ones only in the file's pages, which two processes share."""
  size, devices = small.stat().st_size, [Device(), Device()]
  options = LoadOptions(2**33, 1, max_context=512, max_sequences=1, max_kv_tokens=512)
  rows: dict[str, np.ndarray] = {}
  try:
    private = stage_of(devices[0], small, options)
    rows["private"] = fed(private, 1, 0, 100)
    mapped, alone = shares(devices[0]._process.pid or 0, small)
    assert mapped < size / 10 and size * 0.9 < private.buffers().weights < size * 1.1 and alone > size * 0.9
    private.close()
    devices[0]._process.kill()
    wait_until(lambda: devices[0]._process.pid is None, 10, "the end of the process")

    stages = []
    for device in devices:
      stage = stage_of(
          device, small, LoadOptions(2**33, 1, max_context=512, max_sequences=1, max_kv_tokens=512, weights="mapped")
      )
      rows["mapped"] = fed(stage, 1, 0, 100)
      stages.append(stage)
    for device, stage in zip(devices, stages, strict=True):
      mapped, alone = shares(device._process.pid or 0, small)
      took = stage.buffers()
      assert mapped > size * 0.9 and alone < took.cache + took.compute + took.output + 60 * MB
    both = sum(held_bytes(device._process.pid) for device in devices)
    assert both < size * 1.2 + 2 * (took.cache + took.compute + took.output + 90 * MB)
    assert np.abs(rows["private"] - rows["mapped"]).max() < 0.02 * np.abs(rows["private"]).max()
  finally:
    for device in devices:
      device._process.kill()


def files_in(folder: Path) -> set[tuple[str, int]]:
  return {(path.name, path.stat().st_ino) for path in folder.glob("*/*.gguf")}


@pytest.mark.parametrize("weights", ["mapped", "private"])
def test_stages_ranges_of_layers_are_files_where_no_virtual_one_can_be(
    weights: str, device: Device, small: Path, tmp_path: Path
) -> None:
  """Mapped, or where the C library has no virtual files (macOS): made once, used by the next load, and no other than the whole."""
  folder = tmp_path / "made"
  options = LoadOptions(2**33, 1, max_context=512, weights=weights, made_files=folder)
  virtual = None if weights == "mapped" else False
  whole = stage_of(device, small, options, virtual=virtual)
  assert not folder.exists()  # that is the original
  expected = fed(whole, 1, 0, 100)
  whole.close()
  for _ in range(2):
    first, last = stage_of(device, small, options, 0, 1, virtual), stage_of(device, small, options, 2, 3, virtual)
    assert np.array_equal(fed(last, 1, 0, 100, hidden=fed(first, 1, 0, 100)), expected)
    made = files_in(folder)
    assert len(made) == 2 and files_in(folder) == made
    assert not MadeFiles(folder).remove(small)  # in use
    first.close()
    last.close()
  assert files_in(folder) == made
  assert MadeFiles(folder).remove(small.parent) > small.stat().st_size / 2 and not list(folder.glob("*/*"))


def test_stages_a_new_cut_of_private_weights_writes_nothing(device: Device, small: Path, tmp_path: Path) -> None:
  folder = tmp_path / "made"
  for start, end in ((0, 1), (0, 2), (2, 3), (0, 3)):
    stage_of(device, small, LoadOptions(2**33, 1, made_files=folder), start, end).close()
  assert not folder.exists()


def test_stages_a_range_without_a_folder_for_its_file_is_refused_in_words(device: Device, small: Path) -> None:
  with pytest.raises(ModelFilesError, match="has to be a file of its own, and there is no folder"):
    stage_of(device, small, LoadOptions(2**33, 1, weights="mapped"), 0, 1)


# files that were made


def put(content: bytes) -> Any:
  return lambda descriptor: os.pwrite(descriptor, content, 0)


def test_stages_made_files_are_bounded_and_the_oldest_that_nobody_uses_is_given_up(tmp_path: Path) -> None:
  files, source = MadeFiles(tmp_path / "made", most=3), tmp_path / "m.gguf"
  used = files.use(source, "0.gguf", 5, put(b"first"))
  for i in range(1, 6):
    files.use(source, f"{i}.gguf", 5, put(b"other")).close()
    os.utime(next((tmp_path / "made").glob(f"*/{i}.gguf")), (i, i))
  names = {path.name for path in (tmp_path / "made").glob("*/*.gguf")}
  assert names == {"0.gguf", "4.gguf", "5.gguf"} and used.path.read_bytes() == b"first"
  used.close()


def test_stages_a_file_that_nobody_has_finished_is_removed_and_made_anew(tmp_path: Path) -> None:
  files, source = MadeFiles(tmp_path / "made"), tmp_path / "m.gguf"

  def fail(_: int) -> None:
    raise OSError(5, "Input/output error")

  with pytest.raises(ModelFilesError, match="Input/output error.*point EXO_HOME"):
    files.use(source, "a.gguf", 5, fail)
  folder = next((tmp_path / "made").iterdir())
  assert not list(folder.glob("*.gguf*"))
  left = folder / "a.gguf.part12345"  # of a process that was killed
  left.write_bytes(b"ha")
  (folder / "b.gguf").write_bytes(b"ha")  # cut off
  for name in ("a.gguf", "b.gguf"):
    with_it = files.use(source, name, 5, put(b"whole"))
    assert with_it.path.read_bytes() == b"whole"
    with_it.close()
  assert not left.exists()


def test_stages_a_disk_without_room_for_a_file_is_said_before_it_is_written(tmp_path: Path) -> None:
  with own_disk(tmp_path / "disk", "size=8m") as disk:
    with pytest.raises(
        ModelFilesError, match=r"has \d+ MB left, and a file of 100 B has to be made there: free 2\d\d MB"
    ):
      MadeFiles(disk / "made").use(tmp_path / "m.gguf", "a.gguf", 100, put(b""))
    assert not list(disk.glob("made/*/*.gguf*"))


def test_stages_exo_models_shows_what_made_files_take_and_exo_rm_gives_it_back(small: Path, tmp_path: Path) -> None:
  home = tmp_path / "home"
  made = MadeFiles(made_files_dir(home))
  made.use(small, "a.gguf", 20 * MB, lambda descriptor: os.truncate(descriptor, 20 * MB)).close()
  shelf = ("--model-dir", str(small.parents[1]))
  table = exo(home, "models", *shelf)
  assert re.search(r"^shaped .*yes \+ 20 MB made", table.stdout, re.MULTILINE), table
  assert "`exo rm` gives them back" in table.stderr
  (model, ) = [one for one in json.loads(exo(home, "models", "--json", *shelf).stdout) if one["id"] == "shaped"]
  assert model["made_bytes"] == 20 * MB
  removed = exo(home, "rm", "shaped", *shelf)
  assert removed.returncode == 0 and "20 MB freed: shaped lies in a folder of your own" in removed.stdout, removed
  assert not list(made.listed()) and small.exists()
  again = exo(home, "rm", "shaped", *shelf)
  assert again.returncode and "which exo does not touch" in again.stderr


# lines 2 and 7


def sizes_of(path: Path, weights: str) -> tuple[int, int]:
  """(bytes of the KV as made for a prompt of 300 tokens, compute buffers)"""
  device = Device()
  try:
    stage = stage_of(device, path, LoadOptions(2**33, 1, weights=weights))
    fed(stage, 1, 0, 310)
    took = stage.buffers()
    return took.cache + took.states, took.compute + took.output
  finally:
    device._process.kill()


def check_line_2(
    shape: Shape,
    encoding: str,
    weights: str,
    folder: Path,
    *flags: str,
    prefix: tuple[str, ...] = (),
    offered_mb: int | None = None
) -> None:
  """Within the line's bound, or in what was offered."""
  path = write_shaped(folder / "shelf" / "shaped" / "m.gguf", shape, encoding)
  if offered_mb is None:
    kv, compute = sizes_of(path, weights)
    bound = 1.15 * path.stat().st_size + kv + compute + 250 * MB
  else:
    kv, compute, bound = 0, 0, offered_mb * MB
    flags += ("--max-memory", str(offered_mb))
  flags += ("--inference-engine", "llama_cpp", "--discovery-module", "none", "--model-dir", str(path.parents[1]))
  flags += ("--default-model", "shaped", "--weights", weights)
  node = NodeProcess(folder / "home", *flags, node_id="n", prefix=prefix)
  try:
    node.wait_ready()
    with watched(node) as most:
      answer = node.post("/v1/completions", {"prompt": "a" * 300, "max_tokens": 8}, timeout_s=600)
    held = held_bytes(node.process.pid)
    assert answer[0] == 200 and answer[1]["usage"]["prompt_tokens"] >= 300, (answer, node.log)
    print(
        f"{encoding} {weights}: file {path.stat().st_size // MB}, KV {kv // MB}, compute {compute // MB}; "
        f"held {held // MB}, peak {most[0] // MB}, bound {int(bound) // MB} MB"
    )
    assert held <= bound and most[0] <= bound
  finally:
    node.stop()


@needs_shares
@pytest.mark.parametrize("weights", ["private", "mapped"])
def test_line_2_memory_after_load_and_at_peak(weights: str, tmp_path: Path) -> None:
  check_line_2(SMALL, "Q4_K_M", weights, tmp_path)


@needs_shares
@pytest.mark.slow
@pytest.mark.parametrize("weights", ["private", "mapped"])
@pytest.mark.parametrize("encoding", ["Q4_K_M", "Q8_0"])
def test_line_2_memory_of_a_1b_model(encoding: str, weights: str, tmp_path: Path) -> None:
  check_line_2(LLAMA_1B, encoding, weights, tmp_path)


@needs_shares
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("taskset") is None, reason="no taskset")
def test_line_7_one_core_and_1500_mb_run_a_1b_q4_k_m(tmp_path: Path) -> None:
  check_line_2(LLAMA_1B, "Q4_K_M", "private", tmp_path, prefix=("taskset", "-c", "0"), offered_mb=1500)
