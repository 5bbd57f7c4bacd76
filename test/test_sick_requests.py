"""Line 1: whatever is raised on a request's way reaches its client: the package is made to raise wherever a request passes."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import urllib.parse
from pathlib import Path
from typing import Any

import pytest

from exo.worker.device_thread import DeviceThread
from test.support.nodes import ROOT, NodeProcess


def tried(capsys: pytest.CaptureFixture[str], *arguments: str, timeout_s: float = 300) -> str:
  """Run the injector in a process of its own, where it can compile the package with its points; show what it tried."""
  done = subprocess.run([sys.executable, "-m", "test.support.injection", *arguments],
                        cwd=ROOT,
                        capture_output=True,
                        text=True,
                        timeout=timeout_s,
                        check=False)
  with capsys.disabled():
    print("\n  " + "\n  ".join(done.stdout.strip().splitlines()))
  assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
  return done.stdout


@pytest.mark.parametrize(("nodes", "stride"), [(1, 4), (3, 8)])
def test_line_1_whatever_is_raised_on_a_requests_way_is_told(
    capsys: pytest.CaptureFixture[str], nodes: int, stride: int
) -> None:
  """At every fourth or eighth of the awaits and callbacks that requests pass; the slow test below tries all."""
  said = tried(capsys, "--nodes", str(nodes), "--stride", str(stride))
  found, times = (int(line.split()[0]) for line in said.splitlines()[:1] + said.splitlines()[-1:])
  assert found > 1500 and times > 50


def test_line_1_what_is_no_http_is_told_in_the_apis_form(dummy_ring: list[NodeProcess]) -> None:
  address = urllib.parse.urlsplit(dummy_ring[0].url)
  with socket.create_connection((address.hostname, address.port), timeout=10) as sock:
    sock.sendall(b"GET / HTTP/9.9\r\nnonsense\r\n\r\n")
    answer = b"".join(iter(lambda: sock.recv(65536), b"")).decode()
  head, _, body = answer.partition("\r\n\r\n")
  assert " 400 " in head.splitlines()[0] and "application/json" in head
  error = json.loads(body)["error"]
  assert error["type"] == "invalid_request_error" and error["message"]


def test_line_1_a_result_that_cannot_be_taken_is_told_to_who_waits_for_it() -> None:
  async def scenario() -> None:
    device, heard = DeviceThread(), asyncio.Queue[Any]()

    def done(result: Any, error: BaseException | None) -> None:
      if error is None:
        raise KeyError("cannot take it")
      heard.put_nowait(error)

    device.submit(lambda: 1, done)
    assert isinstance(await asyncio.wait_for(heard.get(), 10), KeyError)
    assert await asyncio.wait_for(device.run(lambda: 2), 10) == 2
    await asyncio.to_thread(device.close)

  asyncio.run(scenario())


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "how", [
        ("--errors", "all"),
        ("--calls", ),
        ("--nth", "4", "--calls"),
        ("--pairs", "3"),
    ], ids=" ".join
)
@pytest.mark.parametrize("nodes", [1, 3])
def test_line_1_at_every_point(capsys: pytest.CaptureFixture[str], nodes: int, how: tuple[str, ...]) -> None:
  """All kinds of errors, every function, the fourth time that one is passed, and errors while an error is handled."""
  tried(capsys, "--nodes", str(nodes), *how, timeout_s=1700)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_chaos_of_half_a_minute(tmp_path: Path) -> None:
  """`scripts/faults.py chaos` itself: that it runs, judges and reports. Its longer runs are in docs/robustness.md."""
  command = [
      sys.executable, "scripts/faults.py", "chaos", "--minutes", "0.5", "--model", "dummy", "--nodes", "3", "--seed",
      "1", "--every", "30", "--pause", "3"
  ]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
  assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
  assert "'exact': " in done.stdout
