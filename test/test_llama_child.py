"""The process in which llama.cpp computes for a node: what ends it, what it is asked to end, and what it costs."""

from __future__ import annotations

import gc
import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from exo.errors import EngineEndedError
from exo.inference.engine import LoadOptions
from exo.inference.engines import load_engine
from exo.inference.llama_cpp.library_file import library_files
from exo.inference.shard import Shard
from exo.inference.weights.checkpoint import open_checkpoint
from exo.orchestration.crashes import Crashes
from test.support.nodes import NodeProcess, ring, wait_until
from test.support.shaped_models import SMALL, TINY, write_shaped
from test.support.streams import stream

pytestmark = pytest.mark.skipif(next(library_files(), None) is None, reason="xllamacpp is not installed")

QUESTION = "Write one sentence about the sea."
ENGINE = ("--inference-engine", "llama_cpp")


def child_of(process: int) -> int | None:
  """The process of llama.cpp that this node has started; None while there is none."""
  for entry in Path("/proc").iterdir():
    if not entry.name.isdigit():
      continue
    try:
      parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
      command = (entry / "cmdline").read_bytes()
    except OSError:
      continue
    if parent == process and b"exo.inference.llama_cpp.child" in command:
      return int(entry.name)
  return None


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
  other = {"model": "shaped", "chat": False, "max_tokens": 150}
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
  with ThreadPoolExecutor(1) as pool:
    loading = pool.submit(engine.load, shard, checkpoint, options, lambda _: None)
    child = wait_until(lambda: child_of(os.getpid()), 20, "the start of the process")
    os.kill(child, signal.SIGSEGV)
    with pytest.raises(EngineEndedError, match="ended in a .*by SIGSEGV") as told:
      loading.result(60)
    assert told.value.details["computing"] == 1
  engine.load(shard, checkpoint, options, lambda _: None).close()
