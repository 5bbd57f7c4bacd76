"""`exo demo`: three nodes on this machine, one of them killed in mid-sentence, and the text goes on."""

from __future__ import annotations

import argparse
import json
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, Any

from exo.cli.parser import Parser
from exo.config import Config
from exo.errors import ExoError
from exo.runtime_file import RuntimeInfo, running_nodes

_PROMPT = "Tell me a short story about a lighthouse keeper and the sea."
_START_S = 60.0
_LOAD_S = 600.0  # the model may have to be fetched
_KILL_AFTER = 25  # pieces of text
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # nodes of this machine are behind no proxy


def build_parser() -> Parser:
  parser = Parser(
      prog="exo demo",
      description="Start three nodes on this machine, kill one in mid-sentence, and watch the text go on."
  )
  parser.add_argument("--model", metavar="MODEL", help="default smollm2-135m")
  parser.add_argument("--prompt", default=_PROMPT, help="the question (default: a story about a lighthouse keeper)")
  parser.add_argument("--max-tokens", type=int, default=120, metavar="N", help="of the answer (default 120)")
  parser.add_argument("--inference-engine", metavar="NAME", help="of all three nodes (default: as a node chooses)")
  return parser


def demo_command(config: Config, arguments: argparse.Namespace) -> int:
  """Returns 0 if the text went on."""
  model = arguments.model or config.default_model
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
  with ExitStack() as ending:
    processes: dict[str, subprocess.Popen[bytes]] = {}
    ending.callback(_stop_all, processes)
    name = secrets.token_hex(2)
    _note("starting three nodes")
    for i in range(3):
      processes[f"demo{name}-{i + 1}"] = _start(config, arguments, f"demo{name}-{i + 1}", port, model)
    nodes = _wait_for_ring(config, processes)
    entry = nodes[0]
    _note(f"they have found each other; asking {entry.node_id}. The first time, the model is fetched and loaded")
    _load(entry, model)
    plan = _get(entry, "/v1/topology")["plans"][-1]
    spans = ", ".join(f"{s['node_id']} layers {s['start_layer']}-{s['end_layer']}" for s in plan["stages"])
    _note(f"the ring: {spans}")
    victim = next(s["node_id"] for s in reversed(plan["stages"]) if s["node_id"] != entry.node_id)
    return _answer(entry, model, arguments, victim, processes[victim])


def _answer(
    entry: RuntimeInfo, model: str, arguments: argparse.Namespace, victim: str, process: subprocess.Popen[bytes]
) -> int:
  body = {
      "model": model, "messages": [{"role": "user", "content": arguments.prompt}], "stream": True,
      "max_tokens": arguments.max_tokens, "temperature": 0
  }
  pieces, resumed, finished = 0, False, False
  for kind, value in _events(_open(entry, "/v1/chat/completions", body)):
    if kind == "comment" and value.startswith("resumed"):
      resumed = True
      _note(f"\n{value}")
    elif kind == "text":
      pieces += 1
      sys.stdout.write(value)
      sys.stdout.flush()
      if pieces == _KILL_AFTER:
        process.send_signal(signal.SIGKILL)
        process.wait()
        _note(f"\n{victim} is killed now (kill -9)")
    elif kind == "error":
      raise ExoError(value)
    finished = finished or kind == "done"
  print(flush=True)
  if not resumed or not finished:
    _note("the answer was over before a node could be lost: try a larger --max-tokens")
    return 1
  _note("same request, same stream, and the same tokens that all three would have given")
  return 0


def _note(text: str) -> None:
  begin = "\n" if text.startswith("\n") else ""
  sys.stderr.write(f"{begin}[{text.strip()}]\n")
  sys.stderr.flush()


def _start(config: Config, arguments: argparse.Namespace, node_id: str, port: int,
           model: str) -> subprocess.Popen[bytes]:
  """A node of its own process group, so that Ctrl-C here is not for it."""
  command = [
      sys.executable, "-m", "exo", "--node-id", node_id, "--disable-tui", "--chatgpt-api-port", "0", "--listen-port",
      str(port), "--broadcast-port",
      str(port), "--interface-type-filter", "loopback", "--node-host", "127.0.0.1", "--default-model", model,
      "--grace-period", "0"
  ]
  if arguments.inference_engine:
    command += ["--inference-engine", arguments.inference_engine]
  output = None if config.debug else subprocess.DEVNULL
  return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)


def _stop_all(processes: dict[str, subprocess.Popen[bytes]]) -> None:
  for process in processes.values():
    process.terminate()
  for process in processes.values():
    try:
      process.wait(10)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()


def _wait_for_ring(config: Config, processes: dict[str, subprocess.Popen[bytes]]) -> list[RuntimeInfo]:
  deadline = time.monotonic() + _START_S
  while time.monotonic() < deadline:
    for node_id, process in processes.items():
      if process.poll() is not None:
        raise ExoError(f"{node_id} did not start (status {process.returncode}): DEBUG=1 exo demo shows why")
    nodes = [info for info in running_nodes(config.state_dir) if info.node_id in processes]
    try:
      if len(nodes) == len(processes) and all(len(_get(n, "/v1/topology")["nodes"]) == len(nodes) for n in nodes):
        return sorted(nodes, key=lambda info: info.node_id)
    except OSError:
      pass
    time.sleep(0.2)
  raise ExoError("the nodes have not found each other: exo doctor may say why")


def _load(entry: RuntimeInfo, model: str) -> None:
  with _open(entry, "/v1/completions", {"model": model, "prompt": "Hello", "max_tokens": 1}) as response:
    response.read()


def _open(entry: RuntimeInfo, path: str, body: dict[str, Any] | None = None) -> IO[bytes]:
  headers = {"Content-Type": "application/json"}
  if entry.token:
    headers["Authorization"] = f"Bearer {entry.token}"
  data = None if body is None else json.dumps(body).encode()
  request = urllib.request.Request(entry.api_url + path, data, headers)
  response: IO[bytes] = _DIRECT.open(request, timeout=_LOAD_S)
  return response


def _get(entry: RuntimeInfo, path: str) -> Any:
  with _open(entry, path) as response:
    return json.load(response)


def _events(response: IO[bytes]) -> Iterator[tuple[str, str]]:
  """("comment" | "text" | "error" | "done", what it says)."""
  with response:
    for raw in response:
      line = raw.decode().rstrip("\n")
      if line.startswith(": "):
        yield "comment", line[2:]
      elif line == "data: [DONE]":
        yield "done", ""
      elif line.startswith("data: "):
        event = json.loads(line[6:])
        if "error" in event:
          yield "error", event["error"]["message"]
        for choice in event.get("choices", ()):
          if text := choice["delta"].get("content"):
            yield "text", text
