"""Surroundings that are sick: of the issue "Nothing sick spreads", line 16."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from exo.networking.refusals import MAX_REFUSALS, NOW_S, Refusals
from test.support.nodes import ROOT, NodeProcess, free_port, wait_until

DUMMY = ("--inference-engine", "dummy", "--default-model", "dummy")


def exo(home: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
  return subprocess.run([sys.executable, "-m", "exo", *arguments],
                        cwd=ROOT,
                        env=os.environ | {"EXO_HOME": str(home), "DEBUG": "0"} | env,
                        capture_output=True,
                        text=True,
                        timeout=120,
                        check=False)


# clocks


def with_clock(folder: Path, by_s: float) -> dict[str, str]:
  """The environment of a process whose clock is off."""
  folder.mkdir(exist_ok=True)
  (folder / "sitecustomize.py").write_text(
      f"import time\n_time = time.time\ntime.time = lambda: _time() + {by_s}\n"
      f"_ns = time.time_ns\ntime.time_ns = lambda: _ns() + int({by_s} * 1e9)\n"
  )
  return {"PYTHONPATH": f"{folder}:{ROOT}"}


def test_line_16_a_clock_that_is_off_is_named_by_log_error_and_doctor(tmp_path: Path, goldens: Path) -> None:
  port = str(free_port())
  flags = ("--listen-port", port, "--broadcast-port", port, "--cluster-key", "k" * 40, *DUMMY)
  quiet = {"DEBUG": "0"}
  small = ("--max-memory", "1", "--model-dir", str(goldens), "--inference-engine", "onnx")
  right = NodeProcess(tmp_path / "a", *flags, *small, node_id="right", env=quiet)
  wrong = NodeProcess(tmp_path / "b", *flags, node_id="wrong", env=quiet | with_clock(tmp_path / "late", 95))
  try:
    for node in (right, wrong):
      node.wait_ready()
    wait_until(lambda: "its clock differs from this machine's by +95 s" in right.log, 20, "a line of the log")
    wait_until(lambda: "its clock differs from this machine's by -95 s" in wrong.log, 20, "one of the other's")
    done = exo(tmp_path / "a", "doctor", "--listen-port", port)
    assert done.returncode == 1 and "its clock differs from this machine's by +95 s" in done.stdout, done.stdout
    assert "all is well" not in done.stdout and done.stdout.splitlines()[-1].startswith("something is wrong")
    status, answer = right.post("/v1/completions", {"model": "gemma3_text", "prompt": "a"})
    assert status == 503 and "its clock differs from this machine's by +95 s" in answer["error"]["message"], answer
    said = [line.partition("ignored")[2] for line in right.log.splitlines() if "its clock differs" in line]
    assert len(said) == len({line.partition(": ")[0] for line in said})  # once an address, not at every beacon
  finally:
    for node in (right, wrong):
      node.stop()


def test_line_16_what_is_refused_is_wrong_only_while_it_lasts_and_unless_it_is_wanted() -> None:
  now = [0.0]
  refusals = Refusals(lambda: now[0])
  refusals.note("the clock is off by 40 s", about="clock", wrong=True)
  refusals.note("not in --node-id-filter")
  refusals.note("no link to a", wrong=True, node_id="a")
  assert refusals.problems() == ["the clock is off by 40 s", "no link to a"]
  assert refusals.problems({"a": 1}) == ["the clock is off by 40 s"]
  now[0] = NOW_S + 1
  assert not refusals.problems() and len(refusals.texts()) == 3
  refusals.note("the clock is off by 41 s", about="clock", wrong=True)
  assert refusals.problems() == ["the clock is off by 41 s"] and len(refusals.texts()) == 3
  for i in range(2 * MAX_REFUSALS):
    refusals.note(f"stranger {i}", wrong=True)
  assert len(refusals.texts()) == MAX_REFUSALS
