"""Models over HTTP and on the command line: lists, downloads with progress, cancelling, deleting."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exo.models import CARDS
from test.support.hub import Hub, hub
from test.support.nodes import ROOT, NodeProcess, free_port, ring, wait_until
from test.support.stores import write_big

REPO = "org/big"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
  folder = write_big(tmp_path_factory.mktemp("repo") / "big", 24)
  tiny = ROOT / "test" / "data" / "goldens" / "llama"
  with hub({REPO: folder, "org/tiny": tiny}) as playing:
    yield playing


@pytest.fixture(scope="module")
def node(server: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
  home = tmp_path_factory.mktemp("home")
  env = {"HF_ENDPOINT": server.url, "HF_HOME": str(home / "hf"), "PIP_NO_INDEX": "1"}
  with ring(home, 1, "--inference-engine", "onnx", env=env) as nodes:
    yield nodes[0]


def request(node: NodeProcess, method: str, path: str, body: Any = None) -> tuple[int, Any]:
  data = None if body is None else json.dumps(body).encode()
  asked = urllib.request.Request(node.url + path, data, {"Content-Type": "application/json"}, method=method)
  return node._open(asked, 60)


def pool(node: NodeProcess) -> dict[str, Any]:
  """The events of /modelpool as one mapping."""
  with urllib.request.urlopen(node.url + "/modelpool", timeout=30) as response:
    assert response.headers["Content-Type"].startswith("text/event-stream")
    lines = [line[6:] for line in response.read().decode().split("\n") if line.startswith("data: ")]
  assert lines[-1] == "[DONE]"
  return {model: entry for line in lines[:-1] for model, entry in json.loads(line).items()}


def progress(node: NodeProcess, model: str = REPO) -> dict[str, Any]:
  data = node.get("/v1/download/progress")[1]["data"]
  return next((item for item in data if item["model"] == model), {})


def test_34_the_lists_name_every_model(node: NodeProcess) -> None:
  names = {entry["id"] for entry in node.get("/v1/models?all=true")[1]["data"]}
  assert set(CARDS) <= names
  first = node.get("/initial_models")[1]
  assert set(CARDS) <= set(first) and first["llama-3.2-1b"] == {
      "name": "Llama 3.2 1B", "downloaded": None, "download_percentage": None, "total_size": None,
      "total_downloaded": None, "loading": True
  }
  entry = pool(node)["llama-3.1-405b"]
  assert not entry["downloaded"] and entry["total_size"] > 2e11 and entry["fits"] is False and entry["layers"] == 126


def test_34_a_download_is_told_cancelled_resumed_and_deleted(node: NodeProcess, server: Hub) -> None:
  server.faults.bytes_per_s = 8e6
  assert request(node, "POST", "/download", {"model": REPO})[0] == 200
  seen = wait_until(lambda: (p := progress(node)) and p["downloaded_bytes"] > 4e6 and p, 20, "a part of it")
  assert 0 < seen["percentage"] < 100 and seen["total_bytes"] > 24e6 and not seen["done"] and seen["status"]
  wait_until(lambda: (p := progress(node))["bytes_per_s"] > 1e6 and (p["left_s"] or 0) > 0, 10, "speed and time left")
  entry = pool(node)[REPO]
  assert entry["loading"] and entry["speed"] and not entry["downloaded"]
  assert request(node, "DELETE", f"/download/{REPO}")[0] == 200
  wait_until(lambda: progress(node)["error"] == "cancelled", 10, "the end of the download")
  assert request(node, "DELETE", f"/download/{REPO}")[0] == 404

  server.faults.bytes_per_s = None
  before = server.sent["model.safetensors"]
  status, body = request(node, "POST", "/download", {"model": REPO, "wait": True})
  assert status == 200 and body["model"] == REPO and progress(node)["done"]
  assert server.sent["model.safetensors"] - before < 22e6  # what had come was kept
  entry = pool(node)[REPO]
  assert entry["downloaded"] and entry["download_percentage"] == 100 and entry["deletable"]

  folder = node.home / "org--big"
  assert folder.is_dir()
  status, body = request(node, "DELETE", f"/models/{REPO}")
  assert status == 200 and body["freed_bytes"] > 24e6 and body["deleted"] and not folder.exists()
  assert REPO not in pool(node) and progress(node) == {}
  assert request(node, "DELETE", f"/models/{REPO}")[0] == 404


def test_34_mistakes_get_an_answer(node: NodeProcess) -> None:
  for method, path, body, status in (("POST", "/download", {}, 400), ("POST", "/download", {"model": 7}, 400),
                                     ("POST", "/download", {"model": "no-such"},
                                      404), ("POST", "/download", {"model": "../../etc/passwd"},
                                             404), ("DELETE", "/models/../../etc/passwd", None,
                                                    404), ("DELETE", "/models/llama-3.1-405b", None, 404),
                                     ("POST", "/download", {"model": "org/none", "wait": True}, 503)):
    got = request(node, method, path, body)
    assert got[0] == status and set(got[1]["error"]) == {"message", "type", "param", "code"}, (method, path, got)


def test_deleting_a_model_lets_go_of_it_in_memory_and_it_can_come_again(node: NodeProcess) -> None:
  status, first = node.chat("t5 t7", model="org/tiny", max_tokens=4)
  assert status == 200
  assert any(plan["model"] == "org/tiny" for plan in node.get("/v1/topology")[1]["plans"])
  assert request(node, "DELETE", "/models/org/tiny")[0] == 200
  assert not any(plan["model"] == "org/tiny" for plan in node.get("/v1/topology")[1]["plans"])
  again = node.chat("t5 t7", model="org/tiny", max_tokens=4)[1]
  assert again["choices"] == first["choices"]


def test_models_that_are_added_while_a_node_runs_appear(tmp_path: Path) -> None:
  shelf = tmp_path / "shelf"
  shelf.mkdir()
  with ring(tmp_path / "home", 1, "--inference-engine", "onnx", "--models-seed-dir", str(shelf)) as (one, ):
    assert "late" not in {entry["id"] for entry in one.get("/v1/models")[1]["data"]}
    (shelf / "late").symlink_to(ROOT / "test" / "data" / "goldens" / "llama")
    assert "late" in {entry["id"] for entry in one.get("/v1/models")[1]["data"]}
    assert one.chat("t5 t7", model="late", max_tokens=2)[0] == 200
    status, body = request(one, "DELETE", "/models/late")
    assert status == 409 and "folder of your own" in body["error"]["message"]
    assert (shelf / "late" / "config.json").is_file()


# the command line


def exo(home: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
  environment = os.environ | {"EXO_HOME": str(home), "HF_HOME": str(home / "hf"), "PIP_NO_INDEX": "1"} | env
  return subprocess.run([sys.executable, "-m", "exo", *arguments],
                        capture_output=True,
                        text=True,
                        check=False,
                        timeout=120,
                        cwd=ROOT,
                        env=environment)


def test_exo_models_lists_everything_and_asks_no_network(tmp_path: Path) -> None:
  """Its speed is `scripts/bench_downloads.py`'s affair; that no name is looked up shows with a dead endpoint."""
  tiny = tmp_path / "own" / "tiny"
  tiny.parent.mkdir()
  tiny.symlink_to(ROOT / "test" / "data" / "goldens" / "llama")
  began = time.monotonic()
  done = exo(
      tmp_path, "models", "--json", "--model-dir", str(tiny.parent), HF_ENDPOINT="http://127.0.0.1:9", http_proxy="x"
  )
  assert done.returncode == 0, done.stderr
  assert time.monotonic() - began < 30
  listed = {entry["id"]: entry for entry in json.loads(done.stdout)}
  assert set(CARDS) <= set(listed)
  assert listed["tiny"]["here"] and listed["tiny"]["path"] == str(tiny)
  assert listed["llama-3.1-405b"]["fits"] is False and listed["llama-3.2-1b"]["layers"] == 16
  text = exo(tmp_path, "models", "--model-dir", str(tiny.parent)).stdout.splitlines()
  assert text[0].split() == ["MODEL", "LAYERS", "TAKES", "SIZE", "HERE", "WHERE", "ALSO", "AS", "FITS"
                             ] and text[1].startswith("tiny")
  assert len(text) == len(CARDS) + 2


def test_exo_pull_and_rm(server: Hub, tmp_path: Path) -> None:
  port = str(free_port(socket.SOCK_DGRAM))
  flags = ("--listen-port", port, "--broadcast-port", port)
  done = exo(tmp_path, "pull", REPO, *flags, HF_ENDPOINT=server.url)
  assert done.returncode == 0 and f"{REPO} is here" in done.stdout, done.stderr
  assert (tmp_path / "org--big" / "model.safetensors").is_file()
  listed = {entry["id"]: entry for entry in json.loads(exo(tmp_path, "models", "--json").stdout)}
  assert listed[REPO]["here"] and listed[REPO]["path"] == str(tmp_path / "org--big")
  gone = exo(tmp_path, "rm", REPO)
  assert gone.returncode == 0 and re.search(r"\b\d\d MB freed", gone.stdout) and not (tmp_path / "org--big").exists()
  again = exo(tmp_path, "rm", REPO)
  assert again.returncode == 1 and "is not on this machine" in again.stderr
  nothing = exo(tmp_path, "pull", "org/none", *flags, HF_ENDPOINT=server.url)
  assert nothing.returncode == 1 and "the hub has no repository org/none" in nothing.stderr
  unnamed = exo(tmp_path, "pull", *flags)
  assert unnamed.returncode == 2 and "it needs MODEL" in unnamed.stderr
