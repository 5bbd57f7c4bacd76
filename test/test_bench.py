"""`exo bench` against a real ring, as a user would run it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from exo.cli.bench_load import Answer, prose, quantile, shared_tokens_s
from test.support.nodes import ROOT, NodeProcess


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
  command = [sys.executable, "-m", "exo", "bench", *arguments]
  return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)


@pytest.mark.parametrize("dummy_ring", [2], indirect=True)
def test_a_ring_is_measured_and_compared(dummy_ring: list[NodeProcess]) -> None:
  one, two = dummy_ring
  done = bench(
      "--url", one.url, "--compare", f"{two.url}/v1", "--streams", "1,3", "--tokens", "12", "--rounds", "2", "--json",
      "-"
  )
  assert done.returncode == 0, done.stderr
  mine, other = json.loads(done.stdout)
  assert (mine["url"], other["url"]) == (one.url, two.url)
  for figures in (mine, other):
    assert [row["streams"] for row in figures["streams"]] == [1, 3]
    assert all(row["first_token_ms"] > 0 and row["tokens_s"] > 0 for row in figures["streams"])
    assert figures["prefix"]["cached_tokens"] > 0.9 * figures["prefix"]["prompt_tokens"]
    assert figures["prefill_tokens_s"] > 0
    assert set(figures["nodes"]) == {"node0", "node1"}
    assert all(node["rss_mb"] > 0 and node["cpu_percent"] > 0 for node in figures["nodes"].values())
    hop, = figures["hops"]
    assert len(hop["compute_ms"]) == 2 and hop["hop_ms"] > 0 and hop["hop_p99_ms"] >= hop["hop_ms"]
  assert 0 < one.get("/v1/topology")[1]["nodes"]["node1"]["codec_ms"] < hop["transport_ms"]


@pytest.mark.parametrize("dummy_ring", [1], indirect=True)
def test_the_table_is_readable(dummy_ring: list[NodeProcess]) -> None:
  done = bench("--url", dummy_ring[0].url, "--streams", "2", "--tokens", "5", "--rounds", "1")
  assert done.returncode == 0, done.stderr
  assert "tokens/s" in done.stdout and "prefix reuse" in done.stdout and "of a core" in done.stdout


def test_what_cannot_be_measured_says_why() -> None:
  done = bench("--url", "http://127.0.0.1:9")
  assert done.returncode == 1 and "cannot be reached" in done.stderr
  assert bench("--streams", "0").returncode == 2


def test_rates_are_of_the_time_in_which_all_decode() -> None:
  early = Answer(0.0, [1.0, 2.0, 3.0, 4.0], completion_tokens=4)
  late = Answer(0.0, [2.5, 3.5, 4.5, 5.5], completion_tokens=4)
  assert shared_tokens_s([early, late]) == 3 / 1.5
  assert shared_tokens_s([early, Answer(0.0, [9.0, 9.5], completion_tokens=2)]) == 0
  assert early.tokens_s == 1 and early.gaps_ms == [1000.0] * 3
  assert quantile([3, 1, 2], 50) == 2 and quantile([], 99) == 0
  assert prose(50, 1) != prose(50, 2) and len(prose(50, 1).split()) == 50
