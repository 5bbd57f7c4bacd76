"""Issue 22, line 6: who waits for a first token hears why, in the words of llama.cpp's server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any, cast

import pytest

from exo.cli.client import ApiClient, Delta
from exo.cli.load_progress import LoadProgress, Stretch, _fetching, _loading
from exo.errors import ProtocolError
from exo.networking.grpc.codec import decode, encode
from exo.networking.messages import PromptProgress
from exo.orchestration import progress_teller
from test.support.http import connect, stream_json
from test.support.local_rings import local_ring, run, spec
from test.support.nodes import ROOT, NodeProcess, ring, wait_until

ENDLESS: dict[str, Any] = {"max_tokens": 6000, "logit_bias": {"256": -100}}
SLOW = "\x05"  # see the dummy engine


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[NodeProcess]]:
  flags = ("--inference-engine", "dummy", "--default-model", "dummy", "--parallel", "1")
  with ring(tmp_path_factory.mktemp("waiting"), 2, *flags) as started:
    yield started


@pytest.mark.parametrize(("path", "body"), [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]}),
    ("/v1/completions", {"prompt": "hello", "stream_options": {"include_usage": True}})
])  # yapf: disable
def test_22_line_6_a_stream_says_that_its_prompt_is_computed(
    nodes: list[NodeProcess], path: str, body: dict[str, Any]
) -> None:
  asked = body | {"max_tokens": 5, "seed": 1}
  plain, told = (stream_json(nodes[0], path, asked | more) for more in ({}, {"return_progress": True}))
  assert not any("prompt_progress" in chunk or "queue" in chunk for chunk in plain)
  progress = [chunk for chunk in told if "prompt_progress" in chunk]
  assert all(chunk["choices"][0].get("text", "") == "" and not chunk["choices"][0].get("delta") for chunk in progress)
  last = progress[-1]["prompt_progress"]
  assert last["processed"] == last["total"] >= 5 > 0 <= last["cache"] < last["total"] and last["time_ms"] >= 0
  assert texts_of(told) == texts_of(plain) != ""
  begun = next(i for i, chunk in enumerate(told) if texts_of([chunk]))
  assert told.index(progress[-1]) < begun  # nothing of it comes later


def texts_of(chunks: list[Any]) -> str:
  choices = [choice for chunk in chunks for choice in chunk["choices"]]
  return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)


@contextmanager
def busy(node: NodeProcess) -> Iterator[None]:
  """Its only place is taken."""
  blocker = connect(node)
  body = {"messages": [{"role": "user", "content": SLOW}], "stream": True, **ENDLESS}
  blocker.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
  answering = blocker.getresponse()
  while b'"content":"' not in (line := answering.readline()) or b'"content":""' in line:
    assert line
  yield
  answering.close()
  blocker.close()


def test_22_line_6_a_queue_tells_its_places(nodes: list[NodeProcess]) -> None:
  """At either node, one of which is not where the plan begins."""
  heard: list[list[Any]] = [[], []]

  def wait(i: int) -> None:
    connection = connect(nodes[i])
    asked = {"messages": [{"role": "user", "content": f"a {i}"}], "stream": True, "max_tokens": 3}
    text = json.dumps(asked | {"return_progress": True})
    connection.request("POST", "/v1/chat/completions", text, {"Content-Type": "application/json"})
    response = connection.getresponse()
    while line := response.readline():
      if line.startswith(b"data: {"):
        heard[i].append(json.loads(line[6:]))
    connection.close()

  waiting = [threading.Thread(target=wait, args=(i, )) for i in range(2)]
  with busy(nodes[0]):
    for thread in waiting:
      thread.start()
    places = lambda: sorted(c["queue"]["place"] for of in heard for c in of if "queue" in c)  # noqa: E731
    wait_until(lambda: {1, 2} <= set(places()), 20, "two places in the line")
  for thread in waiting:
    thread.join(60)
  for of in heard:
    kinds = ["queue" if "queue" in c else "prompt" if "prompt_progress" in c else "text" for c in of if c["choices"]]
    assert "prompt" in kinds and kinds.index("prompt") > kinds.index("queue")
    assert texts_of(of) and of[-1]["choices"][0]["finish_reason"] == "length"


def test_22_line_6_exo_run_shows_its_place_in_the_line(nodes: list[NodeProcess]) -> None:
  command = [sys.executable, "-m", "exo", "run", "--prompt", "hello", "--max-tokens", "3"]
  environment = os.environ | {"EXO_HOME": str(nodes[0].home), "DEBUG": "0", "PYTHONUNBUFFERED": "1"}
  with busy(nodes[0]):
    asked = subprocess.Popen(command, stdout=PIPE, stderr=PIPE, stdin=DEVNULL, text=True, cwd=ROOT, env=environment)
    assert asked.stderr is not None
    while "waiting for its turn, place 1 in the line" not in (line := asked.stderr.readline()):
      assert line, "it ended without a word"
  out, err = asked.communicate(timeout=60)
  assert asked.returncode == 0 and len(out.strip()) == 3, (out, err)


def test_22_line_6_what_is_waited_for_has_its_figures() -> None:
  """A prompt after two seconds, a load its bytes, a download its rate and the time that is left."""
  progress = LoadProgress(cast(ApiClient, None))
  progress.heard(Delta(prompt={"total": 4000, "cache": 0, "processed": 1000, "time_ms": 5}))
  assert not list(progress._waiting())
  progress._prompt_since -= 3
  assert list(progress._waiting()) == [Stretch("reading the prompt", 0.25, "25%, 1,000 of 4,000 tokens")]
  progress.heard(Delta("It"))
  assert not list(progress._waiting())
  told = {"loading": {"m": 0.5, "old": 0.1}, "loading_bytes": {"m": 2 * 2**30}}
  assert list(_loading(told)) == [Stretch("loading m", 0.5, "1.0 GB of 2.0 GB"), Stretch("loading old", 0.1)]
  download = {
      "node_id": "a", "node_name": "desk", "model": "m", "downloaded_bytes": 2**20, "total_bytes": 4 * 2**20, "done": False,
      "error": None, "status": "downloading", "bytes_per_s": 2**20, "left_s": 3.0
  }  # yapf: disable
  assert list(_fetching([download])) == [Stretch("fetching m", 0.25, "1 MB of 4 MB, 1 MB/s, 3 s left")]
  other = download | {"node_id": "b", "node_name": "lap", "total_bytes": 0, "bytes_per_s": 0, "left_s": None}
  assert [s.what for s in _fetching([download, other])] == ["fetching m on desk", "fetching m on lap"]
  assert next(_fetching([other, download | {"done": True}])).part is None


def test_22_line_6_a_long_prompt_shows_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  """Asked at a node in the middle of a ring; who does not ask hears nothing."""
  monkeypatch.setattr(progress_teller, "_EVERY_S", 0.0)

  async def scenario() -> None:
    async with local_ring(tmp_path, 10, 10, 10) as (nodes, _):
      model = await nodes[1].model("dummy")
      for node, asks in ((nodes[0], False), (nodes[1], True), (nodes[2], True)):
        found: list[PromptProgress] = []
        wanted = replace(spec(f"{node.node_id} " * 500, 4), progress=asks)
        async with node.generation(wanted, model) as generation:
          while isinstance(event := await generation.event(), PromptProgress):
            found.append(event)
          assert event.index == 0
          assert [d async for d in generation]
        if not asks:
          assert not found
          continue
        computed = [progress.processed for progress in found]
        assert len(computed) > 3 and computed == sorted(set(computed))
        assert {progress.total for progress in found} == {len(wanted.prompt_ids)}
        assert 0 < computed[-1] <= len(wanted.prompt_ids) and not any(progress.place for progress in found)

  run(scenario)


def test_22_line_6_progress_that_cannot_be_is_refused() -> None:
  assert decode(encode(PromptProgress("p", "r", 0, 9, 3, 5)))[0] == PromptProgress("p", "r", 0, 9, 3, 5)
  for wrong in (
      PromptProgress("p", "r", 0, 9, 0, 10), PromptProgress("p", "r", 0, 9, 6,
                                                            5), PromptProgress("p", "r", 0, 2**21, 0, 5)
  ):
    with pytest.raises(ProtocolError, match="tokens of a prompt"):
      decode(encode(wrong))
