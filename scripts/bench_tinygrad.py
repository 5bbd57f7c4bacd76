"""Measure the tinygrad engine on SmolLM2-135M, on one pinned core or on the GPU that it found.

  python scripts/bench_tinygrad.py [--quantize 8]

Each figure stands beside version 0's on its own machine (7.4 tokens/s decode, 30 prefill, float32, one core).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from exo.inference.engine import Batch, BatchEntry, LoadOptions, LogitsOf, StageModel  # noqa: E402
from exo.inference.engines import load_engine  # noqa: E402
from exo.inference.shard import Shard  # noqa: E402
from exo.inference.tinygrad.probe import devices, find_gpu  # noqa: E402
from exo.inference.weights.checkpoint import Checkpoint, open_checkpoint  # noqa: E402

VERSION0_DECODE, VERSION0_PREFILL = 7.4, 30.0
PROMPT = 200
# memory bandwidth in GB/s of GPUs by their names, from their makers' data sheets
BANDWIDTH = {
    "H100 PCIe": 2000, "H100": 3350, "H200": 4800, "A100": 2039, "RTX 4090": 1008, "RTX 3090": 936, "MI300X": 5300
}


def load(checkpoint: Checkpoint, quantize: str) -> tuple[StageModel, float]:
  """(the whole model, seconds it took)."""
  layers = checkpoint.config.n_layers
  started = time.perf_counter()
  options = LoadOptions(2**33, 1, max_context=2048, quantize=quantize)
  model = load_engine("tinygrad").load(Shard("bench", 0, layers - 1, layers), checkpoint, options, lambda _: None)
  return model, time.perf_counter() - started


def prefill_speed(model: StageModel, ids: np.ndarray, runs: int) -> float:
  """Tokens per second of a prompt of PROMPT tokens, the median."""
  times = []
  for _ in range(runs):
    started = time.perf_counter()
    model.step(Batch((BatchEntry(0, 0, len(ids), LogitsOf.LAST), ), ids))
    times.append(time.perf_counter() - started)
    model.drop(0)
  return len(ids) / statistics.median(times)


def decode_speed(model: StageModel, ids: np.ndarray, batch: int, steps: int) -> float:
  """Tokens per second of `batch` sequences after PROMPT tokens each, all together, the median."""
  for sequence in range(batch):
    model.step(Batch((BatchEntry(sequence, 0, len(ids), LogitsOf.LAST), ), ids))
  times = []
  for k in range(steps):
    entries = tuple(BatchEntry(sequence, len(ids) + k, 1, LogitsOf.LAST) for sequence in range(batch))
    started = time.perf_counter()
    model.step(Batch(entries, ids[:batch]))
    times.append(time.perf_counter() - started)
  for sequence in range(batch):
    model.drop(sequence)
  return batch / statistics.median(times)


def measure_here(path: Path, quantize: str) -> dict[str, Any]:
  """All figures in this process, which should be a new one of its own: threads and affinity are set for good."""
  if find_gpu() is None and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
  checkpoint = open_checkpoint(path)
  ids = np.random.default_rng(0).integers(100, 40000, PROMPT).astype(np.int32)
  model, load_s = load(checkpoint, quantize)
  started = time.perf_counter()
  model.step(Batch((BatchEntry(0, 0, PROMPT, LogitsOf.LAST), ), ids))
  first_s = time.perf_counter() - started
  model.drop(0)
  figures: dict[str, Any] = {
      "device": find_gpu()[0] if find_gpu() else "one core",  # type: ignore[index]
      "load_s": load_s,
      "first_prompt_s": first_s,
      "prefill": prefill_speed(model, ids, 5),
      "decode_1": decode_speed(model, ids, 1, 40),
      "decode_4": decode_speed(model, ids, 4, 20),
      "weight_bytes": model.memory.weight_bytes,
  }
  figures["bytes_per_token"] = model.memory.weight_bytes + model.memory.kv_bytes_per_token * PROMPT
  if (bandwidth := gpu_bandwidth()) is not None:
    figures["of_bandwidth"] = figures["bytes_per_token"] * figures["decode_1"] / bandwidth
  return figures


def gpu_bandwidth() -> float | None:
  """Bytes per second of the GPU's memory, where its name is known."""
  if "CUDA" not in devices():
    return None
  try:
    name = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
                          capture_output=True,
                          text=True,
                          check=False).stdout
  except OSError:
    return None
  return next((speed * 1e9 for known, speed in BANDWIDTH.items() if known in name), None)


def measure(path: Path, quantize: str = "none") -> dict[str, Any]:
  """The figures of a fresh process with an empty kernel cache, and the load time of a second one with that cache."""
  with tempfile.TemporaryDirectory() as cache:
    results = []
    for _ in range(2):
      code = f"import json, sys; sys.path.insert(0, {str(ROOT / 'scripts')!r}); import bench_tinygrad as b; from pathlib import Path; " \
             f"print(json.dumps(b.measure_here(Path({str(path)!r}), {quantize!r})))"
      environment = os.environ | {"CACHEDB": str(Path(cache) / "cache.db")}
      done = subprocess.run([sys.executable, "-c", code],
                            env=environment,
                            cwd=ROOT,
                            capture_output=True,
                            text=True,
                            check=True)
      results.append(json.loads(done.stdout.splitlines()[-1]))
  return results[1] | {"first_load_s": results[0]["load_s"]}


def report(figures: dict[str, Any]) -> None:
  def row(name: str, figure: str, goal: str = "") -> None:
    print(f"  {name:58s} {figure:>22s}  {goal}")

  print(f"tinygrad on {figures['device']}, {figures['weight_bytes'] // 2**20} MB of weights")
  row("load, all kernels to compile", f"{figures['first_load_s']:.1f} s")
  row("load, kernels from the cache on disk", f"{figures['load_s']:.1f} s")
  row(f"first prompt of {PROMPT} tokens after that", f"{figures['first_prompt_s']:.2f} s")
  decode, prefill = figures["decode_1"], figures["prefill"]
  row("decode", f"{decode:.1f} tokens/s", f"at least 30 ({decode / VERSION0_DECODE:.1f} times version 0)")
  row("decode, 4 at once", f"{figures['decode_4']:.1f} tokens/s", "at least 80")
  row("prefill", f"{prefill:.0f} tokens/s", f"at least 150 ({prefill / VERSION0_PREFILL:.1f} times version 0)")
  if "of_bandwidth" in figures:
    row("of the memory's bandwidth, decoding", f"{figures['of_bandwidth'] * 100:.0f} %")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--quantize", choices=["none", "8", "4"], default="none")
  parser.add_argument("--model", type=Path, help="a checkpoint (default: SmolLM2-135M, fetched into EXO_HOME)")
  arguments = parser.parse_args()
  path = arguments.model
  if path is None:
    from bench import home_with_model

    from exo.download.model_store import ModelStore
    path = ModelStore(home_with_model()).find("smollm2-135m").path
  report(measure(path, arguments.quantize))


if __name__ == "__main__":
  main()
