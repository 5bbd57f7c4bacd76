"""The terminal view in a real terminal (tmux) at two sizes, its lines for any size, `exo status` and `exo stop`."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from exo.inference.shard import Shard
from exo.orchestration.ring_view import Chain, LinkView, NodeView, RequestCounts, RingView, WorkerView
from exo.topology.device_capabilities import DeviceCapabilities, DeviceFlops
from exo.topology.ring_plan import Stage
from exo.viz.screen import DownloadLine, PromptLine, screen
from test.support.nodes import ROOT, NodeProcess, free_port, ring, wait_until

DUMMY = ("--inference-engine", "dummy", "--default-model", "dummy")


class Terminal:
  """A node in a tmux of its own."""
  def __init__(self, tmp_path: Path, width: int, height: int, *flags: str) -> None:
    self.port = str(free_port(socket.SOCK_DGRAM))
    self.home = tmp_path / "home"
    self._socket = str(tmp_path / "tmux")
    command = [
        sys.executable, "-m", "exo", "--node-id", "desk", *DUMMY, "--listen-port", self.port, "--broadcast-port",
        self.port, "--chatgpt-api-port", "0", *flags
    ]
    self.tmux(
        "new-session", "-d", "-s", "view", "-x", str(width), "-y", str(height),
        f"{' '.join(command)}; echo ended with $?; sleep 60"
    )

  def tmux(self, *arguments: str) -> str:
    # pytest's workers have a size of their own in the environment, which would be taken for the terminal's
    own = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    environment = own | {"EXO_HOME": str(self.home), "DEBUG": "1", "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"}
    return subprocess.run(["tmux", "-S", self._socket, *arguments],
                          capture_output=True,
                          text=True,
                          check=False,
                          cwd=ROOT,
                          env=environment).stdout

  @property
  def screen(self) -> list[str]:
    return self.tmux("capture-pane", "-p", "-t", "view").split("\n")[:-1]

  @property
  def text(self) -> str:
    return "\n".join(self.screen)

  def shows(self, *texts: str, within_s: float = 20) -> list[str]:
    wait_until(lambda: all(t in self.text for t in texts), within_s, f"{texts} on the screen:\n{self.text}\n")
    return self.screen

  def node(self) -> NodeProcess:
    """The node in it, for requests to its API."""
    files = wait_until(lambda: list((self.home / ".exo" / "nodes").glob("*.json")), 20, "a runtime file")
    node = NodeProcess.__new__(NodeProcess)
    node.url = f"http://127.0.0.1:{json.loads(files[0].read_text())['api_port']}"
    return node


@contextmanager
def terminal(tmp_path: Path, width: int, height: int, *flags: str) -> Iterator[Terminal]:
  if shutil.which("tmux") is None:
    pytest.skip("tmux is not installed (scripts/test-deps.sh)")
  view = Terminal(tmp_path, width, height, *flags)
  try:
    yield view
  finally:
    view.tmux("kill-server")


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50)])
def test_the_terminal_shows_the_ring_its_prompts_and_the_log(tmp_path: Path, width: int, height: int) -> None:
  with terminal(tmp_path, width, height) as view:
    view.shows("desk", "this node", "GPU poor", "GPU rich", "log")
    flags = ("--listen-port", view.port, "--broadcast-port", view.port)
    with ring(tmp_path / "other", 1, *DUMMY, *flags, wait=False) as (other, ):
      view.shows("node0", " ms", "2 nodes", "node0 joined")
      node = view.node()
      assert node.chat("What is the sea?", max_tokens=12, temperature=0)[0] == 200
      view.shows("prompts and downloads", "✓ What is the sea?", "12 tokens", "dummy 0-3", "dummy 4-7", "dummy on none")
      lines = wait_until(
          lambda: screen if (screen := view.screen) and screen[-1].startswith("╰") else None, 20, "a whole screen"
      )
      assert len(lines) == height and all(len(line) <= width for line in lines)
      assert lines[0].startswith("╭") and lines[0].endswith("╮") and "exo · http://127.0.0.1:" in lines[0]
      assert lines[-1].startswith("╰") and lines[-1].endswith("╯")
      ring_part = lines[:next(i for i, line in enumerate(lines) if "prompts and downloads" in line)]
      assert sum("this node" in line for line in ring_part) == 1 and "load" in "\n".join(ring_part)
      assert any(" of " in line and " free" in line for line in ring_part)
      if width == 200:  # one line a node
        assert sum("dummy on none" in line and "dummy 0-3" in line for line in ring_part) == 1
      other.kill()
      wait_until(lambda: "node0" not in "".join(view.screen[:8]) and "1 node," in view.text, 10, "the node's leaving")
      assert any("node0 left" in line for line in view.screen)
    view.tmux("send-keys", "-t", "view", "C-c")
    view.shows("ended with 0")


def test_the_terminal_follows_its_size_and_never_goes_blank(tmp_path: Path) -> None:
  with terminal(tmp_path, 100, 30) as view:
    view.shows("desk", "GPU rich", "log")
    for width, height in ((140, 40), (60, 20), (90, 12)):
      view.tmux("resize-window", "-t", "view", "-x", str(width), "-y", str(height))
      wait_until(
          lambda w=width, h=height: len(view.screen) == h and view.screen[0].rstrip().endswith("╮") and
          len(view.screen[0].rstrip()) == w and "desk" in view.text and view.screen[-1].startswith("╰"),
          30,
          f"the screen at {width}x{height}"
      )
    deadline = time.monotonic() + 1.5
    while time.monotonic() < deadline:
      assert "desk" in view.text and "log" in view.text


@pytest.mark.parametrize("how", ["--disable-tui", "no terminal"])
def test_the_terminal_view_is_off_where_it_is_not_wanted(tmp_path: Path, how: str) -> None:
  if how == "no terminal":
    with ring(tmp_path, 1, *DUMMY) as (node, ):
      assert "GPU poor" not in node.log and "\x1b[" not in node.log
    return
  with terminal(tmp_path, 80, 24, how) as view:
    view.shows("API", "engine")
    assert "GPU poor" not in view.text


def worker_view(*shards: Shard, name: str = "gpu0", problem: str = "") -> WorkerView:
  return WorkerView(name, "GPU", ("mlx", ), 8192, 2048, 4096, shards, problem, ())


def node_view(name: str, **fields: object) -> NodeView:
  values: dict[str, object] = {
      "node_id": name, "capabilities": DeviceCapabilities("Mac", "Apple M2", 16384, DeviceFlops(3, 7, 14)),
      "engine": "mlx", "device": "GPU", "version": "1", "address": "a:1", "used_mb": 4096, "free_mb": 8192, "load": 0.5,
      "frames": 0, "ailments": (), "workers": (worker_view(), ), "is_here": name == "n0", "name": name
  }
  return NodeView(**(values | fields))  # type: ignore[arg-type]


def drawn(view: RingView, width: int, height: int, *prompts: PromptLine, lines: tuple[str, ...] = ()) -> list[str]:
  console = Console(width=width, height=height, force_terminal=True, color_system=None)
  downloads = [DownloadLine("big", 30_000_000, 60_000_000)]
  picture = screen(view, prompts, downloads, lines, "exo", width, height)
  return ["".join(s.text for s in line) for line in console.render_lines(picture, pad=True)]


@pytest.mark.parametrize("width", [159, 400])
def test_workers_are_named_where_a_node_has_several(width: int) -> None:
  one, two = Shard("m", 0, 3, 8), Shard("m", 4, 7, 8)
  several = (worker_view(one), worker_view(two, name="cpu", problem="the engine is broken"))
  for workers in (several, (worker_view(one, two), )):
    node = node_view("n0", workers=workers, capabilities=DeviceCapabilities("M", "C", 16384))
    view = RingView((node, ), (), (), RequestCounts(0, 0, 0, 0), None)
    text = " ".join("".join(drawn(view, width, 30)).split())
    assert ("m 0-3 on gpu0, m 4-7 on cpu" in text) == ("cpu: the engine is broken" in text) == (workers is several)
    assert workers is several or "m 0-3, m 4-7" in text


@pytest.mark.parametrize("count", [1, 2, 3, 12])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50), (60, 18), (159, 24), (160, 24), (300, 80)])
def test_every_screen_is_exactly_as_large_as_the_terminal(count: int, width: int, height: int) -> None:
  nodes = tuple(node_view(f"n{i}", workers=(worker_view(Shard("m", i, i, count)), )) for i in range(count))
  links = tuple(LinkView((f"n{i}", f"n{j}"), 1.5, "eth0") for i in range(count) for j in range(i + 1, count))
  chain = Chain("m", tuple(Stage(f"n{i}", Shard("m", i, i, count), "cpu") for i in range(count)))
  view = RingView(nodes, links, (chain, ), RequestCounts(1, 1, 0, 10.0), "n0")
  lines = drawn(view, width, height, PromptLine("a question " * 20, "an answer\n" * 50, "running", 3, 1.5))
  assert len(lines) == height and {len(line) for line in lines} == {width}
  text = "\n".join(lines)
  assert "n0" in text and "GPU poor" in text and "▶ a question" in text and "29 MB of 57 MB, 50%" in text
  if count == 2:
    assert "1.5 ms eth0" in text and "4.0 GB of 16.0 GB" in text


def test_the_screen_cannot_be_driven_by_what_peers_and_models_say() -> None:
  evil = "\x1b[2J\x07[red]x[/red]\r\nnext"
  view = RingView((node_view("n0", engine=evil), ), (), (), RequestCounts(0, 0, 0, 0), None)
  text = "\n".join(drawn(view, 100, 24, PromptLine(evil, evil, "failed", 1, 0), lines=(r"a [bold] line", )))
  assert "\x1b" not in text and "\x07" not in text and "\\x1b[2J" in text
  assert "[red]x[/red]" in text and "a [bold] line" in text


def test_the_bar_stands_between_poor_and_rich() -> None:
  def at(tflops: float) -> int:
    device = DeviceCapabilities("m", "c", 1024, DeviceFlops(0, tflops, 0))
    view = RingView((node_view("n0", capabilities=device), ), (), (), RequestCounts(0, 0, 0, 0), None)
    return next(line for line in drawn(view, 100, 24) if "GPU poor" in line).index("▼")

  assert at(0) < at(1) < at(10) < at(100) < at(1000) == at(10**6)


def exo(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
  return subprocess.run([sys.executable, "-m", "exo", *arguments],
                        capture_output=True,
                        text=True,
                        timeout=60,
                        cwd=ROOT,
                        env=os.environ | {"EXO_HOME": str(home)},
                        check=False)


def test_status_and_stop(tmp_path: Path) -> None:
  nothing = exo(tmp_path, "status")
  assert nothing.returncode == 1 and "`exo` starts one" in nothing.stdout
  assert exo(tmp_path, "stop").returncode == 1
  assert json.loads(exo(tmp_path, "status", "--json").stdout) == {"nodes": []}
  with ring(tmp_path, 2, *DUMMY, "--api-key", "k" * 40, wait=False) as (one, other):
    wait_until(lambda: exo(tmp_path, "status").stdout.count("2 nodes") == 2, 20, "a ring of two")
    done = exo(tmp_path, "status")
    assert done.returncode == 0 and done.stdout.count("this node"
                                                      ) == 2 and done.stdout.count("2 nodes") == 2, done.stdout
    assert one.url in done.stdout and "ms" in done.stdout and "dummy on none" in done.stdout
    assert len(done.stdout.splitlines()) <= 24
    only = json.loads(exo(tmp_path, "status", one.node_id, "--json").stdout)
    (found, ) = only["nodes"]
    assert found["pid"] == one.process.pid and set(found["ring"]["nodes"]) == {"node0", "node1"}
    assert found["api_url"] == one.url and "token" not in found
    missing = exo(tmp_path, "stop", "nobody")
    assert missing.returncode == 1 and "running: node0, node1" in missing.stderr.replace("node1, node0", "node0, node1")
    stopped = exo(tmp_path, "stop", other.node_id)
    assert stopped.returncode == 0 and "node1 has stopped" in stopped.stdout
    assert other.process.wait(5) == 0 and one.process.poll() is None
    assert exo(tmp_path, "stop", "--now").returncode == 0
    one.process.wait(5)
