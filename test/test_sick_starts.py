"""Starts that were sick: of the issue "Nothing sick spreads", line 13."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import aiohttp
import pytest

from exo.cli import assemble
from exo.config import config_from
from exo.inference.engines import probe_engine
from exo.library_files import keep_library_files
from exo.machine import process_started, this_machine
from exo.networking.discovery import NoDiscovery
from exo.networking.mesh import PeerCandidate
from exo.networking.messages import Hello
from exo.orchestration.identity import claim_identity
from exo.runtime_file import RuntimeInfo, running_nodes, runtime_path, write_runtime_file
from test.support.hub import hub
from test.support.nodes import ROOT, NodeProcess, free_port, ring, wait_until

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

    def exo(*arguments: str) -> str:
      done = subprocess.run([sys.executable, "-m", "exo", *arguments],
                            cwd=ROOT,
                            env=os.environ | {"EXO_HOME": str(tmp_path)},
                            capture_output=True,
                            text=True,
                            timeout=60,
                            check=False)
      return done.stdout + done.stderr

    assert node.node_id in (shown := exo("status")) and "stranger" not in shown
    assert f"{node.node_id} has stopped" in (said := exo("stop")) and "stranger" not in said
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
    pytest.skip(f"{engine}: {probe.reason}")
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
