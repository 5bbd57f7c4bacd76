"""How fast models come: exo's downloads against curl's from the same server, `exo models`, and tokens while a node serves.

    python scripts/bench_downloads.py hub [--mbit 1000]   one file from a fake hub, curl and exo in turn
    python scripts/bench_downloads.py list                `exo models` with the whole registry and no network
    python scripts/bench_downloads.py serving             decode speed of a node alone, and while another fetches from it
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from test.support.nodes import ROOT, NodeProcess, free_port, wait_until
from test.support.stores import write_big

REPO = "org/big"


@contextmanager
def hub_process(folder: Path, bytes_per_s: float | None) -> Iterator[str]:
  """The fake hub in a process of its own, so that it shares no interpreter with what is measured."""
  code = (
      "import sys, time; from pathlib import Path; from test.support.hub import hub\n"
      "with hub({sys.argv[1]: Path(sys.argv[2])}) as server:\n"
      "  server.faults.bytes_per_s = float(sys.argv[3]) or None\n"
      "  print(server.url, flush=True); sys.stdin.read()"
  )
  process = subprocess.Popen([sys.executable, "-c", code, REPO,
                              str(folder), str(bytes_per_s or 0)],
                             stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE,
                             text=True,
                             cwd=ROOT)
  assert process.stdout is not None and process.stdin is not None
  try:
    yield process.stdout.readline().strip()
  finally:
    process.stdin.close()
    process.wait(10)


FETCH = """
import asyncio, sys, time
from pathlib import Path
from exo.download.model_store import DownloadOptions, ModelStore
async def main():
  store = ModelStore(Path(sys.argv[1]), options=DownloadOptions(parallel=int(sys.argv[2])))
  entry = store.find(sys.argv[3])
  await store.head(entry)
  began = time.perf_counter()
  await store.fetch(entry)
  print(time.perf_counter() - began)
  await store.close()
asyncio.run(main())
"""


def bench_hub(megabytes: int, mbit: float | None, rounds: int) -> None:
  """Each round: curl, then exo with the hash checked, then exo again over one connection."""
  with tempfile.TemporaryDirectory() as scratch:
    folder = write_big(Path(scratch) / "big", megabytes)
    size = (folder / "model.safetensors").stat().st_size
    # a server's connections share what its network gives
    with hub_process(folder, mbit * 1e6 / 8 if mbit else None) as url:
      speeds: dict[str, list[float]] = {"curl": [], "exo": []}
      for i in range(rounds):
        address, out = f"{url}/{REPO}/resolve/main/model.safetensors", Path(scratch) / "curl"
        took = float(
            subprocess.run(["curl", "-s", "-o", out, "-w", "%{time_total}", address],
                           check=True,
                           capture_output=True,
                           text=True).stdout
        )
        speeds["curl"].append(size / took / 1e6)
        out.unlink()
        home = Path(scratch) / f"home{i}"
        parallel = "1" if mbit else "8"  # the fake hub limits each connection: the same number for both
        env = os.environ | {"HF_ENDPOINT": url, "HF_HOME": str(home / "hf")}
        done = subprocess.run([sys.executable, "-c", FETCH, str(home), parallel, REPO],
                              check=True,
                              capture_output=True,
                              text=True,
                              cwd=ROOT,
                              env=env)
        speeds["exo"].append(size / float(done.stdout) / 1e6)
        shutil.rmtree(home)
      ratio = statistics.median(b / a for a, b in zip(speeds["curl"], speeds["exo"], strict=True))
      for name, found in speeds.items():
        print(
            f"{name:5} {min(found):7.0f} {statistics.median(found):7.0f} {max(found):7.0f} MB/s (least, median, most)"
        )
      print(f"exo/curl {ratio:.2f} (median of {rounds} pairs)")


def bench_list(rounds: int) -> None:
  with tempfile.TemporaryDirectory() as home:
    env = os.environ | {"EXO_HOME": home, "HF_ENDPOINT": "http://127.0.0.1:9"}
    took = []
    for _ in range(rounds):
      began = time.perf_counter()
      done = subprocess.run([sys.executable, "-m", "exo", "models", "--json"],
                            check=True,
                            capture_output=True,
                            cwd=ROOT,
                            env=env)
      took.append(time.perf_counter() - began)
    count = len(json.loads(done.stdout))
    print(f"exo models, {count} models: {min(took):.2f} {statistics.median(took):.2f} {max(took):.2f} s")


def bench_serving(home: Path, rounds: int) -> None:
  """A node answers while another, which takes no part in the answer, reads 300 MB from it again and again."""
  with tempfile.TemporaryDirectory() as scratch:
    own = Path(scratch) / "own"
    write_big(own / "big", 300)
    port = str(free_port(socket.SOCK_DGRAM))
    flags = ("--listen-port", port, "--broadcast-port", port)
    # the reader offers so little memory that no stage falls to it
    nodes = [
        NodeProcess(home, *flags, "--model-dir", str(own), node_id="giver"),
        NodeProcess(
            Path(scratch) / "taker", *flags, "--max-memory", "1", "--inference-engine", "dummy", node_id="taker"
        )
    ]
    try:
      for node in nodes:
        node.wait_ready()
      wait_until(lambda: len(nodes[0].peers()) == 2, 20, "the ring")
      speed(nodes[0])
      alone, beside, moved = [], [], []
      for _ in range(rounds):
        alone.append(speed(nodes[0]))
        stop = threading.Event()
        reader = threading.Thread(target=keep_pulling, args=(nodes[1], stop, moved))
        reader.start()
        wait_until(lambda: any(d["from_peers_bytes"] for d in downloads(nodes[1])), 20, "the first bytes")
        beside.append(speed(nodes[0]))
        stop.set()
        reader.join()
      ratio = statistics.median(b / a for a, b in zip(alone, beside, strict=True))
      print(f"alone {statistics.median(alone):.1f}, while it serves {statistics.median(beside):.1f} tokens/s, "
            f"ratio {ratio:.3f}; {sum(moved) / 1e6:.0f} MB were read meanwhile")  # yapf: disable
    finally:
      for node in nodes:
        node.stop()


def downloads(node: NodeProcess) -> list[dict[str, int]]:
  found: list[dict[str, int]] = node.get("/v1/download/progress")[1]["data"]
  return [d for d in found if str(d["node_id"]) == node.node_id]


def keep_pulling(node: NodeProcess, stop: threading.Event, moved: list[int]) -> None:
  while not stop.is_set():
    status, _ = node.post("/download", {"model": "big", "wait": True})
    if status != 200:
      return
    moved.append(sum(d["from_peers_bytes"] for d in downloads(node)))
    import urllib.request
    urllib.request.urlopen(urllib.request.Request(node.url + "/models/big", method="DELETE"), timeout=30).close()


def speed(node: NodeProcess) -> float:
  began = time.perf_counter()
  _, body = node.chat("Write a long story about the sea.", max_tokens=200, logit_bias={"2": -100})
  return float(body["usage"]["completion_tokens"] / (time.perf_counter() - began))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("what", choices=["hub", "list", "serving"])
  parser.add_argument("--megabytes", type=int, default=512)
  parser.add_argument("--mbit", type=float, help="what the server gives, in Mbit/s (default: all it can)")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--home", type=Path, default=Path(os.environ.get("EXO_TEST_HOME", ROOT / ".test-home")))
  arguments = parser.parse_args()
  match arguments.what:
    case "hub":
      bench_hub(arguments.megabytes, arguments.mbit, arguments.rounds)
    case "list":
      bench_list(arguments.rounds)
    case "serving":
      bench_serving(arguments.home, arguments.rounds)


if __name__ == "__main__":
  main()
