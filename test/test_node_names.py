"""Issue 22, line 5: nodes are called by their hosts' names, each once, and sizes are said in one form."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exo.cli.lan_address import lan_url
from exo.cli.qr_code import qr_lines
from exo.cli.status_lines import status_lines
from exo.networking.grpc import node_service_pb2 as pb
from exo.networking.grpc.peer_codec import hello_in, hello_out
from exo.node_names import called, distinct, name_in, own_name
from exo.runtime_file import RuntimeInfo
from exo.sizes import shown_bytes, shown_mb, shown_seconds
from exo.topology.device_capabilities import DeviceCapabilities, DeviceFlops
from test.support.clusters import hello
from test.support.nodes import NodeProcess, exo, free_port, wait_until

HOST = name_in(socket.gethostname().partition(".")[0])
IDS = st.text("0123456789abcdef", min_size=12, max_size=12)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a machine that others use, too
@given(st.dictionaries(IDS, st.sampled_from(["", "desk", "laptop", "0123456789ab"]), max_size=12))
def test_22_line_5_every_node_has_a_name_of_its_own(names: dict[str, str]) -> None:
  shown = distinct(names)
  assert shown.keys() == names.keys() and len(set(shown.values())) == len(shown)
  for node_id, name in names.items():
    alone = sum(other == name for other in names.values()) == 1
    assert shown[node_id] == (name if alone else shown[node_id]) if name else shown[node_id] == node_id
    assert shown[node_id].startswith(name or node_id)


def test_22_line_5_a_suffix_is_as_long_as_it_must_be() -> None:
  assert distinct({"aa11": "desk", "bb22": "lap"}) == {"aa11": "desk", "bb22": "lap"}
  assert distinct({"aa1122": "desk", "bb2233": "desk"}) == {"aa1122": "desk-aa11", "bb2233": "desk-bb22"}
  assert distinct({"aa1122": "desk", "aa1133": "desk"}) == {"aa1122": "desk-aa112", "aa1133": "desk-aa113"}
  assert distinct({"desk": "desk", "bb2233": "desk"}) == {"desk": "desk", "bb2233": "desk-bb22"}


def test_22_line_5_a_name_that_was_chosen_stays_and_strangers_names_are_names() -> None:
  assert own_name("office", given=True) == "office" and own_name("0f0f", given=False) == (HOST or "0f0f")
  assert [called("a1", name) for name in ("desk", "a1", "")] == ["desk (a1)", "a1", "a1"]
  assert name_in("Anna's Mac\x1b[2J") == "" == name_in("localhost"
                                                       ) == name_in("  ") and name_in("MacBook Pro") == "MacBook-Pro"
  assert len(name_in("x" * 500)) == 40
  item = hello_out(hello("abc"), "data")
  for said, taken in (("desk", "desk"), ("\x1b[2J", ""), ("", "")):
    item.hello.name = said
    assert hello_in(pb.Item.FromString(item.SerializeToString()))[0].name == taken


def test_22_line_5_sizes_have_one_form() -> None:
  of = {0: "0 B", 999: "999 B", 2**20 - 1: "1 MB", 98_900_000: "94 MB", 2**30 - 1: "1.0 GB", 4_370_000_000: "4.1 GB"}
  of |= {
      2**60: "1048576 TB", 100 * 2**30: "100 GB", 2**30: "1.0 GB", 130 * 2**30: "130 GB", 2**42: "4.0 TB",
      2**30 - 2**20: "1023 MB"
  }
  assert {count: shown_bytes(count) for count in of} == of
  assert shown_mb(16384) == "16.0 GB" and shown_mb(300) == "300 MB"
  assert [shown_seconds(s) for s in (0.4, 59.4, 60, 200, 3600, 7500)
          ] == ["0 s", "59 s", "1 min 0 s", "3 min 20 s", "1 h 0 min", "2 h 5 min"]
  told = str(DeviceCapabilities("Mac", "Apple M2",
                                8192)), str(DeviceCapabilities("PC", "RTX", 8, DeviceFlops(1, 82.58)))
  assert told == ("Mac, Apple M2, 8.0 GB", "PC, RTX, 8 MB, 82.6 TFLOPS fp16")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[NodeProcess]]:
  """Two nodes of this host whose ids nobody has chosen; the first one's API is for the network."""
  home, port = tmp_path_factory.mktemp("names"), str(free_port(socket.SOCK_DGRAM))
  flags = ("--inference-engine", "dummy", "--default-model", "dummy", "--listen-port", port, "--broadcast-port", port)
  started = [NodeProcess(home, *flags, *more, node_id="") for more in (("--chatgpt-api-host", "0.0.0.0"), ())]
  yield [node.wait_ready() for node in started]
  for node in started:
    node.stop()


@pytest.mark.skipif(not HOST, reason="this host has no name that a node can have")
def test_22_line_5_two_nodes_of_a_host_are_told_apart_everywhere(nodes: list[NodeProcess]) -> None:
  for node in nodes:
    node.wait_peers(2)
  topology = nodes[0].get("/v1/topology")[1]
  names = {node_id: of["name"] for node_id, of in topology["nodes"].items()}
  assert names == {node_id: f"{HOST}-{node_id[:4]}" for node_id in names} and len(names) == 2
  told = json.loads(exo(nodes[0].home, "status", "--json").stdout)["nodes"]
  assert {node_id: of["name"] for node_id, of in told[0]["ring"]["nodes"].items()} == names
  text = exo(nodes[0].home, "status").stdout
  for node_id, name in names.items():
    assert f"{name} ({node_id})" in text and f"  {name}" in text
  assert "TFLOPS" not in text and "from other machines and phones" in text
  wait_until(lambda: f"{HOST} (" in nodes[0].log and " joined" in nodes[0].log, 10, "names in the log")
  missing = exo(nodes[0].home, "stop", "nobody")
  assert missing.returncode == 1 and HOST in missing.stderr


def test_22_line_5_an_api_for_the_network_tells_its_address(nodes: list[NodeProcess]) -> None:
  port = int(nodes[0].url.rpartition(":")[2])
  url = lan_url("0.0.0.0", port)
  if url is None:
    pytest.skip("this machine is in no network")
  nodes[0].wait_said(f"phones  {url}")
  assert "phones" not in nodes[1].log
  assert lan_url("127.0.0.1", 1) is lan_url("localhost", 1) is lan_url("::1", 1) is None
  assert lan_url("10.1.2.3", 1) == "http://10.1.2.3:1" and lan_url("fd00::1", 1) == "http://[fd00::1]:1"


def test_22_line_5_the_code_holds_the_address() -> None:
  """Read back module by module: what a camera would see, is what segno makes of this very text."""
  import segno
  url = "http://192.168.100.123:52415"
  lines = qr_lines(url)
  assert {len(line) for line in lines} == {max(map(len, lines))} and len(lines) <= 16
  light = {"█": (1, 1), "▀": (1, 0), "▄": (0, 1), " ": (0, 0)}
  rows = [[light[c][half] for c in line] for line in lines for half in (0, 1)]
  matrix = segno.make(url, error="l", micro=False).matrix
  inner = [row[2:-2] for row in rows[2:2 + len(matrix)]]
  assert [[1 - cell for cell in row] for row in matrix] == inner


RING: dict[str, Any] = {
    "node_id": "a1" * 6, "total": {"memory": 49152, "tflops": 0.0}, "exact": "seeded",
    "requests": {"own": 1, "waiting": 2, "tokens_per_s": 3.5}, "refused_models": {}, "unverified": {"m": ["b2" * 6]},
    "loaded": [], "links": [{"nodes": ["a1" * 6, "b2" * 6], "rtt_ms": 0.31, "interface": "eth0"}],
    "nodes": {
        node_id: {
            "name": name, "model": "A machine with a long name", "chip": "A processor with a longer name", "memory": 24576,
            "used_memory": 1000, "free_memory": 20000, "engine": "llama_cpp", "device": "CPU", "load": 0.25,
            "layers": [{"model": "llama-3.1-8b", "start_layer": 0, "end_layer": 15}], "ailments": [], "workers": []
        } for node_id, name in (("a1" * 6, "desk"), ("b2" * 6, "a-laptop-with-a-name-of-36-characters"))
    }
}  # yapf: disable


@pytest.mark.parametrize("width", [None, 200, 80, 40, 10])
def test_22_line_5_status_is_aligned_at_any_width(width: int | None) -> None:
  lines = status_lines(RuntimeInfo(1, 1.0, "a1" * 6, "127.0.0.1", 52415, 5), RING, width)
  assert max(map(len, lines)) <= max(width or 10**6, 35)
  text = "\n".join(lines)
  assert "TFLOPS" not in text and "48.0 GB" in text
  begins = {line: len(line) - len(line.lstrip()) for line in lines[1:]}
  column = next(of for line, of in begins.items() if " used" in line)  # it has no label
  for label in ("ring", "desk", "unverified", "requests"):
    line = next(line for line in lines[1:] if line.startswith(f"  {label} "))
    assert line[2 + len(label):column].isspace() and not line[column].isspace(), lines
  assert set(begins.values()) <= {2, 4, column}  # labels, what is left of a label that is too long, and texts
  assert (len(lines) > 9) == (width is not None and width < 200)


def test_22_line_5_names_of_an_older_version_are_ids(tmp_path: Path) -> None:
  nodes = {node_id: {k: v for k, v in of.items() if k != "name"} for node_id, of in RING["nodes"].items()}
  text = "\n".join(status_lines(RuntimeInfo(1, 1.0, "a1" * 6, "127.0.0.1", 52415, 5), RING | {"nodes": nodes}, None))
  assert "  a1a1a1a1a1a1 " in text and "from b2b2b2b2b2b2" in text
