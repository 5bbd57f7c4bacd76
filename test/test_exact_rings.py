"""`--exact` on real nodes: the same bits warm, cold and evicted, alone and in company; and answers that say what they are."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exo.inference.llama_cpp.library_file import library_files
from test.support.nodes import NodeProcess, ring, wait_until
from test.support.shaped_models import Shape, write_shaped

pytestmark = pytest.mark.skipif(next(library_files(), None) is None, reason="xllamacpp is not installed")

SHAPE = Shape(3, 512, 1024, 8, 4, 600, 4096)
IDS = [int(i) for i in np.random.default_rng(7).integers(5, 590, 4000)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
  return write_shaped(tmp_path_factory.mktemp("exact") / "noise.gguf", SHAPE, "Q4_K_M")


def ask(node: NodeProcess, prompt: list[int], **fields: Any) -> dict[str, Any]:
  body = {"model": "noise", "prompt": prompt, "max_tokens": 12, "temperature": 0, "logprobs": 1, "ignore_eos": True}
  status, answer = node.post("/v1/completions", body | fields)
  assert status == 200, answer
  return dict(answer)


def said(answer: dict[str, Any]) -> list[tuple[str, float]]:
  of = answer["choices"][0]["logprobs"]
  return list(zip(of["tokens"], of["token_logprobs"], strict=True))


def cached(answer: dict[str, Any]) -> int:
  return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


@contextmanager
def company(node: NodeProcess, count: int) -> Iterator[None]:
  """Others who talk meanwhile, some of them at random."""
  over = threading.Event()

  def talk(number: int) -> None:
    turn = 0
    while not over.is_set():
      start = 100 + 37 * number + turn
      settings = ({"temperature": 0}, {"temperature": 1.0}, {"temperature": 1.0, "seed": number})[number % 3]
      ask(node, IDS[start:start + 20 + 31 * number], max_tokens=20, **settings)
      turn += 1

  talkers = [threading.Thread(target=talk, args=(number, )) for number in range(count)]
  for talker in talkers:
    talker.start()
  try:
    yield
  finally:
    over.set()
    for talker in talkers:
      talker.join(60)


def second_turn(node: NodeProcess) -> tuple[list[tuple[str, float]], int]:
  """(what it says, how much of the prompt was kept) of a chat whose first answer is in the prompt, as clients send it."""
  first = ask(node, IDS[:150])
  tokens = [int(token[1:]) if token[1:].isdigit() else 7 for token, _ in said(first)]
  answer = ask(node, [*IDS[:150], *tokens, *IDS[150:190]])
  return said(answer), cached(answer)


@pytest.mark.parametrize("count", [1, 2])
def test_issue_19_a_second_turn_is_the_same_warm_cold_and_evicted(count: int, model: Path, tmp_path: Path) -> None:
  flags = (
      "--inference-engine", "llama_cpp", "--model-dir", str(model.parent), "--max-memory", "1000", "--context", "1024",
      "--parallel", "8"
  )
  expected: list[tuple[str, float]] = []
  for home in ("first", "second"):
    with ring(tmp_path / home, count, *flags) as nodes:
      node = nodes[0]
      with company(node, 7 if home == "second" else 0):
        found, kept = second_turn(node)
        again, kept_again = second_turn(node)
        assert found == again == (expected or found)
        expected = found
      if home == "first":
        assert kept <= 150 and kept_again < 190, "nothing that was decoded"
        # as soon as all stages know their kernels, prompts may be cut at less than 256 tokens
        known = "is exact with Exactness(decode_rows=3, prompt_multiple=8"
        wait_until(lambda: any(known in one.log for one in nodes), 120, "the study")  # noqa: B023
        plain = [ask(node, IDS[:190]) for _ in range(2)]
        assert said(plain[0]) == said(plain[1]) and cached(plain[1]) > 100
        for i in range(14):  # more than the caches hold
          ask(node, IDS[200 + 50 * i:1000 + 50 * i], max_tokens=1)
        evicted = ask(node, IDS[:190])
        assert cached(evicted) < cached(plain[1]) and said(evicted) == said(plain[0])
        assert second_turn(node)[0] == expected
      else:
        with company(node, 7):
          assert said(ask(node, IDS[:190])) == said(plain[0])


def test_issue_19_answers_say_whether_they_are_exact(model: Path, tmp_path: Path) -> None:
  flags = (
      "--inference-engine", "llama_cpp", "--model-dir", str(model.parent), "--max-memory", "1000", "--context", "512"
  )
  for mode, expected in (("seeded", (True, True, False)), ("all", (True, True, True)), ("off", (False, False, False))):
    with ring(tmp_path / mode, 1, *flags, *(("--exact", mode) if mode != "seeded" else ())) as (node, ):
      assert node.get("/v1/topology")[1] and status_of(node)["exact"] == mode
      for settings, exact in zip(({}, {"temperature": 1.0, "seed": 3}, {"temperature": 0.8}), expected, strict=True):
        answer = ask(node, IDS[:30], **settings)
        assert answer["exo"] == {"exact": exact} and answer["system_fingerprint"]
        for path, body in (
            ("/v1/completions", {"prompt": IDS[:9]}),
            ("/v1/completions", {"prompt": [IDS[:9], IDS[9:19]]}),
            ("/v1/completions", {"prompt": IDS[:9], "stream": True}),
        ):
          full = {"model": "noise", "max_tokens": 2, "temperature": 0} | settings | body
          data = json.dumps(full).encode()
          request = urllib.request.Request(node.url + path, data, {"Content-Type": "application/json"})
          with urllib.request.urlopen(request, timeout=60) as response:
            assert response.headers["x-exo-exact"] == str(exact).lower()
            text = response.read().decode()
            assert f'"exo":{{"exact":{str(exact).lower()}}}' in text.replace(" ", "")
      node.wait_said("in any company" if mode == "off" else ", exact")


def status_of(node: NodeProcess) -> dict[str, Any]:
  with urllib.request.urlopen(f"{node.url}/v1/topology/stream", timeout=10) as response:
    for line in response:
      if line.startswith(b"data: "):
        return dict(json.loads(line[6:]))
  raise AssertionError("the stream ended")
