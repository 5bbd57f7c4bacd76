"""Fuzz every parser that faces a stranger, guided by coverage where atheris is installed (pip install atheris).

  python scripts/fuzz.py                      all targets, 100,000 inputs each
  python scripts/fuzz.py gguf --runs 1000000  one of them, longer
  python scripts/fuzz.py --engine mutate      without atheris: random mutations
  python scripts/fuzz.py --json FILE          also keep the figures

A crash, an input that takes more than 10 s, or memory beyond 1 GB ends a target with status 1; the input lies in
test/data/fuzz/<target>, where the tests find it from then on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

_TIMEOUT_S, _RSS_MB = 10, 1024


def run_atheris(name: str, runs: int, seconds: int, corpus: Path) -> None:
  """In a process of its own: libFuzzer ends it. Never returns."""
  import atheris
  with atheris.instrument_imports(include=["exo"]):
    from test.fuzz.targets import CORPUS, TARGETS
  target = TARGETS[name]
  found = CORPUS / name
  for i, data in enumerate([*target.seeds, *target.corpus]):
    (corpus / f"seed{i}").write_bytes(data)
  found.mkdir(parents=True, exist_ok=True)
  flags = [
      f"-runs={runs}", f"-max_total_time={seconds}", f"-timeout={_TIMEOUT_S}", f"-rss_limit_mb={_RSS_MB}",
      f"-max_len={target.max_bytes}", f"-artifact_prefix={found}/", "-print_final_stats=1", "-verbosity=0"
  ]
  atheris.Setup([sys.argv[0], *flags, str(corpus)], target.run)
  atheris.Fuzz()


def run_mutate(name: str, runs: int, seconds: int) -> dict[str, Any]:
  import psutil

  from test.fuzz.mutate import inputs
  from test.fuzz.targets import CORPUS, TARGETS
  from test.test_fuzz import HANG_S, no_hang
  target, process = TARGETS[name], psutil.Process()
  began, done, rss = time.monotonic(), 0, 0
  for data in inputs([*target.corpus, *target.seeds], runs, int(time.time()), target.max_bytes):
    try:
      with no_hang(HANG_S):
        target.run(data)
    except BaseException:
      (CORPUS / name).mkdir(parents=True, exist_ok=True)
      (CORPUS / name / f"crash-{hashlib.sha1(data).hexdigest()}").write_bytes(data)
      raise
    done += 1
    if done == 1000:
      rss = process.memory_info().rss
    if time.monotonic() - began > seconds:
      break
  return {
      "inputs": done, "rss_mb": process.memory_info().rss >> 20, "grown_mb": (process.memory_info().rss - rss) >> 20
  }


def run_target(name: str, engine: str, runs: int, seconds: int) -> dict[str, Any]:
  """Figures of one target; `ok` False with the end of its output when something was found."""
  began = time.monotonic()
  with tempfile.TemporaryDirectory() as corpus:
    command = [sys.executable, __file__, name, "--child", corpus, "--engine", engine, "--runs", str(runs)]
    done = subprocess.run([*command, "--seconds", str(seconds)],
                          cwd=ROOT,
                          capture_output=True,
                          text=True,
                          errors="replace",
                          check=False)
  stats = dict(re.findall(r"stat::(\w+): *(\d+)", done.stderr))
  figures: dict[str,
                Any] = {"engine": engine, "seconds": round(time.monotonic() - began, 1), "ok": done.returncode == 0}
  if stats:
    figures |= {"inputs": int(stats["number_of_executed_units"]), "rss_mb": int(stats["peak_rss_mb"])}
  elif done.returncode == 0:
    figures |= json.loads(done.stdout.splitlines()[-1])
  if done.returncode:
    figures["output"] = (done.stdout + done.stderr)[-4000:]
  found = ROOT / "test" / "data" / "fuzz" / name
  if found.is_dir() and not any(found.iterdir()):
    found.rmdir()
  return figures


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("targets", nargs="*")
  parser.add_argument("--engine", choices=["atheris", "mutate"])
  parser.add_argument("--runs", type=int, default=100_000)
  parser.add_argument("--seconds", type=int, default=3600, help="at most, for each target")
  parser.add_argument("--json", type=Path, metavar="FILE")
  parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  engine = arguments.engine or ("atheris" if _has_atheris() else "mutate")
  if arguments.child:
    if engine == "atheris":
      run_atheris(arguments.targets[0], arguments.runs, arguments.seconds, arguments.child)
    print(json.dumps(run_mutate(arguments.targets[0], arguments.runs, arguments.seconds)))
    return 0
  from test.fuzz.targets import TARGETS
  unknown = set(arguments.targets) - set(TARGETS)
  if unknown:
    parser.error(f"there is no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
  figures, total = {}, 0
  for name in arguments.targets or TARGETS:
    figures[name] = result = run_target(name, engine, arguments.runs, arguments.seconds)
    total += result.get("inputs", 0)
    print(f"  {name:16s} {result.get('inputs', 0):>10,} inputs  {result['seconds']:>7.1f} s  "
          f"{result.get('rss_mb', 0):>5} MB  {'ok' if result['ok'] else 'FOUND SOMETHING'}", flush=True)  # yapf: disable
    if not result["ok"]:
      print(result["output"])
  print(f"  {'all':16s} {total:>10,} inputs")
  if arguments.json:
    arguments.json.write_text(json.dumps({"total": total, "targets": figures}, indent=2) + "\n")
  return 0 if all(result["ok"] for result in figures.values()) else 1


def _has_atheris() -> bool:
  try:
    import atheris  # noqa: F401
  except ImportError:
    return False
  return True


if __name__ == "__main__":
  sys.exit(main())
