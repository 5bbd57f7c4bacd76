"""How long a node keeps its neighbours and watchers waiting while clients send the worst that they may.

  python scripts/bench_health.py [--model NAME] [--nodes N]

One row for each kind of request: what it was answered, how long that took, and meanwhile the slowest of the health checks (one
every 20 ms, from another process than the node's) and, with two nodes, how late the latest heartbeat was that the other node
had of the first (they come every 0.5 s). Everything runs twice: on a quiet node, and while it computes with all its cores.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from test.support.nodes import NodeProcess, ring  # noqa: E402

MB = 2**20
HEARTBEAT_S = 0.5
BODY = 16 * MB - 4096  # as large as a body may be


def ask(url: str, end: Event, worst_s: Synchronized[float]) -> None:
  """Ask for a node's health every 20 ms; `worst_s` becomes the time of the slowest answer."""
  connection = _connection(url)
  while not end.wait(0.02):
    begun = time.perf_counter()
    connection.request("GET", "/health")
    connection.getresponse().read()
    worst_s.value = max(worst_s.value, time.perf_counter() - begun)
  connection.close()


def listen(url: str, node_id: str, end: Event, late_s: Synchronized[float]) -> None:
  """Ask a neighbour what it last heard of a node; `late_s` becomes by how much the longest silence was too long."""
  connection, heard, last = _connection(url), time.perf_counter(), None
  while not end.wait(0.02):
    connection.request("GET", "/v1/topology")
    told = json.load(connection.getresponse())["nodes"].get(node_id, {})
    beat, now = (told.get("cpu_s"), told.get("rtt_ms")), time.perf_counter()
    if beat != last or last is None:
      last, heard = beat, now
    late_s.value = max(late_s.value, now - heard - HEARTBEAT_S)
  connection.close()


def _connection(url: str) -> http.client.HTTPConnection:
  address = urllib.parse.urlsplit(url)
  return http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)


@contextmanager
def watching(nodes: list[NodeProcess]) -> Iterator[tuple[Synchronized[float], Synchronized[float]]]:
  """Both watchers of the first node, in processes of their own: (`worst_s`, `late_s`), right when the block is left."""
  spawn = multiprocessing.get_context("spawn")
  end, worst_s, late_s = spawn.Event(), spawn.Value("d", 0.0), spawn.Value("d", 0.0)
  watchers = [spawn.Process(target=ask, args=(nodes[0].url, end, worst_s))]
  if len(nodes) > 1:
    watchers.append(spawn.Process(target=listen, args=(nodes[1].url, nodes[0].node_id, end, late_s)))
  for watcher in watchers:
    watcher.start()
  time.sleep(1)  # they start
  try:
    yield worst_s, late_s
  finally:
    end.set()
    for watcher in watchers:
      watcher.join()


def repeated(unit: str, head: str, tail: str, separator: str = "", size: int = BODY) -> bytes:
  count = (size - len(head) - len(tail)) // len((unit + separator).encode())
  return (head + separator.join([unit] * count) + tail).encode()


def worst_requests() -> dict[str, tuple[str, bytes]]:
  """(path, body) by name."""
  chat, text = "/v1/chat/completions", "/v1/completions"
  user = '{"messages":[{"role":"user","content":"hi"}],"max_tokens":1,'
  said = '{"max_tokens":1,"messages":[{"role":"user","content":"'
  tools = '"tools":[{"type":"function","function":{"name":"f","parameters":{'
  numbered = ",".join(f'"{i}":{{}}' for i in range(1_200_000))
  schema = {
      "type": "object", "properties": {f"p{i}": {"type": "string", "pattern": "^[a-z]{3,50}$"}
                                       for i in range(1000)}
  }
  answer = {"type": "json_schema", "json_schema": {"name": "large", "schema": schema}}
  return {
      "8 MB of words, chat": (chat, repeated("hello world ", said, '"}]}', size=8 * MB)),
      "8 MB of one letter, chat": (chat, repeated("a", said, '"}]}', size=8 * MB)),
      "8 MB of digits, completions": (text, repeated("1", '{"max_tokens":1,"prompt":"', '"}', size=8 * MB)),
      "16 MB of spaces, messages": ("/v1/messages", repeated(" ", said, 'a"}]}')),
      "16 MB of escapes, responses": ("/v1/responses", repeated("\\u00e9", '{"max_output_tokens":1,"input":"', '"}')),
      "8 MB, count_tokens": ("/v1/messages/count_tokens", repeated("日本 ", said, '"}]}', size=8 * MB)),
      "600 kB of words, chat": (chat, repeated("hello world ", said, '"}]}', size=600_000)),
      "10 kB of words, chat": (chat, repeated("hello world ", said, '"}]}', size=10_000)),
      "16 MB, token/encode": (
          "/v1/chat/token/encode", repeated("ab ", '{"messages":[{"role":"user","content":"', '"}]}')
      ),
      "8 MB, embeddings": ("/v1/embeddings", repeated("hello ", '{"input":"', '"}', size=8 * MB)),
      "64 texts, embeddings": ("/v1/embeddings", repeated("hello " * 9, '{"input":["', '"]}', '","', size=60 * 54)),
      "8 MB, ollama": ("/api/generate", repeated("hello ", '{"raw":true,"prompt":"', '"}', size=8 * MB)),
      "8 million ids": (text, repeated("1", '{"max_tokens":1,"prompt":[', "]}", ",")),
      "2 million ids": (text, repeated("1", '{"max_tokens":1,"prompt":[', "]}", ",", size=4 * MB - 99)),
      "4 million lists": (text, repeated("[1]", '{"max_tokens":1,"prompt":[', "]}", ",")),
      "a schema of 16 MB": (chat, (user + tools + numbered + "}}}]}").encode()),
      "a list of 16 MB in a tool": (chat, repeated('{"a":1}', user + tools + '"x":[', "]}}}]}", ",")),
      "biases of 16 MB": (chat, (user + '"logit_bias":{' + numbered.replace("{}", "1") + "}}").encode()),
      "stops of 16 MB": (chat, repeated('"a"', user + '"stop":[', "]}", ",")),
      "parts of 16 MB": (
          chat, repeated('{"type":"text","text":"a"}', '{"messages":[{"role":"user","content":[', "]}]}", ",")
      ),
      "64 levels, 16 MB": (chat, b'{"messages":' + b"[" * 63 + b"1," * (BODY // 2) + b"1" + b"]" * 63 + b"}"),
      "no JSON, 16 MB": (chat, b'"' * BODY),
      "a grammar of 1,000 patterns": (chat, (user + '"response_format":' + json.dumps(answer) + "}").encode()),
      "99,000 values in a tool": (chat, repeated('{"a":1}', user + tools + '"x":[', "]}}}]}", ",", size=8 * 49_000)),
  }


@contextmanager
def computing(node: NodeProcess, clients: int) -> Iterator[None]:
  """Clients that keep the engine busy until the block is left."""
  end = threading.Event()

  def client() -> None:
    while not end.is_set():
      node.chat("Tell a long story. " * 100, max_tokens=100, temperature=1)

  threads = [threading.Thread(target=client) for _ in range(clients)]
  for thread in threads:
    thread.start()
  time.sleep(2 if clients else 0)
  try:
    yield
  finally:
    end.set()
    for thread in threads:
      thread.join()


def measure(nodes: list[NodeProcess], clients: int, at_once: int) -> str:
  """The rows, written as they come; returns the worst of all."""
  node, worst, late = nodes[0], 0.0, 0.0
  with computing(node, clients):
    for name, (path, body) in worst_requests().items():
      answers: list[tuple[int, Any]] = []
      threads = [
          threading.Thread(target=lambda: answers.append(node.post(path, body, 300)))  # noqa: B023
          for _ in range(at_once)
      ]
      with watching(nodes) as (worst_s, late_s):
        begun = time.perf_counter()
        for thread in threads:
          thread.start()
        for thread in threads:
          thread.join()
        took = time.perf_counter() - begun
      worst, late = max(worst, worst_s.value), max(late, late_s.value)
      told = (answers[0][1] or {}).get("error", {}) if isinstance(answers[0][1], dict) else {}
      reason = told.get("message", "") if isinstance(told, dict) else str(told)
      statuses = sorted({status for status, _ in answers})
      print(
          f"| {name} | {statuses} {reason[:70]} | {took:.2f} | {worst_s.value:.3f} | {late_s.value:.3f} |", flush=True
      )
  return f"the slowest health check of all: {worst:.3f} s; the latest heartbeat: {late:.3f} s"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--model", default="smollm2-135m")
  parser.add_argument("--nodes", type=int, default=1)
  parser.add_argument("--at-once", type=int, default=1, help="how often each request is sent at the same time")
  parser.add_argument("--clients", type=int, default=4, help="how many keep the engine busy in the second half")
  arguments = parser.parse_args()
  home = Path(os.environ.get("EXO_TEST_HOME", ROOT / ".test-home"))
  with ring(home, arguments.nodes, "--default-model", arguments.model) as nodes:
    nodes[0].chat("hi", max_tokens=1)
    for clients in (0, arguments.clients):
      print(f"\n{clients} clients that keep the engine busy\n")
      print("| request | answer | took, s | slowest health check, s | heartbeat late by, s |\n|---|---|---|---|---|")
      print(measure(nodes, clients, arguments.at_once))


if __name__ == "__main__":
  main()
