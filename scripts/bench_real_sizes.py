"""exo on files of real sizes beside llama.cpp, in the same run, on the same file and cores: `python scripts/bench.py real-sizes`.

  python scripts/bench_real_sizes.py --server FOLDER --models 1b,3b --encodings Q4_K_M,Q8_0 --threads 1,2
  python scripts/bench_real_sizes.py --only engine,ring      without llama.cpp's server
  python scripts/bench_real_sizes.py --server wheel          against the server in the wheel of xllamacpp
  python scripts/bench_real_sizes.py --quick                 all of it with a tiny model: that it works, no figures

The files have random weights of real shapes. EXO_LLAMA_CPP names the library that exo uses, as always; a FOLDER with `llama-server` and
`ggml-rpc-server` should be built from the same sources and with the same flags. The sides alternate; a ratio is the median of its pairs,
with the interval in which that lies with 95 %. There are more pairs than --pairs, up to --most-pairs, as long as an interval is wider
than 0.06. A bound is kept if the interval's upper end reaches it, and the median all but 0.02.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from exo.inference.llama_cpp.library_choice import chosen_library  # noqa: E402
from scripts.real_sizes import engine, load, one_stream, ring, streams, turns  # noqa: E402
from scripts.real_sizes.pairs import Compared, interval  # noqa: E402
from scripts.real_sizes.work import SHAPES, TINY_SIZES, Sizes, Work, allowed_cores, model_file, step_aside  # noqa: E402

SCENARIOS: dict[str, Callable[[Work], Coroutine[Any, Any, list[Compared]]]] = {
    "engine": engine.measure, "http": one_stream.measure, "streams": streams.measure, "load": load.measure,
    "ring": ring.measure, "turns": turns.measure
}
_DISTURBING = 5.0
_WANT_A_SERVER = ("http", "streams", "load")
_HEAD = "| | figure | exo | beside it | ratio (95 %) | pairs | bound | |\n|---|---|---|---|---|---|---|---|"


def table_row(one: Compared) -> str:
  low, high = interval(one.values)
  later = one.goal.later is not None
  median = f"{statistics.median(one.values):+.2f} s" if later else f"{statistics.median(one.values):.3f}"
  figures = [f"{statistics.median(side):.3g}" for side in (one.ours, one.theirs)]
  cells = [one.name, one.figure, *figures, f"{median} ({low:.3f} to {high:.3f})", str(len(one.values)), str(one.goal)]
  return f"| {' | '.join([*cells, one.verdict])} |"


def machine() -> str:
  """The processor by its name, and how many cores of it."""
  name = platform.processor() or platform.machine()
  if (info := Path("/proc/cpuinfo")).exists():
    said = dict(line.split("\t", 1) for line in info.read_text().split("\n\n")[0].splitlines() if "\t" in line)
    said = {key.strip(): value.strip("\t: ") for key, value in said.items()}
    numbers = [f"{key} {said[key]}" for key in ("cpu family", "model") if key in said]
    name = f"{said.get('model name', name)} ({', '.join(numbers)})" if numbers else name
  return f"{name}, {len(allowed_cores())} cores"


def numbers(text: str) -> list[int]:
  return [int(part) for part in text.split(",")]


def names(known: Sequence[str]) -> Callable[[str], list[str]]:
  def parse(text: str) -> list[str]:
    if unknown := [part for part in text.split(",") if part not in known]:
      raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
    return text.split(",")

  return parse


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--models", type=names(list(SHAPES)), default=["1b"], help=f"of {','.join(SHAPES)} (default 1b)")
  parser.add_argument("--encodings", type=lambda text: text.split(","), default=["Q4_K_M"], help="default Q4_K_M")
  parser.add_argument("--threads", type=numbers, default=[1], help="of one node, each a core (default 1)")
  parser.add_argument("--pairs", type=int, default=5)
  parser.add_argument("--most-pairs", type=int, default=15)
  parser.add_argument("--only", type=names(list(SCENARIOS)), default=list(SCENARIOS), help=f"of {','.join(SCENARIOS)}")
  parser.add_argument("--prompts", type=numbers, help="tokens of one stream's prompts (default 300,4000)")
  parser.add_argument("--streams", type=numbers, help="at once (default 8,16)")
  parser.add_argument("--decoded", type=int, help="tokens of an answer (default 64)")
  parser.add_argument("--server", default="", help="a folder with llama.cpp's programs, or: wheel")
  parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "exo-real-sizes", help="for files")
  parser.add_argument("--json", type=Path, metavar="FILE")
  parser.add_argument("--quick", action="store_true", help="a tiny model and short texts, to see that it works")
  found = parser.parse_args(arguments)
  if found.quick:
    found.models, found.encodings, found.threads, found.most_pairs = ["tiny"], ["Q8_0"], [1], found.pairs
  if max(found.threads) > len(allowed_cores()):
    parser.error(f"there are {len(allowed_cores())} cores here")
  return found


def sizes_of(found: argparse.Namespace) -> Sizes:
  sizes = TINY_SIZES if found.quick else Sizes()
  if found.prompts:
    sizes = replace(sizes, prompts=tuple(found.prompts))
  if found.streams:
    sizes = replace(sizes, streams=tuple(found.streams))
  return replace(sizes, decoded=found.decoded) if found.decoded else sizes


def main(arguments: Sequence[str] | None = None) -> int:
  found = options(arguments)
  library = chosen_library()
  print(f"{machine()}; load {os.getloadavg()[0]:.1f}\nlibrary: {library.file}, {library.version}", flush=True)
  print(f"  {library.file.path.name}, for {', '.join(library.instructions)}", flush=True)
  results: dict[str, Any] = {
      "machine": machine(), "library": str(library.file), "version": library.version,
      "instructions": library.instructions, "server": found.server, "figures": {}
  }
  left_out = [name for name in found.only if name in _WANT_A_SERVER and not found.server]
  if left_out:
    print(f"left out, since --server names no server of llama.cpp: {', '.join(left_out)}", flush=True)
  for model in found.models:
    for encoding in found.encodings:
      file = model_file(found.folder, model, encoding)
      for threads in found.threads:
        with tempfile.TemporaryDirectory() as state:
          work = Work(
              file, SHAPES[model], threads, sizes_of(found), found.pairs, found.most_pairs, found.server, Path(state)
          )
          print(f"\n{work.name}\n\n{_HEAD}", flush=True)
          rows: list[dict[str, Any]] = []
          for name in found.only:
            if name in left_out or (name == "ring" and threads != min(found.threads)):  # its nodes have a core each
              continue
            step_aside(threads)
            others = psutil.cpu_percent(1.0)  # all cores together
            if others > _DISTURBING:
              print(
                  f"  before {name}, others compute with {others:.0f} % of this machine: figures may be off",
                  flush=True
              )
            for one in asyncio.run(SCENARIOS[name](work)):
              print(table_row(one), flush=True)
              rows.append(one.to_json() | {"scenario": name, "others_percent": others})
          results["figures"][work.name] = rows
  if found.json:
    found.json.write_text(json.dumps(results, indent=2) + "\n")
  return 0


if __name__ == "__main__":
  sys.exit(main())
