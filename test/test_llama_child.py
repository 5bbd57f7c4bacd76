"""The process in which llama.cpp computes for a node: what ends it, what it is asked to end, and what it costs."""

from __future__ import annotations

import gc
import http.client
import itertools
import json
import os
import signal
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exo.errors import CancelledRequestError, EngineEndedError, StepAbortedError
from exo.inference.engine import Batch, BatchEntry, LoadOptions, LogitsOf
from exo.inference.engines import load_engine
from exo.inference.llama_cpp.library_file import library_files
from exo.inference.shard import Shard
from exo.inference.weights.checkpoint import Checkpoint, open_checkpoint
from exo.orchestration.crashes import Crashes
from exo.orchestration.running_step import RunningStep
from exo.topology.ring_plan import RingPlan, Stage
from exo.worker.step_guard import StepGuard
from test.support.nodes import NodeProcess, ring, wait_until
from test.support.shaped_models import SMALL, TINY, Shape, write_shaped
from test.support.stages import Stages
from test.support.streams import stream

pytestmark = pytest.mark.skipif(next(library_files(), None) is None, reason="xllamacpp is not installed")

QUESTION = "Write one sentence about the sea."
ENGINE = ("--inference-engine", "llama_cpp")


def children_of(process: int) -> set[int]:
  """The processes of llama.cpp that this one has started."""
  found = set()
  for entry in Path("/proc").iterdir():
    if not entry.name.isdigit():
      continue
    try:
      parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
      command = (entry / "cmdline").read_bytes()
    except OSError:
      continue
    if parent == process and b"exo.inference.llama_cpp.child" in command:
      found.add(int(entry.name))
  return found


def child_of(process: int) -> int | None:
  """One of them; None while there is none."""
  return next(iter(children_of(process)), None)


def has_ended(process: int) -> bool:
  """Whether or not somebody has asked how."""
  try:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
  except OSError:
    return True


def end_child(node: NodeProcess, number: int = signal.SIGSEGV) -> None:
  child = child_of(node.process.pid)
  assert child is not None
  os.kill(child, number)


def at(count: int, act: Callable[[], None]) -> Callable[[int], None]:
  """Act once, after so many pieces of a text."""
  left = [act]
  return lambda n: left.pop()() if n == count and left else None


def asked(node: NodeProcess, model: str) -> tuple[int, dict[str, str], dict[str, Any]]:
  """(status, headers, answer) of a short request."""
  body = json.dumps({"model": model, "prompt": "ab", "max_tokens": 2}).encode()
  request = urllib.request.Request(node.url + "/v1/completions", body, {"Content-Type": "application/json"})
  try:
    with urllib.request.urlopen(request, timeout=60) as response:
      return response.status, dict(response.headers), json.load(response)
  except urllib.error.HTTPError as error:
    with error:
      return error.code, dict(error.headers), json.load(error)


@pytest.fixture(scope="module")
def unbroken(model_home: Path) -> str:
  with ring(model_home, 1, *ENGINE) as (node, ):
    return stream(node, QUESTION, max_tokens=60).text


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
@pytest.mark.parametrize("count", [1, 2])
def test_line_6_a_child_killed_in_mid_stream(model_home: Path, unbroken: str, count: int, number: int) -> None:
  """The stream goes on with the same tokens, whichever stage's child ended."""
  with ring(model_home, count, *ENGINE) as nodes:
    for victim in nodes:
      streamed = stream(nodes[0], QUESTION, at(6, lambda node=victim: end_child(node, number)), max_tokens=60)
      assert streamed.text == unbroken and streamed.done and streamed.error is None, streamed
      assert len(streamed.resumptions) == 1


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """A folder with a small model of another shape."""
  folder = tmp_path_factory.mktemp("shelf")
  write_shaped(folder / "shaped" / "m.gguf", TINY, "Q8_0")
  return folder


def test_a_child_process_that_ends_takes_no_other_model_with_it(model_home: Path, unbroken: str, shelf: Path) -> None:
  """What it had loaded beside is loaded anew, and its streams go on, too."""
  other = {
      "model": "shaped", "chat": False, "max_tokens": 400
  }  # which lasts for longer than the other one takes to begin
  with ring(model_home, 1, *ENGINE, "--model-dir", str(shelf)) as (node, ):
    expected = stream(node, "ab", **other).text
    with ThreadPoolExecutor(1) as pool:
      beside = pool.submit(stream, node, "ab", **other)
      streamed = stream(node, QUESTION, at(6, lambda: end_child(node)), max_tokens=60)
      assert streamed.text == unbroken and streamed.resumptions
      also = beside.result(60)
    assert also.text == expected and also.done and also.error is None and also.resumptions


def test_a_child_process_that_ends_again_ends_the_request_and_then_the_model_is_put_aside(
    model_home: Path, shelf: Path
) -> None:
  """The second crash with the same request ends it; the third of a model in a minute puts that aside, in words, and no other."""
  with ring(model_home, 1, *ENGINE, "--model-dir", str(shelf)) as (node, ):
    killed: list[int] = []

    def again(_: int) -> None:
      child = child_of(node.process.pid)
      if child is not None and child not in killed and len(killed) < 2:
        killed.append(child)
        os.kill(child, signal.SIGSEGV)

    streamed = stream(node, QUESTION, again, max_tokens=60)
    assert len(killed) == 2 and streamed.error is not None and streamed.error["code"] == "engine_error", streamed
    assert "ended by SIGSEGV" in streamed.error["message"] and "second time" in streamed.error["message"]
    assert node.chat("hello", max_tokens=2)[0] == 200  # other requests go on
    third = stream(node, QUESTION, at(3, lambda: end_child(node)), max_tokens=6, timeout_s=90)
    assert third.error is not None and third.error["code"] == "model_aside", third
    status, headers, body = asked(node, "smollm2-135m")
    assert status == 503 and body["error"]["code"] == "model_aside" and 1 <= int(headers["Retry-After"]) <= 60
    assert "ended its engine on node0 3 times within a minute" in body["error"]["message"]
    assert "it is tried again in" in body["error"]["message"]
    assert asked(node, "shaped")[0] == 200


def test_a_child_process_that_ended_too_often_is_counted_by_model() -> None:
  now = [0.0]
  crashes, crash, found = Crashes("n",
                                  lambda: now[0]), EngineEndedError("x",
                                                                    computing=1), EngineEndedError("x", computing=0)
  for at_s in (0.0, 40.0, 70.0):  # never three within a minute
    now[0] = at_s
    assert crashes.note("a", "a", crash) is None and crashes.note("b", "b", found) is None
  now[0] = 90.0
  aside = crashes.note("a", "a", crash)
  assert aside is not None and aside.details["retry_after_s"] == 60 and crashes.why_aside("b") is None
  now[0] = 149.0
  assert crashes.why_aside("a") is not None
  now[0] = 151.0
  assert crashes.why_aside("a") is None and crashes.note("a", "a", crash) is None


def test_a_child_process_that_ends_in_a_load_is_the_error_of_that_load(tmp_path: Path) -> None:
  checkpoint = open_checkpoint(write_shaped(tmp_path / "m.gguf", SMALL, "Q8_0"))
  engine, shard, options = load_engine("llama_cpp"), Shard("m", 0, SMALL.layers - 1,
                                                           SMALL.layers), LoadOptions(2**33, 1)
  gc.collect()  # engines of other tests
  before = children_of(os.getpid())
  with ThreadPoolExecutor(1) as pool:
    loading = pool.submit(engine.load, shard, checkpoint, options, lambda _: None)
    child, *_ = wait_until(lambda: children_of(os.getpid()) - before, 20, "the start of the process")
    os.kill(child, signal.SIGSEGV)
    with pytest.raises(EngineEndedError, match="ended in a .*by SIGSEGV") as told:
      loading.result(60)
    assert told.value.details["computing"] == 1
  engine.load(shard, checkpoint, options, lambda _: None).close()


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
  """A model of which a step of a thousand tokens takes a while."""
  return open_checkpoint(write_shaped(tmp_path_factory.mktemp("gguf") / "m.gguf", SMALL, "Q8_0"))


def tokens(count: int, seed: int = 1) -> np.ndarray:
  return np.random.default_rng(seed).integers(5, 30000, count).astype(np.int32)


@pytest.mark.parametrize("cut", [None, 2])
def test_a_child_process_ends_a_step_and_the_others_in_it_are_computed_again(slow: Checkpoint, cut: int | None) -> None:
  """Bit for bit what they are without that, on whichever stage; what was cancelled is forgotten."""
  bounds = [0, SMALL.layers] if cut is None else [0, cut, SMALL.layers]
  shards = [Shard("m", a, b - 1, SMALL.layers) for a, b in itertools.pairwise(bounds)]
  plan = RingPlan("m", "e", tuple(Stage(f"n{i}", shard, "cpu") for i, shard in enumerate(shards)))
  model = load_engine("llama_cpp"
                      ).load(plan.stages[0].shard, slow, LoadOptions(2**33, 1, max_context=4096), lambda _: None)
  cancelled: set[int] = set()
  guard = StepGuard(model, plan, 0, {1: 40, 2: 3000, 3: 9}, cancelled)
  entry, singles = BatchEntry(1, 0, 40,
                              LogitsOf.LAST), (BatchEntry(1, 40, 1, LogitsOf.LAST), BatchEntry(3, 0, 9, LogitsOf.LAST))
  guard.run(Batch((entry, ), tokens(40)), model.step)
  ids = np.concatenate([tokens(1, 3), tokens(9, 2)])
  expected = np.array(guard.run(Batch(singles, ids), model.step).rows)
  model.truncate(1, 40)
  model.drop(3)
  batch = Batch((*singles, BatchEntry(2, 0, 3000, LogitsOf.LAST)), np.concatenate([ids, tokens(3000)]))

  def cancel() -> None:
    cancelled.add(2)
    model.abort()

  aborts: list[StepAbortedError] = []

  def step(wanted: Batch) -> np.ndarray:
    timer = threading.Timer(0.3, cancel)
    timer.start()
    try:
      return model.step(wanted)
    except StepAbortedError as error:
      aborts.append(error)
      raise
    finally:
      timer.cancel()

  found = guard.run(batch, step)
  assert len(aborts) == 1 and [type(error) for error in found.failures.values()] == [CancelledRequestError]
  assert found.batch.entries == singles and np.array_equal(found.rows, expected)
  model.truncate(1, 40)
  assert np.array_equal(guard.run(Batch(singles[:1], ids[:1]), model.step).rows, expected[:1])
  assert guard.run(Batch((BatchEntry(2, 0, 5, LogitsOf.LAST), ), tokens(5)), model.step).rows is not None
  model.close()


def test_a_child_process_is_not_told_to_end_what_ends_soon() -> None:
  """By the pace of the steps before; what is late goes on for as long again, as far as anybody knows."""
  aborts: list[int] = []
  step = RunningStep(lambda: aborts.append(1))
  prompt, one = BatchEntry(1, 0, 100, LogitsOf.LAST), BatchEntry(2, 5, 1, LogitsOf.LAST)
  requests = {1: "a", 2: "b"}
  with step.of((prompt, one), requests):  # nothing is known of it
    time.sleep(0.05)
    step.cancel("c")
    assert not aborts
  with step.of((prompt, one), requests):  # 0.05 s, as the last time
    step.cancel("a")
    assert not aborts and not step.cancelled
    time.sleep(0.35)
    step.cancel("a")
    assert aborts == [1] and step.cancelled == {1}
  assert not step.cancelled
  with step.of((BatchEntry(1, 0, 1000, LogitsOf.LAST), ), requests):
    step.cancel("a")
    assert len(aborts) == 2
  step.cancel("a")
  assert len(aborts) == 2


@pytest.mark.parametrize("count", [1, 2])
def test_a_child_process_ends_a_long_step_that_a_client_leaves(tmp_path: Path, count: int) -> None:
  """On whichever stage it runs; the same asked again is what it always is."""
  write_shaped(tmp_path / "shaped" / "m.gguf", Shape(12, 1024, 5632, 16, 4, 4096), "Q8_0")
  prompt = "ab" * 300
  fields = {"model": "shaped", "chat": False, "max_tokens": 5}
  with ring(tmp_path / "home", count, *ENGINE, "--model-dir", str(tmp_path)) as nodes:
    assert asked(nodes[0], "shaped")[0] == 200
    for _ in range(2):  # on a ring the steps of both stages are long, and one or the other runs
      with pytest.raises(TimeoutError):
        stream(nodes[0], prompt, timeout_s=0.7, **fields)
    wait_until(lambda: any("the step that runs is ended" in node.log for node in nodes), 30, "the end of a step")
    again = stream(nodes[0], prompt, **fields)
    assert again.done and again.error is None
    assert all(end not in node.log for node in nodes for end in ("each is tried alone", "Traceback", "closed here"))
  with ring(tmp_path / "home", 1, *ENGINE, "--model-dir", str(tmp_path)) as (node, ):
    assert stream(node, prompt, **fields).text == again.text


def test_a_child_process_says_how_far_a_load_is(tmp_path: Path) -> None:
  """It reaches the node's own progress, which `exo run` and status show, while the load goes on."""
  checkpoint = open_checkpoint(write_shaped(tmp_path / "m.gguf", Shape(24, 2048, 5632, 16, 4, 4096), "Q8_0"))
  seen: list[float] = []
  model = load_engine("llama_cpp").load(Shard("m", 0, 23, 24), checkpoint, LoadOptions(2**33, 1), seen.append)
  model.close()
  assert seen == sorted(seen) and seen[-1] == 1 and any(0 < fraction < 1 for fraction in seen), seen


def embedded(stages: Stages, sequence: int, ids: Sequence[int]) -> np.ndarray:
  """Hidden states after the final norm, (tokens, hidden size)."""
  entry, batch_ids, hidden = BatchEntry(sequence, 0, len(ids), LogitsOf.HIDDEN), np.array(ids, np.int32), None
  for model in stages.models[:-1]:
    hidden = model.step(Batch((entry, ), batch_ids, hidden))
  return stages.models[-1].hidden_states(Batch((entry, ), batch_ids, hidden)).astype(np.float64)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  return np.asarray((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1))


@pytest.mark.parametrize("cut", [False, True])
def test_a_child_process_gives_embeddings_and_goes_on_as_before(smollm2: Checkpoint, tmp_path: Path, cut: bool) -> None:
  """Hidden states of all tokens as another engine has them, but for activations that are rounded to the weights' 8 bits; what is computed
  afterwards has the same bits."""
  floats = open_checkpoint(write_shaped(tmp_path / "m.gguf", TINY, "Q8_0", unpacked=True))
  for checkpoint, cuts, least in ((floats, (1, ), 0.999), (smollm2, (13, ), 0.99)):
    ids = tokens(100) % checkpoint.config.vocab_size
    if checkpoint is smollm2:
      ids = smollm2.tokenizer().encode("The capital of France is Paris, and the capital of Italy is Rome. " * 6)
    assert len(ids) > 70  # more than one call
    own, other = Stages("llama_cpp", checkpoint, cuts if cut else (), kv_type="f32"), Stages("onnx", checkpoint)
    before = own.step([(1, 0, ids)]), own.step([(1, len(ids), [5])])
    found, expected = embedded(own, 2, ids), embedded(other, 2, ids)
    assert found.shape == (len(ids), checkpoint.config.hidden_size)
    assert cosines(found, expected).min() > least and cosines(found.mean(0), expected.mean(0)) > 0.999
    own.each("drop", 1)
    after = own.step([(1, 0, ids)]), own.step([(1, len(ids), [5])])
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    own.step([(2, len(ids), [5])])  # the text that was embedded goes on
    own.close()
    other.close()


def cpu_s(process: int) -> float:
  """Seconds of a processor that all threads of a process have used."""
  tasks = Path(f"/proc/{process}/task").iterdir()
  return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def test_a_child_process_sleeps_soon_after_a_step_and_while_nothing_is_asked(slow: Checkpoint) -> None:
  """Two threads, which spin inside a step: that goes on for at most 5 ms after its end, and then next to nothing is used."""
  shard = Shard("m", 0, SMALL.layers - 1, SMALL.layers)
  model = load_engine("llama_cpp").load(shard, slow, LoadOptions(2**33, 2, max_context=512), lambda _: None)
  child = child_of(os.getpid())
  assert child is not None
  used: list[float] = []
  for position in range(20):
    model.step(Batch((BatchEntry(1, position, 1, LogitsOf.LAST), ), tokens(1)))
    before = cpu_s(child)
    time.sleep(0.05)
    used.append(cpu_s(child) - before)
  assert sorted(used)[10] <= 2 * 0.005  # of both threads

  def used_in(seconds: float) -> float:
    before = cpu_s(child)
    time.sleep(seconds)
    return cpu_s(child) - before

  wait_until(lambda: used_in(0.5) < 0.005, 20, "large pages under all weights")
  assert used_in(3) <= 0.03
  model.close()


def test_a_child_process_ends_with_its_node_and_leaves_nothing(model_home: Path) -> None:
  """`kill -9` in mid-stream: no process soon afterwards, and no file of the memory that both had."""
  def shared() -> set[str]:
    found = {path.name for folder in ("/dev/shm", tempfile.gettempdir()) for path in Path(folder).glob("exo-*")}
    return {name for name in found if not name.startswith("exo-warm-")}  # other tests' nodes come and go meanwhile

  before = shared()
  with ring(model_home, 1, *ENGINE) as (node, ):
    children: list[int] = []

    def kill() -> None:
      child = child_of(node.process.pid)
      assert child is not None
      children.append(child)
      maps = [line for line in Path(f"/proc/{child}/maps").read_text().splitlines() if "exo" in line.rpartition("/")[2]]
      assert maps and all("/memfd:exo (deleted)" in line for line in maps)
      node.process.kill()

    with pytest.raises((urllib.error.URLError, ConnectionError, http.client.HTTPException, AssertionError)):
      assert stream(node, QUESTION, at(4, kill), max_tokens=60).done
    wait_until(lambda: has_ended(children[0]), 5, "the end of the process")
  assert shared() <= before


def test_a_child_process_gives_embeddings_to_clients(model_home: Path) -> None:
  with ring(model_home, 1, *ENGINE) as (node, ):
    status, body = node.post(
        "/v1/embeddings", {"model": "smollm2-135m", "input": ["a dog", "a puppy", "bonds and taxes"]}
    )
    assert status == 200, body
    dog, puppy, taxes = (np.array(one["embedding"]) for one in body["data"])
    assert cosines(dog, puppy) > cosines(dog, taxes)
    assert node.chat("hello", max_tokens=2)[0] == 200
