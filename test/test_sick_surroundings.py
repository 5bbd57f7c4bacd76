"""Line 16, surroundings that are sick: control groups, clocks, what keeps nodes apart."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from exo import log
from exo.control_groups import ControlGroups
from exo.networking.refusals import MAX_REFUSALS, NOW_S, Refusals
from test.support.control_groups import entering, group
from test.support.nodes import ROOT, NodeProcess, exo, free_port, wait_until

DUMMY = ("--inference-engine", "dummy", "--default-model", "dummy")

# control groups

MB = 2**20


def tree(root: Path, cgroup: str, mounts: str, files: dict[str, str]) -> ControlGroups:
  """A system of our own making."""
  (root / "proc/self").mkdir(parents=True)
  (root / "proc/self/cgroup").write_text(cgroup)
  (root / "proc/self/mountinfo").write_text(mounts)
  for name, text in files.items():
    path = root / "sys/fs/cgroup" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")
  return ControlGroups(root)


V2 = "29 22 0:25 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "".join(
    f"3{i} 25 0:2{i} {{root}} /sys/fs/cgroup/{name} rw,nosuid - cgroup cgroup rw,{name}\n"
    for i, name in enumerate(("memory", "cpu,cpuacct"))
)
TREES: dict[str, tuple[str, str, dict[str, str], int, int, float | None]] = {
    # name: (/proc/self/cgroup, mounts, files, memory in MB, free in MB, processors)
    "a service below a smaller slice": (
        "0::/exo.slice/exo.service", V2, {
            "exo.slice/memory.max": str(300 * MB), "exo.slice/memory.current": str(200 * MB),
            "exo.slice/exo.service/memory.max": str(900 * MB), "exo.slice/exo.service/memory.current": str(50 * MB),
            "exo.slice/cpu.max": "150000 100000", "exo.slice/exo.service/cpu.max": "max 100000"
        }, 300, 100, 1.5
    ),
    "what throttles counts as what kills, and caches as free": (
        "0::/a/b", V2, {
            "a/b/memory.max": "max", "a/b/memory.high": str(400 * MB), "a/b/memory.current": str(390 * MB),
            "a/b/memory.stat": f"anon 1\nactive_file {100 * MB}\ninactive_file {50 * MB}",
            "a/b/cpu.max": "300000 100000", "a/cpu.max": "50000 100000"
        }, 400, 160, 0.5
    ),
    "a container that sees its own group as the top": (
        "0::/", V2, {"memory.max": str(256 * MB), "memory.current": str(300 * MB),
                     "cpu.max": "200000 100000"}, 256, 0, 2.0
    ),
    "a process outside of its namespace": ("0::/../other", V2, {"memory.max": str(128 * MB)}, 128, 128, None),
    "version 1, each controller with a path of its own": (
        "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/x\n0::/\n", V1.format(root="/docker/abc"), {
            "memory/memory.limit_in_bytes": str(512 * MB), "memory/memory.usage_in_bytes": str(112 * MB),
            "memory/memory.stat": f"hierarchical_memory_limit {480 * MB}\ntotal_inactive_file {12 * MB}",
            "cpu,cpuacct/cpu.cfs_quota_us": "250000", "cpu,cpuacct/cpu.cfs_period_us": "100000"
        }, 480, 380, 2.5
    ),
    "version 1, the group above allows less": (
        "5:memory:/a/b\n4:cpuacct,cpu:/a/b\n", V1.format(root="/"), {
            "memory/a/memory.limit_in_bytes": str(100 * MB), "memory/a/memory.usage_in_bytes": str(40 * MB),
            "memory/a/b/memory.limit_in_bytes": "9223372036854771712",
            "memory/memory.limit_in_bytes": "9223372036854771712", "cpu,cpuacct/a/cpu.cfs_quota_us": "100000",
            "cpu,cpuacct/a/cpu.cfs_period_us": "100000", "cpu,cpuacct/a/b/cpu.cfs_quota_us": "-1",
            "cpu,cpuacct/a/b/cpu.cfs_period_us": "100000"
        }, 100, 60, 1.0
    ),
}


@pytest.mark.parametrize("name", TREES)
def test_line_16_limits_of_the_own_control_group_and_of_those_above_it(name: str, tmp_path: Path) -> None:
  cgroup, mounts, files, memory_mb, free_mb, quota = TREES[name]
  groups = tree(tmp_path, cgroup, mounts, files)
  limits = groups.memory()
  assert min(limit.limit for limit in limits) == memory_mb * MB and min(limit.free for limit in limits) == free_mb * MB
  assert groups.processors() == quota


def test_line_16_a_system_without_control_groups_limits_nothing(tmp_path: Path) -> None:
  for i, (cgroup, mounts, files) in enumerate((("", "", {}), ("0::/a", V2, {}), ("x\n::::", "- cgroup2", {}),
                                               ("0::/a", V2, {"a/memory.max": "²", "a/cpu.max": "² 0"}))):
    groups = tree(tmp_path / str(i), cgroup, mounts, files)
    assert not groups.memory() and groups.processors() is None
  assert not ControlGroups(tmp_path / "none").memory()


def test_line_16_a_node_in_a_control_group_offers_what_that_leaves(tmp_path: Path) -> None:
  with group("memory", {"memory.limit_in_bytes": str(1500 * MB)}) as procs:
    enter = entering(procs)
    flags = (*DUMMY, "--discovery-module", "none")
    nodes = [NodeProcess(tmp_path, *flags, node_id=f"n{i}", prefix=enter) for i in range(2)]
    try:
      for node in nodes:
        node.wait_ready()
        assert 1400 < node.get("/v1/topology")[1]["nodes"][node.node_id]["memory"] <= 1500
      # the two hold some of it: what is left is less than what is offered
      done = subprocess.run([*enter, sys.executable, "-m", "exo", "doctor"],
                            cwd=ROOT,
                            env=os.environ | {"EXO_HOME": str(tmp_path), "DEBUG": "0"},
                            capture_output=True,
                            text=True,
                            timeout=60,
                            check=False)
      (line, ) = [line for line in done.stdout.splitlines() if line.strip().startswith("memory")]
      assert "1.5 GB" in line and "control groups" in line
      free = re.search(r"1\.5 GB, ([\d.]+) (MB|GB) of them free", line)
      assert free and 200 < float(free[1]) * (1024 if free[2] == "GB" else 1) < 1450, line
    finally:
      for node in nodes:
        node.stop()


def test_line_16_threads_follow_the_quota_of_the_group_above(tmp_path: Path) -> None:
  with group("cpu", {"cpu.cfs_quota_us": "100000"}) as procs:
    code = "from exo.system_figures import processors; print(processors())"
    done = subprocess.run([*entering(procs), sys.executable, "-c", code],
                          cwd=ROOT,
                          capture_output=True,
                          text=True,
                          timeout=60,
                          check=False)
  assert done.stdout.strip() == "1", done.stderr


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


def test_line_16_no_stranger_uses_up_the_log_for_good() -> None:
  """Beyond a few dozen lines such reasons are logged at a higher level; some time later there is room for others."""
  now, lines = [0.0], list[str]()
  refusals = Refusals(lambda: now[0])
  log.set_sink(lines.append)
  try:
    for i in range(50):
      refusals.note(f"stranger {i} is refused", loud=True)
    assert 10 < len(lines) < 50
    now[0], before = 3600.0, len(lines)
    refusals.note("the clock of a is off", loud=True)
    assert len(lines) == before + 1
  finally:
    log.set_sink(None)
