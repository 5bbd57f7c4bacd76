"""Lines 2 and 4, faults 17 and 18: rings of real processes, in which one node is sick, since its disk is full, its file is
damaged, or its numbers are bad. Requests asked of every node are answered by the others, and the sick one comes back by itself.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from test.support.disks import own_disk
from test.support.hub import hub
from test.support.nodes import ROOT, NodeProcess, free_port, wait_until
from test.support.streams import stream

TINY = ROOT / "test" / "data" / "goldens" / "llama"
REPO = "org/tiny"
BACK_S = 40


@contextmanager
def separate(tmp_path: Path, *arguments: str, env: dict[str, str] | None = None) -> Iterator[list[NodeProcess]]:
  """Three nodes that share no EXO_HOME."""
  port = str(free_port(socket.SOCK_DGRAM))
  nodes = [
      NodeProcess(
          tmp_path / f"home{i}",
          "--listen-port",
          port,
          "--broadcast-port",
          port,
          *(a.format(i=i) for a in arguments),
          node_id=f"node{i}",
          env=env
      ) for i in range(3)
  ]
  try:
    for node in nodes:
      node.wait_ready()
    for node in nodes:
      node.wait_peers(3)
    yield nodes
  finally:
    for node in nodes:
      node.stop()


def answer(node: NodeProcess, model: str) -> str:
  status, body = node.post("/v1/completions", {"model": model, "prompt": [5, 6, 7], "max_tokens": 8, "temperature": 0})
  assert status == 200, body
  return str(body["choices"][0]["text"])


def ailments(node: NodeProcess) -> dict[str, str]:
  return {a["node_id"]: a["reason"] for a in node.get("/v1/topology")[1]["ailments"]}


def stages(node: NodeProcess) -> set[str]:
  return {stage["node_id"] for plan in node.get("/v1/topology")[1]["plans"] for stage in plan["stages"]}


def sick_is_seen(nodes: list[NodeProcess], sick: str, reason: str) -> None:
  for node in nodes:
    wait_until(lambda node=node: sick in ailments(node), 5, f"news of {sick} at {node.node_id}")
    assert reason in ailments(node)[sick], ailments(node)
    status, body = node.get("/healthcheck")
    assert status == 200 and ("ailments" in body) == (node.node_id == sick)
  environment = {"PATH": os.environ["PATH"], "HOME": str(nodes[0].home), "EXO_HOME": str(nodes[0].home)}
  command = [ROOT / ".venv" / "bin" / "python", "-m", "exo", "status"]
  if not command[0].exists():
    command[0] = Path(shutil.which("python") or "python")
  shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=60).stdout
  assert "takes no part in" in shown and reason in shown, shown


def until_back(nodes: list[NodeProcess], sick: str, model: str, expected: str) -> None:
  wait_until(lambda: all(sick not in ailments(node) for node in nodes), BACK_S, f"recovery of {sick}")

  def in_use() -> bool:
    assert answer(nodes[0], model) == expected
    return sick in stages(nodes[1])

  wait_until(in_use, BACK_S, f"a plan with {sick}")


def test_line_2_a_node_whose_disk_is_full_is_left_out_until_there_is_room(tmp_path: Path) -> None:
  """Fault 17, on a file system that is full."""
  full = tmp_path / "home1" / REPO.replace("/", "--")
  with ExitStack() as stack:
    server = stack.enter_context(hub({REPO: TINY}))
    stack.enter_context(own_disk(full, "size=300k"))
    nodes = stack.enter_context(
        separate(tmp_path, env={"HF_ENDPOINT": server.url, "HF_HUB_CACHE": str(tmp_path / "hub")})
    )
    expected = answer(nodes[0], REPO)
    assert answer(nodes[1], REPO) == answer(nodes[2], REPO) == expected
    assert "node1" not in stages(nodes[0])
    sick_is_seen(nodes, "node1", "make room")
    subprocess.run(["mount", "-o", "remount,size=8m", full], check=True)
    until_back(nodes, "node1", REPO, expected)


def test_line_2_a_node_whose_file_is_damaged_is_left_out_until_it_is_whole(tmp_path: Path) -> None:
  for i in range(3):
    shutil.copytree(TINY, tmp_path / f"models{i}" / "mine")
  weights = tmp_path / "models1" / "mine" / "model.safetensors"
  whole = weights.read_bytes()
  weights.write_bytes(whole[:len(whole) // 2])
  with separate(tmp_path, "--model-dir", str(tmp_path / "models{i}")) as nodes:
    expected = answer(nodes[0], "mine")
    assert answer(nodes[2], "mine") == expected
    assert "node1" not in stages(nodes[0])
    sick_is_seen([nodes[0], nodes[2]], "node1", "model.safetensors")
    weights.write_bytes(whole)
    until_back([nodes[0], nodes[2]], "node1", "mine", expected)
    assert answer(nodes[1], "mine") == expected


@pytest.mark.parametrize("how", ["nan", "huge", "raise"])
def test_line_4_and_5_a_stream_goes_on_exact_without_a_stage_that_turns_sick(
    tmp_path: Path, model_home: Path, how: str
) -> None:
  """Fault 18 with the default engine and model: from the sixth piece of text on, every step of one stage is sick."""
  prompt, fields = "Write one sentence about the sea.", {"max_tokens": 50}
  orders = tmp_path / "orders"
  sick = {"EXO_SICK": str(orders), "EXO_SICK_SHARE": "1", "PYTHONPATH": str(ROOT / "test" / "support" / "sick")}
  port = str(free_port(socket.SOCK_DGRAM))
  udp = ("--listen-port", port, "--broadcast-port", port)
  nodes = [NodeProcess(model_home, *udp, node_id=f"node{i}", env=sick if i == 1 else None) for i in range(3)]
  try:
    for node in nodes:
      node.wait_ready()
    for node in nodes:
      node.wait_peers(3)
    expected = stream(nodes[0], prompt, **fields).text
    assert "node1" in stages(nodes[0])
    streamed = stream(nodes[0], prompt, lambda count: orders.write_text(how) if count == 6 else None, **fields)
    assert streamed.error is None and streamed.text == expected
    assert [c for c in streamed.resumptions if c.startswith("resumed on 2 nodes")]
    if how == "raise":  # the model that the worker proves itself with fails, too
      wait_until(lambda: "engine is broken" in str(nodes[1].get("/healthcheck")[1]), 10, "bad health")
    else:
      sick_is_seen(nodes, "node1", "not finite")
    orders.unlink()
    wait_until(lambda: nodes[1].get("/healthcheck")[0] == 200, BACK_S, "good health")
    wait_until(lambda: all("node1" not in ailments(node) for node in nodes), BACK_S, "recovery of node1")
    assert stream(nodes[0], prompt, **fields).text == expected
  finally:
    for node in nodes:
      node.stop()
