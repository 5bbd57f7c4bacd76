"""`exo demo` and `exo doctor` as a user runs them, and the hint about slow links."""

from __future__ import annotations

import socket
from pathlib import Path

from exo.topology.slow_links import slow_link_hint
from test.support.nodes import exo, ring


def test_demo_kills_a_node_and_the_text_goes_on(model_home: Path) -> None:
  # a proxy that is set for the world outside is no way to nodes of this machine
  done = exo(model_home, "demo", "--max-tokens", "80", http_proxy="http://127.0.0.1:9", no_proxy="", NO_PROXY="")
  assert done.returncode == 0, done.stderr
  assert "is killed now" in done.stderr and "resumed on 2 nodes after" in done.stderr
  assert done.stderr.index("is killed now") < done.stderr.index("resumed on 2 nodes after")
  assert len(done.stdout) > 150


def test_doctor_without_a_node(tmp_path: Path) -> None:
  done = exo(tmp_path, "doctor")
  assert done.returncode == 0, done.stdout
  for topic in ("engines", "memory", "interfaces", "ports", "firewall", "clock", "models", "nodes"):
    assert topic in done.stdout
  assert "none runs here now" in done.stdout and len(done.stdout.splitlines()) < 40


def test_doctor_fails_for_a_port_that_is_taken(tmp_path: Path) -> None:
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.bind(("", 0))
    port = str(sock.getsockname()[1])
    done = exo(tmp_path, "doctor", "--listen-port", port)
  assert done.returncode == 1 and f"UDP {port} (beacons) is taken by another program" in done.stdout


def test_doctor_shows_peers_routes_and_who_was_refused(tmp_path: Path) -> None:
  dummy = ("--inference-engine", "dummy", "--default-model", "dummy")
  with ring(tmp_path, 3, *dummy, "--node-id-filter", "node0,node1", wait=False) as nodes:
    nodes[0].wait_peers(2)
    done = exo(tmp_path, "doctor", "--listen-port", "0")
  assert done.returncode == 0, done.stdout
  assert "node0 at http://127.0.0.1" in done.stdout and "is healthy" in done.stdout
  assert "node1 at " in done.stdout and " by " in done.stdout and " ms" in done.stdout, done.stdout
  assert "node2" in done.stdout and "not in --node-id-filter" in done.stdout


def test_a_slow_link_is_worth_a_word_and_a_fast_one_is_not() -> None:
  assert slow_link_hint(10.0, (10.0, )) is None
  assert slow_link_hint(11.0, (5.0, 5.0)) is None
  hint = slow_link_hint(30.0, (5.0, 5.0))
  assert hint is not None and "20.0 of 30.0 ms" in hint and "3.0 times" in hint
