"""The faults of the matrix that do not need a network of their own, on real processes with the dummy engine."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from exo.inference.dummy.engine import BREAK_LAST, END_THREAD, RAISE_FIRST, RAISE_LAST, SLOW
from test.support.nodes import NodeProcess, free_port, ring, wait_until
from test.support.streams import Streamed, stream

DUMMY = ("--inference-engine", "dummy", "--default-model", "dummy")
# the dummy engine says a fixed text for each prompt and seed; this one is long, and slow enough to be interrupted
HELLO = f"hello{chr(SLOW)}"
LONG = {"max_tokens": 500, "temperature": 1.0, "seed": 1, "logit_bias": {"256": -100}}


@contextmanager
def dummies(home: Path, count: int, *arguments: str) -> Iterator[list[NodeProcess]]:
  with ring(home, count, *DUMMY, *arguments) as nodes:
    yield nodes


@pytest.fixture(scope="module")
def long_text(tmp_path_factory: pytest.TempPathFactory) -> str:
  with dummies(tmp_path_factory.mktemp("alone"), 1) as (node, ):
    return stream(node, HELLO, **LONG).text


def stages(node: NodeProcess) -> list[str]:
  plans = node.get("/v1/topology")[1]["plans"]
  return [stage["node_id"] for stage in plans[-1]["stages"]] if plans else []


def complete(node: NodeProcess, *tokens: int, **fields: object) -> tuple[int, dict]:
  return node.post("/v1/completions", {"prompt": [72, *tokens, 105], "max_tokens": 5, **fields})


def test_fault_3_the_entry_node_is_killed(tmp_path: Path) -> None:
  """Inside the ring its plans are closed; outside of it, its requests are cancelled."""
  with dummies(tmp_path, 3) as nodes, ThreadPoolExecutor(1) as pool:
    streaming = pool.submit(_until_broken, nodes[0])
    wait_until(lambda: "lost" not in nodes[1].log and stages(nodes[1]), 10, "a plan")
    nodes[0].kill()
    streaming.result(30)
    for node in nodes[1:]:
      wait_until(lambda node=node: node.get("/v1/topology")[1]["plans"] == [], 5, "closing of the plan")
    assert complete(nodes[1])[0] == 200


def test_fault_3_an_entry_node_outside_the_ring_is_killed(tmp_path: Path) -> None:
  port = str(free_port(socket.SOCK_DGRAM))
  ports = ("--listen-port", port, "--broadcast-port", port)
  nodes = [
      NodeProcess(tmp_path, *DUMMY, *ports, "--max-memory", memory, node_id=name)
      for name, memory in (("big1", "4000"), ("big2", "4000"), ("tiny", "1"))
  ]
  try:
    for node in nodes:
      node.wait_ready()
    wait_until(lambda: all(len(node.peers()) == 3 for node in nodes), 15, "a ring")
    with ThreadPoolExecutor(1) as pool:
      streaming = pool.submit(_until_broken, nodes[2])
      wait_until(lambda: set(stages(nodes[0])) == {"big1", "big2"}, 10, "a plan without the entry node")
      nodes[2].kill()
      streaming.result(30)
      first = next(node for node in nodes if node.node_id == stages(nodes[0])[0])
      wait_until(lambda: "of tiny, which is gone" in first.log, 5, "freeing of the request")
      assert complete(nodes[0])[0] == 200
  finally:
    for node in nodes:
      node.stop()


def _until_broken(node: NodeProcess) -> Streamed | None:
  try:
    return stream(node, HELLO, **LONG)
  except (OSError, ValueError):
    return None


def test_fault_7_a_stage_that_stands_still_for_a_second(tmp_path: Path, long_text: str) -> None:
  with dummies(tmp_path, 2) as nodes:

    def stop(count: int) -> None:
      if count == 50:
        nodes[1].process.send_signal(signal.SIGSTOP)
        time.sleep(1)
        nodes[1].process.send_signal(signal.SIGCONT)

    streamed = stream(nodes[0], HELLO, stop, **LONG)
    assert streamed.text == long_text and not streamed.resumptions
    assert "left:" not in nodes[0].log and "left:" not in nodes[1].log


def test_fault_8_a_restart_with_the_same_id(tmp_path: Path, long_text: str) -> None:
  with dummies(tmp_path, 2) as nodes:
    assert complete(nodes[0])[0] == 200
    arguments = nodes[1].arguments
    nodes[1].kill()
    nodes[1] = NodeProcess(tmp_path, *arguments, node_id="node1").wait_ready()
    wait_until(lambda: nodes[0].peers() == nodes[1].peers() == {"node0", "node1"}, 15, "the return")
    for node in nodes:
      assert stream(node, HELLO, **LONG).text == long_text
    wait_until(lambda: len(stages(nodes[0])) == 2, 15, "a plan with the node that is back")


def test_fault_8_two_nodes_with_one_id(tmp_path: Path) -> None:
  """The one that is here stays, the other is refused, both addresses are in the log."""
  with dummies(tmp_path, 2) as nodes:
    double = NodeProcess(tmp_path, *nodes[1].arguments, node_id="node1")
    try:
      double.wait_ready()
      wait_until(
          lambda: "two nodes call themselves node1: 1" in nodes[0].log and "is refused" in nodes[0].log, 15,
          "the refusal in the log"
      )
      assert complete(nodes[0])[0] == 200 and nodes[1].process.poll() is None
      assert "node1 left" not in nodes[0].log and nodes[1].peers() == {"node0", "node1"}
      assert double.peers() == {"node1"}
    finally:
      double.stop()


def test_fault_10_nodes_join_and_leave_during_a_request(tmp_path: Path, long_text: str) -> None:
  """It stays on its plan; requests after it use the ring as it is then."""
  with dummies(tmp_path, 2) as nodes:
    newcomer: list[NodeProcess] = []

    def join_and_leave(count: int) -> None:
      if count == 50:
        newcomer.append(NodeProcess(tmp_path, *nodes[0].arguments, node_id="node9").wait_ready())
        wait_until(lambda: "node9" in nodes[0].peers(), 10, "the joining")
      if count == 450:
        newcomer[0].kill()

    streamed = stream(nodes[0], HELLO, join_and_leave, **LONG)
    assert streamed.text == long_text and not streamed.resumptions and streamed.error is None


def test_fault_12_clients_that_hang_up(tmp_path: Path) -> None:
  """200 aborts, then one request; all stages are free within two seconds."""
  with dummies(tmp_path, 2) as nodes:
    assert complete(nodes[0])[0] == 200
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}], "stream": True, **LONG}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    for i in range(200):
      port = int(nodes[i % 2].url.rpartition(":")[2])
      with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        if i % 3:
          client.recv(200)
    wait_until(lambda: all(map(_free, nodes)), 2, "freeing all stages")
    assert complete(nodes[1])[0] == 200


def _free(node: NodeProcess) -> bool:
  return not any(plan["sequences"] for plan in node.get("/v1/topology")[1]["plans"])


def test_fault_14_sigterm_drains(tmp_path: Path, long_text: str) -> None:
  with dummies(tmp_path, 1) as (node, ):
    seen: dict[str, int] = {}

    def terminate(count: int) -> None:
      if count == 50:
        node.process.send_signal(signal.SIGTERM)
        wait_until(lambda: node.get("/healthcheck")[0] == 503, 5, "health 503")
        status, body = complete(node)
        seen["new"] = status
        assert body["error"]["code"] == "draining"

    streamed = stream(node, HELLO, terminate, **LONG)
    assert streamed.text == long_text and streamed.done and seen == {"new": 503}
    assert node.process.wait(10) == 0


def test_fault_14_other_nodes_requests_finish_too(tmp_path: Path, long_text: str) -> None:
  with dummies(tmp_path, 2) as nodes:

    def terminate(count: int) -> None:
      if count == 50:
        nodes[1].process.send_signal(signal.SIGTERM)
        wait_until(lambda: nodes[1].get("/healthcheck")[0] == 503, 5, "health 503")
        assert complete(nodes[0])[0] == 200  # planned without the node that leaves

    streamed = stream(nodes[0], HELLO, terminate, **LONG)
    assert streamed.text == long_text and not streamed.resumptions
    assert nodes[1].process.wait(10) == 0


def test_fault_14_after_the_grace_period_requests_move(tmp_path: Path, long_text: str) -> None:
  with dummies(tmp_path, 2, "--grace-period", "0") as nodes:
    streamed = stream(
        nodes[0], HELLO, lambda count: nodes[1].process.send_signal(signal.SIGTERM) if count == 50 else None, **LONG
    )
    assert streamed.text == long_text and len(streamed.resumptions) == 1
    assert nodes[1].process.wait(10) == 0


def test_fault_14_a_second_signal_ends_at_once(tmp_path: Path) -> None:
  with dummies(tmp_path, 1, "--grace-period", "600") as (node, ), ThreadPoolExecutor(1) as pool:
    streaming = pool.submit(_until_broken, node)
    wait_until(lambda: stages(node), 10, "a plan")
    node.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "finishing what runs here" in node.log, 5, "the drain")
    assert node.process.poll() is None
    node.process.send_signal(signal.SIGTERM)
    node.process.wait(6)
    streaming.result(10)


@pytest.mark.parametrize("token", [RAISE_FIRST, RAISE_LAST, END_THREAD])
def test_fault_15_an_engine_that_fails_once(tmp_path: Path, long_text: str, token: int) -> None:
  """The request gets the error, others beside it go on, and the node is healthy again."""
  with dummies(tmp_path, 2) as nodes:
    seen = []

    def fail(count: int) -> None:
      if count == 50:
        seen.append(complete(nodes[0], token))

    streamed = stream(nodes[0], HELLO, fail, **LONG)
    assert seen[0][0] == 500 and seen[0][1]["error"]["message"], seen
    assert streamed.text == long_text
    for node in nodes:
      wait_until(lambda node=node: node.get("/healthcheck")[0] == 200, 5, "health")
      assert complete(node)[0] == 200


def test_fault_15_a_broken_engine_leaves_the_ring_and_comes_back(tmp_path: Path, long_text: str) -> None:
  with dummies(tmp_path, 2) as nodes:
    seen = []

    def fail(count: int) -> None:
      if count == 50:
        last = next(node for node in nodes if node.node_id == stages(nodes[0])[-1])
        entry = next(node for node in nodes if node is not last)
        seen.append(complete(entry, BREAK_LAST))
        wait_until(lambda: "leaves the ring, its engine is broken" in last.log, 10, "the leaving")
        status, body = last.get("/healthcheck")
        assert status == 503 and "engine is broken" in body["reason"]

    streamed = stream(nodes[0], HELLO, fail, **LONG)
    assert seen[0][0] == 500 and streamed.text == long_text, streamed.error
    for node in nodes:
      wait_until(lambda node=node: node.get("/healthcheck")[0] == 200, 20, "the return")
      assert complete(node)[0] == 200
    wait_until(lambda: any("its engine works again" in node.log for node in nodes), 15, "a line of the log")


@pytest.mark.parametrize("count", [1, 5])
def test_fault_16_rings_of_one_to_five(tmp_path: Path, long_text: str, count: int) -> None:
  with dummies(tmp_path, count) as nodes:
    for node in (nodes[0], nodes[-1]):
      assert stream(node, HELLO, **LONG).text == long_text
    assert len(stages(nodes[0])) == count


def test_fault_16_more_nodes_than_layers_and_unequal_memory(tmp_path: Path, long_text: str) -> None:
  """Ten nodes for eight layers, of 16 GB, 1 GB and so on."""
  port = str(free_port(socket.SOCK_DGRAM))
  nodes = [
      NodeProcess(
          tmp_path,
          *DUMMY,
          "--listen-port",
          port,
          "--broadcast-port",
          port,
          "--max-memory",
          str(16000 // (i * i + 1)),
          node_id=f"node{i}"
      ) for i in range(10)
  ]
  try:
    for node in nodes:
      node.wait_ready()
    wait_until(lambda: all(len(node.peers()) == 10 for node in nodes), 30, "a ring of ten")
    for node in (nodes[0], nodes[9]):
      assert stream(node, HELLO, **LONG).text == long_text
  finally:
    for node in nodes:
      node.stop()
