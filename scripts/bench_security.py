"""Measure what security costs and what a flood does, on this machine.

  python scripts/bench_security.py flood    10,000 datagrams a second at a node: its API's latency and its memory
  python scripts/bench_security.py tls      tokens a second of a ring of two with a cluster key and without one
Machines are noisy: the two sides alternate, and medians of pairs are what to look at. --json FILE keeps the figures.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import secrets
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "scripts"))

from test.support.nodes import NodeProcess, free_port, ring  # noqa: E402

RATE, MODEL = 10_000, "smollm2-135m"


def row(name: str, figure: str, goal: str = "") -> None:
  print(f"  {name:58s} {figure:>22s}  {goal}", flush=True)


def flood(port: int, seconds: float, sent: Any) -> None:
  """Half of it noise, half well-formed beacons of nodes that are not there, in bursts of a hundredth of a second."""
  noise = [os.urandom(size) for size in (1, 60, 300, 1400)]
  beacons = [b'{"type":"discovery","node_id":"flood-%d","grpc_port":%d}' % (i, 2000 + i % 60000) for i in range(10_000)]
  began, count = time.perf_counter(), 0
  with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    while (passed := time.perf_counter() - began) < seconds:
      while count < passed * RATE:
        sock.sendto(beacons[count % 10_000] if count % 2 else noise[count // 2 % 4], ("127.0.0.1", port))
        count += 1
      time.sleep(0.01)
  sent.value = count


def latencies(node: NodeProcess, seconds: float) -> list[float]:
  """Milliseconds of one small request after the other."""
  found, until = [], time.perf_counter() + seconds
  while time.perf_counter() < until:
    began = time.perf_counter()
    status, _ = node.get("/v1/models")
    assert status == 200
    found.append((time.perf_counter() - began) * 1e3)
    time.sleep(0.01)
  return found


def bench_flood(figures: dict[str, Any], rounds: int) -> None:
  print(f"a flood of {RATE:,} datagrams a second ({rounds} rounds of 4 s without and with it)")
  for keyed in (False, True):
    port = free_port(socket.SOCK_DGRAM)
    flags = [
        "--inference-engine", "dummy", "--default-model", "dummy", "--listen-port",
        str(port), "--broadcast-port",
        str(port)
    ]
    env = {"DEBUG": "0"} | ({"EXO_CLUSTER_KEY": secrets.token_urlsafe(32)} if keyed else {})
    with tempfile.TemporaryDirectory() as home:
      node = NodeProcess(Path(home), *flags, node_id="flooded", env=env).wait_ready()
      try:
        process = psutil.Process(node.process.pid)
        latencies(node, 2)
        before, memory = process.memory_info().rss, []
        quiet, loud, rates = [], [], []
        for _ in range(rounds):
          quiet.append(latencies(node, 4))
          sent = multiprocessing.Value("q")
          attacker = multiprocessing.Process(target=flood, args=(port, 4.5, sent))
          attacker.start()
          time.sleep(0.3)
          loud.append(latencies(node, 4))
          attacker.join()
          rates.append(sent.value / 4.5)
          memory.append(process.memory_info().rss)
      finally:
        node.stop()
    name = "with a key" if keyed else "without a key"
    ratio = statistics.median(statistics.median(a) / statistics.median(b) for a, b in zip(loud, quiet, strict=True))
    grown = (memory[-1] - before) / 2**20
    figures[f"flood_{'keyed' if keyed else 'open'}"] = {
        "rate": statistics.median(rates), "quiet_ms": statistics.median(map(statistics.median, quiet)),
        "flooded_ms": statistics.median(map(statistics.median, loud)), "ratio": ratio, "grown_mb": grown,
        "memory_mb": [m / 2**20 for m in memory]
    }  # yapf: disable
    row(f"{name}: datagrams sent a second", f"{statistics.median(rates):,.0f}")
    row(f"{name}: median latency of GET /v1/models", f"{statistics.median(map(statistics.median, quiet)):.2f} -> "
        f"{statistics.median(map(statistics.median, loud)):.2f} ms")  # yapf: disable
    row(f"{name}: ratio, round by round", f"{ratio:.2f}", "under 2")
    row(f"{name}: memory after {rounds} floods", f"{grown:+.1f} MB", "flat")


def bench_tls(figures: dict[str, Any], rounds: int) -> None:
  from bench import PROSE, exo_speed, home_with_model
  home = home_with_model()
  print(f"a ring of two, SmolLM2-135M, 64 tokens a request, {rounds} alternating pairs")
  key = secrets.token_urlsafe(32)
  with ring(home, 2, env={"DEBUG": "0"}) as plain, ring(home, 2, env={"DEBUG": "0", "EXO_CLUSTER_KEY": key}) as keyed:
    status, encoded = plain[0].post("/v1/chat/token/encode", {"messages": [{"role": "user", "content": PROSE}]})
    assert status == 200, encoded
    prompt = encoded["encoded_tokens"][:64]
    for nodes in (plain, keyed):
      exo_speed(nodes[0].url, MODEL, prompt, 16)
    without, with_key = [], []
    for number in range(rounds):
      for nodes, found in ((plain, without), (keyed, with_key)) if number % 2 else ((keyed, with_key), (plain,
                                                                                                        without)):
        found.append(exo_speed(nodes[0].url, MODEL, [*prompt[:-1], 100 + number], 64)[1])
    stages = len(keyed[0].get("/v1/topology")[1]["plans"][-1]["stages"])
  assert stages == 2
  ratio = statistics.median(a / b for a, b in zip(with_key, without, strict=True))
  figures["tls"] = {"plain_tokens_s": without, "tls_tokens_s": with_key, "ratio": ratio}
  row("decode without a key, tokens/s", f"{statistics.median(without):.1f}")
  row("decode with one (mutual TLS), tokens/s", f"{statistics.median(with_key):.1f}")
  row("ratio, pair by pair", f"{ratio:.3f}", "at least 0.95")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("what", nargs="*", choices=["flood", "tls"], default=["flood", "tls"])
  parser.add_argument("--rounds", type=int, default=9)
  parser.add_argument("--json", type=Path, metavar="FILE")
  arguments = parser.parse_args()
  figures: dict[str, Any] = {}
  for what in arguments.what or ["flood", "tls"]:
    (bench_flood if what == "flood" else bench_tls)(figures, arguments.rounds)
  if arguments.json:
    arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
  main()
