"""The bench of real sizes, with a tiny model: that each side is measured beside the other, and that its verdicts are the issue's."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from exo.inference.llama_cpp.library_file import library_files
from scripts.real_sizes.pairs import Compared, Contest, Goal, in_turn, interval
from test.support.nodes import ROOT

needs_library = pytest.mark.skipif(next(library_files(), None) is None, reason="xllamacpp is not installed")


def bench(folder: Path, *arguments: str) -> tuple[str, dict[str, Any]]:
  """What it prints and what it keeps."""
  kept = folder / "figures.json"
  command = [sys.executable, "scripts/bench.py", "real-sizes", "--quick", "--folder", str(folder), "--json", str(kept)]
  environment = {key: value for key, value in os.environ.items() if key != "EXO_LLAMA_CPP"}
  done = subprocess.run([*command, *arguments],
                        cwd=ROOT,
                        env=environment,
                        capture_output=True,
                        text=True,
                        timeout=280,
                        check=False)
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout, json.loads(kept.read_text())


@pytest.mark.slow
@needs_library
@pytest.mark.timeout(300)
def test_issue_19_it_must_show_measures_everything_beside_llama_cpp(tmp_path: Path) -> None:
  """Against the wheel's own server, every scenario in one run on one file; which library that was is said."""
  said, kept = bench(tmp_path, "--pairs", "1", "--server", "wheel")
  assert kept["library"].startswith(("xllamacpp", "llama-cpp-python")) and f"library: {kept['library']}" in said
  rows = kept["figures"]["tiny-Q8_0, 1 thread"]
  seen = {(row["scenario"], row["name"], row["figure"]): row["goal"] for row in rows}
  http = {(n, how, figure) for n in (24, 80) for how in ("exact", "--exact off") for figure in ("prefill", "decode")}
  assert set(seen) == {
      ("engine", "engine alone, 24 tokens", "prefill"),
      ("engine", "engine alone, 24 tokens", "decode"),
      *(("http", f"HTTP, {n} tokens, {how}", figure) for n, how, figure in http),
      *(("streams", f"3 streams, {how}", "decode") for how in ("--exact off", "exact", "unseeded")),
      ("load", "load to first token", "first token, s"),
      ("ring", "ring of two / one node, 40 tokens", "prefill"),
      ("ring", "ring of two / one node, 40 tokens", "decode"),
      ("ring", "ring of two, 2 exact streams / unseeded", "decode"),
      ("turns", "second turn after 24 + 48 tokens, exact / --exact off", "first token, s"),
      ("turns", "second turn after 24 + 48 tokens, exact / --exact off", "tokens kept"),
  }
  assert seen["streams", "3 streams, unseeded", "decode"] == "≥ 0.85"
  assert seen["load", "load to first token", "first token, s"] == "≤ +1 s"
  for row in rows:
    assert len(row["ours"]) == len(row["theirs"]) == row["pairs"] == 1 and min(*row["ours"], *row["theirs"]) > 0
    assert f"| {row['name']} | {row['figure']} |" in said


@needs_library
def test_without_a_server_of_llama_cpp_what_wants_one_is_left_out_and_said(tmp_path: Path) -> None:
  said, kept = bench(tmp_path, "--pairs", "2", "--only", "engine,http,load")
  assert "left out, since --server names no server of llama.cpp: http, load" in said
  rows = kept["figures"]["tiny-Q8_0, 1 thread"]
  assert [row["figure"] for row in rows] == ["prefill", "decode"] and all(row["pairs"] == 2 for row in rows)


def compared(ratios: list[float], least: float) -> Compared:
  return Compared("", "", Goal(least), ratios, [1.0] * len(ratios))


def test_issue_19_at_least_x_holds_by_the_interval_and_the_median() -> None:
  """If the interval's upper end reaches x, the median x - 0.02, and the interval is at most 0.06 wide (else more pairs)."""
  assert compared([0.94, 0.94, 0.945, 0.95, 0.96], 0.95).verdict == "holds"  # its end reaches it
  assert compared([0.90, 0.91, 0.92, 0.93, 0.94], 0.95).verdict == "MISSED"  # its end does not
  assert compared([0.91, 0.91, 0.92, 0.95, 0.96], 0.95).verdict == "MISSED"  # the median is too low
  wide = compared([0.90, 0.93, 0.96, 0.99, 1.05], 0.95)
  assert wide.verdict == "too wide to tell" and not wide.is_settled
  assert compared([0.5, 0.6, 0.7, 0.8, 0.9], 0.95).verdict == "MISSED"  # however wide
  low, high = interval([0.9, 1.0, 1.1] * 9)
  assert 0.9 <= low <= 1.0 <= high <= 1.1
  assert Compared("", "", Goal(later=1.0), [2.5, 2.0], [1.5, 1.5]).verdict == "holds"
  assert Compared("", "", Goal(later=1.0), [2.9, 2.9], [1.5, 1.5]).verdict == "MISSED"


def test_sides_alternate_and_wide_intervals_get_more_pairs() -> None:
  order: list[str] = []
  ours = iter([1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])

  async def theirs() -> Mapping[str, float]:
    order.append("b")
    return {"decode": 1.0}

  async def first() -> Mapping[str, float]:
    order.append("a")
    return {"decode": next(ours)}

  async def second() -> Mapping[str, float]:
    order.append("c")
    return {"decode": 1.0}

  contests = [
      Contest("first", first, theirs, {"decode": Goal(0.9)}),
      Contest("second", second, theirs, {"decode": Goal()})
  ]
  one, two = asyncio.run(in_turn(contests, 3, 12))
  assert order == ["b", "a", "c"] * len(one.values)
  assert 3 < len(one.values) < 12 and one.is_settled and one.verdict == "holds"
  assert len(two.values) == len(one.values) and two.verdict == ""
