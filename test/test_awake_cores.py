"""While requests go round a ring, cores are kept from sleep where the system allows it, and not a moment longer than needed."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from exo.orchestration import awake_cores
from exo.orchestration.awake_cores import AwakeCores
from test.support.nodes import NodeProcess, ring, wait_until
from test.support.streams import stream

LATENCY_FILE = Path("/dev/cpu_dma_latency")


def open_files(pid: int | str) -> set[str]:
  found = set()
  for link in Path(f"/proc/{pid}/fd").iterdir():
    with contextlib.suppress(FileNotFoundError):  # closed meanwhile
      found.add(str(link.readlink()))
  return found


def holds(node: NodeProcess) -> bool:
  return str(LATENCY_FILE) in open_files(node.process.pid)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are looked up in /proc")
@pytest.mark.parametrize(("driver", "wanted_us"), [("haltpoll", 0), ("intel_idle", 10)])
def test_the_file_is_held_while_frames_come(
    driver: str, wanted_us: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(awake_cores, "_REST_S", 0.2)
  latency, idle = tmp_path / "latency", tmp_path / "driver"
  latency.write_bytes(b"")
  idle.write_text(driver + "\n")

  async def scenario() -> None:
    awake = AwakeCores(True, latency, idle)
    for _ in range(5):
      awake.hold()
      assert str(latency) in open_files("self")
      await asyncio.sleep(0.1)
    await asyncio.sleep(0.4)
    assert str(latency) not in open_files("self"), "nothing came for longer than the rest, and the file is still held"
    awake.hold()
    assert str(latency) in open_files("self")
    awake.close()
    assert str(latency) not in open_files("self")

  asyncio.run(scenario())
  assert int.from_bytes(latency.read_bytes(), "little") == wanted_us and len(latency.read_bytes()) == 4


def test_where_the_system_does_not_allow_it_nothing_happens(tmp_path: Path) -> None:
  async def scenario() -> None:
    for awake in (
        AwakeCores(True, tmp_path / "missing", tmp_path / "missing"), AwakeCores(False, tmp_path / "missing")
    ):
      awake.hold()
      awake.hold()
      awake.close()

  asyncio.run(scenario())
  assert list(tmp_path.iterdir()) == []


def keeps_warm(node: NodeProcess) -> bool:
  """It has a socket by which gRPC sends messages to itself."""
  sockets = {line.split()[6] for line in Path("/proc/net/unix").read_text().splitlines() if "exo-warm-" in line}
  return any(f"socket:[{inode}]" in open_files(node.process.pid) for inode in sockets)


@pytest.mark.skipif(not Path("/proc/net/unix").exists(), reason="sockets are looked up in /proc")
def test_a_ring_of_two_stays_warm_and_awake_and_one_node_alone_does_not(model_home: Path) -> None:
  """Cores are looked at where this machine lets anybody hold them awake."""
  awake: list[tuple[bool, ...]] = []

  def asked(nodes: list[NodeProcess]) -> None:
    stream(nodes[0], "count to ten", lambda _: awake.append(tuple(map(holds, nodes))), max_tokens=12)

  can_hold = os.access(LATENCY_FILE, os.W_OK)
  with ring(model_home, 2) as nodes:
    assert not any(map(keeps_warm, nodes)), "nothing has run yet"
    asked(nodes)
    assert all(map(keeps_warm, nodes))
    if can_hold:
      assert all(awake[-1]), "some node of the ring let its cores sleep while a request ran"
      wait_until(lambda: not any(map(holds, nodes)), 5, "rest after the request")
  with ring(model_home, 2, "--awake-cores", "off") as nodes:
    asked(nodes)
    assert not any(map(keeps_warm, nodes)) and not any(awake[-1])
  with ring(model_home, 1) as (node, ):
    asked([node])
    assert not keeps_warm(node) and awake[-1] == (False, )
