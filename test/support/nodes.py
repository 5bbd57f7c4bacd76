"""Real nodes in processes of their own, for tests that go over the network."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from exo.runtime_file import runtime_path

ROOT = Path(__file__).resolve().parents[2]
START_S = 30.0
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever the tests' own surroundings say


def free_port(kind: int = socket.SOCK_STREAM) -> int:
  with socket.socket(socket.AF_INET, kind) as sock:
    sock.bind(("127.0.0.1", 0))
    return int(sock.getsockname()[1])


def wait_until(condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
  """Poll until `condition()` is truthy and return that; fail with `what` was waited for."""
  deadline = time.monotonic() + timeout_s
  while time.monotonic() < deadline:
    if value := condition():
      return value
    time.sleep(0.05)
  raise AssertionError(f"{what} did not happen within {timeout_s:g} s")


def exo(home: Path,
        *arguments: str,
        timeout_s: float = 120,
        root: Path = ROOT,
        **env: str) -> subprocess.CompletedProcess[str]:
  """The command line, to its end; `root` holds the exo that runs."""
  return subprocess.run([sys.executable, "-m", "exo", *arguments],
                        cwd=root,
                        env=os.environ | {"EXO_HOME": str(home), "DEBUG": "0"} | env,
                        stdin=subprocess.DEVNULL,
                        capture_output=True,
                        text=True,
                        timeout=timeout_s,
                        check=False)


class NodeProcess:
  """`python -m exo …` with a log of its own; `root` holds the exo that runs. The API takes a free port unless told otherwise.

  With an empty `node_id` the node makes up its own. Where a request says nothing, the answer is the likeliest text, which tests can compare; `own_sampling` leaves it to the model.
  """
  def __init__(
      self,
      home: Path,
      *arguments: str,
      node_id: str,
      env: dict[str, str] | None = None,
      prefix: tuple[str, ...] = (),
      root: Path = ROOT,
      own_sampling: bool = False
  ) -> None:
    self.node_id, self.home, self.arguments = node_id, home, arguments
    home.mkdir(parents=True, exist_ok=True)
    self.log_path = home / f"{node_id}-{time.monotonic_ns()}.log"
    named = ("--node-id", node_id) if node_id else ()
    command = [*prefix, sys.executable, "-m", "exo", *named, "--disable-tui", *arguments]
    if not any(a.startswith("--chatgpt-api-port") for a in arguments):
      command += ["--chatgpt-api-port", "0"]
    if not own_sampling and "--default-temp" not in arguments:
      command += ["--default-temp", "0"]
    environment = os.environ | {"EXO_HOME": str(home), "DEBUG": "2", "PYTHONUNBUFFERED": "1"} | (env or {})
    self._log = self.log_path.open("wb")
    self.process = subprocess.Popen(
        command, stdout=self._log, stderr=self._log, stdin=subprocess.DEVNULL, cwd=root, env=environment
    )
    self.url = ""

  @property
  def log(self) -> str:
    return self.log_path.read_text(errors="replace")

  def wait_said(self, text: str) -> None:
    """Until `text` is in the log, which is written behind what the node does."""
    wait_until(lambda: text in self.log, 15, f"{text!r} in the log of {self.node_id}")

  @property
  def runtime_file(self) -> Path:
    """Where the node tells the command line of itself."""
    return runtime_path(self.home / ".exo", self.process.pid)

  def wait_ready(self) -> NodeProcess:
    """Until the API answers; fails at once when the process ends."""
    def ready() -> bool:
      if self.process.poll() is not None:
        raise AssertionError(f"node {self.node_id} ended with status {self.process.returncode}:\n{self.log}")
      info = self.runtime_file
      if not self.url and info.exists():
        self.url = f"http://127.0.0.1:{json.loads(info.read_text())['api_port']}"
      return bool(self.url) and self.get("/healthcheck", 2)[0] == 200

    wait_until(ready, START_S, f"start of node {self.node_id}")
    return self

  def get(self, path: str, timeout_s: float = 10) -> tuple[int, Any]:
    return self._open(urllib.request.Request(self.url + path), timeout_s)

  def post(self, path: str, body: Any, timeout_s: float = 120) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
    return self._open(request, timeout_s)

  @staticmethod
  def _open(request: urllib.request.Request, timeout_s: float) -> tuple[int, Any]:
    try:
      with _DIRECT.open(request, timeout=timeout_s) as response:
        return response.status, json.load(response)
    except urllib.error.HTTPError as error:
      with error:
        return error.code, json.load(error)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
      return 0, None

  def metrics(self) -> str:
    with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as response:
      return str(response.read().decode())

  def chat(self, content: str, **fields: Any) -> tuple[int, Any]:
    return self.post("/v1/chat/completions", {"messages": [{"role": "user", "content": content}], **fields})

  def peers(self) -> set[str]:
    return set(self.get("/v1/topology")[1]["nodes"])

  def wait_peers(self, count: int) -> None:
    """Until the ring has so many nodes, this one counted."""
    wait_until(lambda: len(self.peers()) == count, 15, f"a ring of {count}")

  def kill(self) -> None:
    """As a power cut would."""
    self.process.kill()
    self.process.wait()
    self._log.close()

  def stop(self) -> int:
    """SIGTERM, and the exit status."""
    if self.process.poll() is None:
      self.process.send_signal(signal.SIGTERM)
      try:
        self.process.wait(20)
      except subprocess.TimeoutExpired:
        self.kill()
    self._log.close()
    return self.process.returncode


@contextmanager
def ring(
    home: Path,
    count: int,
    *arguments: str,
    env: dict[str, str] | None = None,
    wait: bool = True,
    root: Path = ROOT,
    own_sampling: bool = False
) -> Iterator[list[NodeProcess]]:
  """`count` nodes that find each other by UDP on ports of their own; every one is stopped at the end."""
  port = str(free_port(socket.SOCK_DGRAM))
  nodes = [
      NodeProcess(
          home,
          "--listen-port",
          port,
          "--broadcast-port",
          port,
          *arguments,
          node_id=f"node{i}",
          env=env,
          root=root,
          own_sampling=own_sampling
      ) for i in range(count)
  ]
  try:
    for node in nodes:
      node.wait_ready()
    if wait:
      names = {node.node_id for node in nodes}
      wait_until(lambda: all(node.peers() == names for node in nodes), 15, f"a ring of {count}")
    yield nodes
  finally:
    for node in nodes:
      node.stop()
