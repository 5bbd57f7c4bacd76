"""Line 13, requirement 17: starts that were sick."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import aiohttp
import psutil
import pytest

from exo.api.failure_brake import FREE_FAILURES, MAX_ADDRESSES, MAX_WAITING, PLACES, FailureBrake
from exo.api.keys import check_given
from exo.cli import assemble
from exo.config import config_from
from exo.errors import ConfigError
from exo.inference.engines import probe_engine
from exo.library_files import keep_library_files
from exo.machine import process_started, this_machine
from exo.networking.address_rule import parse_address
from exo.networking.discovery import NoDiscovery
from exo.networking.mesh import PeerCandidate
from exo.networking.peer_messages import Hello
from exo.orchestration.identity import claim_identity
from exo.runtime_file import RuntimeInfo, running_nodes, runtime_path, write_runtime_file
from test.support.http import call
from test.support.hub import hub
from test.support.nodes import ROOT, NodeProcess, exo, free_port, ring, wait_until

ENGINES = ("onnx", "mlx", pytest.param("tinygrad", marks=pytest.mark.slow))  # compiles for half a minute
DUMMY = ("--inference-engine", "dummy", "--default-model", "dummy")

# machines that share an EXO_HOME


def info_of(pid: int, node_id: str = "n") -> RuntimeInfo:
  return RuntimeInfo(pid, process_started(pid) or 0.0, node_id, "127.0.0.1", 1, 2)


def test_line_13_machines_that_share_a_home_leave_each_others_runtime_files_alone(tmp_path: Path) -> None:
  here, pid = this_machine(), os.getpid()
  own = write_runtime_file(tmp_path, info_of(pid, "own"))
  assert here.host in own.name and here.boot in own.name and here.boot != "0"

  def write(name: str, **other: str) -> Path:
    path = runtime_path(tmp_path, pid, replace(here, **other))
    path.write_text(json.dumps(asdict(info_of(pid, name))))
    return path

  kept = [
      write("another machine", host="desk", mark="0123456789ab", boot="f" * 32),
      write("one of the same name", mark="0123456789ab", boot="f" * 32),
      write("a container of this machine", pids="1"),
  ]
  former = write("this machine before it was started anew", boot="e" * 32)
  assert [info.node_id for info in running_nodes(tmp_path)] == ["own"]
  assert all(path.exists() for path in kept) and not former.exists() and own.exists()


def test_line_13_a_pid_that_another_program_has_now_is_no_node(tmp_path: Path) -> None:
  process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
  try:
    living = write_runtime_file(tmp_path, info_of(process.pid))
    assert [info.pid for info in running_nodes(tmp_path)] == [process.pid]
    write_runtime_file(tmp_path, replace(info_of(process.pid), started=info_of(process.pid).started - 60))
    assert not running_nodes(tmp_path) and not living.exists()
    write_runtime_file(tmp_path, info_of(process.pid))
  finally:
    process.communicate(b"\n")
  assert not running_nodes(tmp_path) and not living.exists()


def test_line_13_node_ids_of_a_shared_home_are_each_machines_own(tmp_path: Path) -> None:
  """Where the system's locks do not reach from one machine to another, the folders tell them apart."""
  first = claim_identity(tmp_path, None)
  other = tmp_path / "ids" / this_machine().mark
  first.release()
  other.rename(tmp_path / "ids" / "0123456789ab")  # as another machine would have left it
  second = claim_identity(tmp_path, None)
  second.release()
  assert second.node_id != first.node_id
  again = claim_identity(tmp_path, None)
  again.release()
  assert again.node_id == second.node_id


def test_line_13_commands_of_one_machine_do_not_take_anothers_node_for_their_own(tmp_path: Path) -> None:
  with ring(tmp_path, 1, *DUMMY, "--discovery-module", "none") as (node, ):
    stranger = runtime_path(
        tmp_path / ".exo", node.process.pid, replace(this_machine(), mark="0123456789ab", boot="f" * 32)
    )
    stranger.write_text(node.runtime_file.read_text().replace(node.node_id, "stranger"))

    assert node.node_id in (shown := exo(tmp_path, "status").stdout) and "stranger" not in shown
    assert f"{node.node_id} has stopped" in (said := exo(tmp_path, "stop").stdout) and "stranger" not in said
    assert node.process.wait(20) == 0
  assert stranger.exists() and not node.runtime_file.exists()


# a node that does not serve yet


def test_line_13_a_node_is_not_healthy_before_it_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  """The API is there first, so that a port that is taken is noticed before others hear of the node."""
  found = asyncio.Event()

  class SlowDiscovery(NoDiscovery):
    async def start(self, local: Hello, offer: Callable[[PeerCandidate], None]) -> None:
      await found.wait()

  async def run() -> None:
    monkeypatch.setattr(assemble, "make_discovery", lambda *_: SlowDiscovery())
    port = free_port()
    config = config_from({
        "inference_engine": "dummy", "default_model": "dummy", "chatgpt_api_port": port, "discovery_module": "none"
    }, {"EXO_HOME": str(tmp_path)})
    stop = asyncio.Event()

    async def node() -> None:
      async with assemble.running_node(config, stop.set):
        await stop.wait()

    running = asyncio.create_task(node())
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:

      async def health() -> tuple[int, str]:
        try:
          async with client.get("/health") as response:
            return response.status, (await response.json()).get("reason", "")
        except aiohttp.ClientError:
          return 0, ""

      async def after(status: int) -> tuple[int, str]:
        for _ in range(1500):
          if (seen := await health())[0] != status:
            return seen
          await asyncio.sleep(0.02)
        raise AssertionError(f"the status stayed {status}")

      seen = await after(0)
      assert seen[0] == 503 and "is starting" in seen[1], seen
      async with client.post("/v1/completions", json={"prompt": "a"}) as response:
        assert response.status == 503 and (await response.json())["error"]["code"] == "starting"
      found.set()
      assert (await after(503))[0] == 200
      async with client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}) as response:
        assert response.status == 200
    stop.set()
    await running

  asyncio.run(asyncio.wait_for(run(), 60))


def test_line_13_who_sees_a_healthy_node_can_link_to_it(tmp_path: Path) -> None:
  api, grpc = free_port(), free_port()
  ports = ("--chatgpt-api-port", str(api), "--node-port", str(grpc))
  node = NodeProcess(tmp_path, *DUMMY, "--discovery-module", "none", "--cluster-key", "k" * 40, *ports, node_id="n")
  node.url = f"http://127.0.0.1:{api}"
  try:
    wait_until(lambda: node.get("/healthcheck", 2)[0] == 200, 30, "health")
    socket.create_connection(("127.0.0.1", grpc), 5).close()
  finally:
    assert node.stop() == 0


def test_line_13_a_node_that_waits_for_others_is_not_healthy_yet(tmp_path: Path) -> None:
  with ring(tmp_path, 2, *DUMMY, "--wait-for-peers", "1") as (one, other):
    assert one.get("/health") == other.get("/health") == (200, {"status": "ok"})
    other.kill()
    alone = NodeProcess(tmp_path, *DUMMY, "--discovery-module", "none", "--wait-for-peers", "1", node_id="alone")
    try:
      wait_until(alone.runtime_file.exists, 30, "the start")
      alone.url = f"http://127.0.0.1:{json.loads(alone.runtime_file.read_text())['api_port']}"
      wait_until(lambda: "waiting for 1 other" in alone.log, 10, "the waiting")
      status, answer = alone.get("/health")
      assert status == 503 and "--wait-for-peers" in answer["reason"]
      assert alone.post("/v1/completions", {"prompt": "a"})[0] == 503
    finally:
      assert alone.stop() == 0


# keys for the API

SHORT_KEY = "a-key-by-hand-16"


def test_line_13_a_key_that_could_be_guessed_is_refused_at_the_start(tmp_path: Path) -> None:
  for key in ("", "a", "fifteen-letters", "  spaces do not count"[:17], " " * 20, "sixteen-letters\u00e9", "x" * 2000):
    with pytest.raises(ConfigError, match="`exo key api new NAME` makes") as caught:
      check_given(key)
    assert "--api-key" in str(caught.value) and (len(key) < 5 or key not in str(caught.value))
  for key in (SHORT_KEY, f" {SHORT_KEY}\n", "x y" * 20):
    check_given(key)
  done = exo(tmp_path, "--disable-tui", *DUMMY, EXO_API_KEY="a")
  assert done.returncode == 1 and "1 characters" in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
  assert not (tmp_path / ".exo" / "nodes").exists()


def test_line_13_the_command_that_makes_a_key_works_beside_one_that_is_too_short(tmp_path: Path) -> None:
  assert exo(tmp_path, "key", "api", "new", "ann", EXO_API_KEY="short").stdout.startswith("exo-")
  done = exo(tmp_path, "doctor", EXO_API_KEY="short")
  assert done.returncode == 1 and "--api-key (EXO_API_KEY) has 5 characters" in done.stdout


def try_key(node: NodeProcess, key: str) -> tuple[int, float]:
  """(status, seconds until the answer)"""
  started = time.monotonic()
  status = call(node, "GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})[0]
  return status, time.monotonic() - started


def test_line_13_who_tries_keys_is_slowed_down_and_locks_nobody_out(tmp_path: Path) -> None:
  with ring(tmp_path, 1, *DUMMY, "--api-key", SHORT_KEY, "--discovery-module", "none", wait=False) as (node, ):
    made = exo(tmp_path, "key", "api", "new", "ann").stdout.strip()
    first, later = [[try_key(node, f"wrong-{i}-{k}") for k in range(FREE_FAILURES)] for i in range(2)]
    assert {status for status, _ in (*first, *later)} == {401}
    assert sum(s for _, s in later) > 2.5 > sum(s for _, s in first)  # 0.2 + 0.4 + 0.8 + 1 + 1
    wait_until(lambda: try_key(node, made)[0] == 200, 5, "the new key")

    stop, answers = threading.Event(), Counter[int]()

    def guess() -> None:
      while not stop.is_set():
        answers[try_key(node, "wrong")[0]] += 1

    with ThreadPoolExecutor(24) as threads:
      try:
        for _ in range(24):
          threads.submit(guess)
        wait_until(lambda: answers[429] > 200, 20, "a flood that is refused")
        before, started = answers[401], time.monotonic()
        for _ in range(20):  # nobody can guess it, so it is looked at while the others wait
          assert try_key(node, made)[0] == 200
        time.sleep(2)
        tried, took = answers[401] - before, time.monotonic() - started
        assert set(answers) == {401, 429} and tried < 5 * took + 2 * PLACES
        process = psutil.Process(node.process.pid)
        assert process.num_fds() < 200
      finally:
        stop.set()
    wait_until(lambda: try_key(node, SHORT_KEY)[0] == 200, 6, "the right key, once nobody tries any more")


def test_line_13_an_address_that_fails_is_remembered_in_bounds() -> None:
  brake, address = FailureBrake(), parse_address("10.0.0.1")

  async def run() -> None:
    for _ in range(FREE_FAILURES):
      await asyncio.wait_for(brake.failed(address), 0.05)
    held = [asyncio.create_task(brake.failed(address)) for _ in range(PLACES)]
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in held)
    for task in held:
      task.cancel()  # clients that do not wait for the answer free no place
    asked = [asyncio.create_task(brake.admit(address, "")) for _ in range(MAX_WAITING + 50)]
    done, waiting = await asyncio.wait(asked, timeout=0.01)
    assert len(waiting) == MAX_WAITING and not any(task.result() for task in done)
    assert await brake.admit(parse_address("10.0.0.2"), "")  # nobody else is kept waiting
    brake.succeeded(address, "digest of a right key")
    assert await asyncio.wait_for(brake.admit(address, "digest of a right key"), 0.01)
    assert all(await asyncio.gather(*waiting))
    await asyncio.gather(*held, return_exceptions=True)

  asyncio.run(run())
  for i in range(3 * MAX_ADDRESSES):
    brake.succeeded(parse_address(f"2001:db8:{i:x}::1"), "digest")
  assert len(brake) <= MAX_ADDRESSES
  brake.succeeded(parse_address("2001:db8:ffff::1"), "digest")
  size = len(brake)
  for i in range(100):  # one machine has a whole network of 64 bits
    brake.succeeded(parse_address(f"2001:db8:ffff::{i:x}"), f"digest {i}")
  assert len(brake) == size


# what libraries leave behind


def run_with_an_empty_home(home: Path, *arguments: str, **env: str) -> set[str]:
  """`exo run` as a user whose home is empty but for EXO_HOME; the files outside EXO_HOME afterwards."""
  home.mkdir()
  environment = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG")} | {"HOME": str(home)} | env
  command = [sys.executable, "-m", "exo", "run", *arguments, "--prompt", "a b", "--max-tokens", "3"]
  flags = ["--discovery-module", "none", "--node-host", "127.0.0.1"]
  done = subprocess.run([*command, *flags],
                        cwd=ROOT,
                        env=environment | {"EXO_HOME": str(home / "exo")},
                        capture_output=True,
                        text=True,
                        timeout=120,
                        check=False)
  assert done.returncode == 0, done.stderr
  return {str(p.relative_to(home)) for p in home.rglob("*") if p.is_file() and not p.is_relative_to(home / "exo")}


def test_line_13_what_the_user_set_for_a_library_stays(tmp_path: Path) -> None:
  environment = {"CACHEDB": "/mine.db", "TMPDIR": "/tmp", "ORT_DISABLE_TELEMETRY": "0"}
  keep_library_files(tmp_path, environment)
  assert environment["CACHEDB"] == "/mine.db" and environment["TMPDIR"] == "/tmp"
  assert environment["ORT_DISABLE_TELEMETRY"] == "0" and environment["CUDA_CACHE_PATH"].startswith(f"{tmp_path}/cache/")
  bare: dict[str, str] = {}
  keep_library_files(tmp_path, bare)
  assert all(bare[name].startswith(f"{tmp_path}/cache/") for name in ("CACHEDB", "TMPDIR")) and "HF_HOME" not in bare


@pytest.mark.parametrize("engine", ENGINES)
def test_line_13_no_engine_leaves_files_outside_exo_home(engine: str, tmp_path: Path, goldens: Path) -> None:
  probe = probe_engine(engine)
  if not probe.available:
    pytest.skip(f"{engine} {probe.missing}")
  left = run_with_an_empty_home(tmp_path / "home", str(goldens / "gemma3_text"), "--inference-engine", engine)
  assert not left
  if engine != "onnx":  # which makes none
    cache = tmp_path / "home" / "exo" / ".exo" / "cache"
    assert any(engine in str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file())
    assert {path.stat().st_mode & 0o077 for path in (cache, *cache.iterdir())} == {0}


def test_line_13_a_download_leaves_no_files_outside_exo_home(tmp_path: Path, goldens: Path) -> None:
  with hub({"org/tiny": goldens / "gemma3_text"}) as server:
    left = run_with_an_empty_home(tmp_path / "home", "org/tiny", "--inference-engine", "onnx", HF_ENDPOINT=server.url)
    assert not left and server.sent["model.safetensors"]
