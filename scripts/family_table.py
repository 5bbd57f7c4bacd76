"""Which engine runs which family, found out: `python scripts/family_table.py [FOLDER …] [--markdown FILE]`.

Every checkpoint in these folders (see `test/support/families.py`; by default those that the tests know) in each of its forms goes
through every engine that is installed here, as one stage, two and three. Right is within 0.03 of the references, the text in one
step, in three, and token after token. Each family has a process of its own, so that one that crashes is a row like any other.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from exo.errors import ExoError, UnsupportedModelError
from exo.inference.engine_names import engine_names
from exo.inference.engines import probe_engine
from exo.inference.weights.checkpoint import Checkpoint, open_checkpoint
from exo.inference.weights.contradictions import check_consistent
from test.support.families import TOLERANCE, Form, all_forms, forms_in, log_probabilities
from test.support.stages import Stages

_STAGES = (1, 2, 3)
_LIMIT_S = 300
_LONGEST = 250  # letters of a reason


@dataclass(frozen=True, slots=True)
class Found:
  """What one engine did with one form cut into so many stages: `error` where it ran, `refused` where it said why not."""
  form: str
  engine: str
  stages: int
  error: float | None = None
  refused: str = ""

  @property
  def verdict(self) -> str:
    if self.error is None:
      return "no"
    return "right" if self.error <= TOLERANCE else f"off by {self.error:.2f}"


def _worst(stages: Stages, form: Form) -> float:
  worst = 0.0
  for ids, expected in form.references():
    for chunk in (len(ids), max(2, len(ids) // 3), 1):
      difference = np.abs(log_probabilities(stages, ids, chunk) - expected).max()
      worst = max(worst, float(difference)) if np.isfinite(difference) else float("inf")
  return worst


def _of_engine(form: Form, engine: str, checkpoint: Checkpoint) -> Iterator[Found]:
  offer, n = probe_engine(engine), checkpoint.config.n_layers
  if (why := offer.cannot(checkpoint.facts)) is not None:
    yield Found(str(form), engine, 1, refused=why)
    return
  for count in _STAGES:
    if count > n:
      continue
    cuts = [i * n // count for i in range(1, count)]
    held = ":none" if engine == "onnx" else ""
    try:
      stages = Stages(engine + held, checkpoint, cuts, kv_type="f32")
    except (ExoError, UnsupportedModelError) as error:
      yield Found(str(form), engine, count, refused=str(error))
      continue
    try:
      yield Found(str(form), engine, count, _worst(stages, form))
    except Exception as error:  # noqa: BLE001 - a row says what happened
      yield Found(str(form), engine, count, refused=f"FAILED: {type(error).__name__}: {error}")
    finally:
      stages.close()


def _of_form(form: Form) -> Iterator[Found]:
  with tempfile.TemporaryDirectory() as folder:
    try:
      checkpoint = open_checkpoint(form.lay_out(Path(folder)))
      check_consistent(checkpoint)
      checkpoint.facts  # noqa: B018 - read here, so that what is wrong is told of the form
    except (ExoError, ValueError) as error:
      yield Found(str(form), "", 1, refused=str(error))
      return
    for engine in engine_names():
      if engine != "dummy" and probe_engine(engine).available:
        yield from _of_engine(form, engine, checkpoint)
    checkpoint.close()


def _in_a_child(form: Form) -> Iterator[Found]:
  command = [sys.executable, __file__, "--one", json.dumps([form.family, form.form, str(form.folder or "")])]
  done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
  for line in done.stdout.splitlines():
    if line.startswith("{"):
      yield Found(**json.loads(line))
  if done.returncode:
    yield Found(str(form), "?", 1, refused=f"FAILED: ended with {done.returncode}: {done.stderr[-300:]}")


_FORMS = {"hub": "safetensors, as on the hub", "v5": "as transformers 5 writes it", "gguf": "GGUF"}


def markdown(rows: list[Found]) -> str:
  """A row for each family: for each form the engines that are right with the numbers of stages; where there is none, the reasons."""
  cells: dict[tuple[str, str], list[Found]] = {}
  for row in rows:
    family, _, form = row.form.rpartition("-")
    cells.setdefault((family, form), []).append(row)
  lines = [f"| family | {' | '.join(_FORMS.values())} |", "|---|---|---|---|"]
  notes: dict[tuple[str, str], list[str]] = {}
  for family in sorted({family for family, _ in cells}):
    told = [_cell(family, form, cells.get((family, form), []), notes) for form in _FORMS]
    lines.append(f"| `{family}` | {' | '.join(told)} |")
  reasons = [f"- `{family}`, {' and '.join(forms)}: {why}" for (family, why), forms in notes.items()]
  return "\n".join([*lines, "", *reasons, ""])


def _cell(family: str, form: str, rows: list[Found], notes: dict[tuple[str, str], list[str]]) -> str:
  stages: dict[str, list[str]] = {}
  off: dict[str, float] = {}
  for row in rows:
    if row.error is not None and row.error <= TOLERANCE:
      stages.setdefault(row.engine, []).append(str(row.stages))
    elif row.error is not None:
      off[row.engine] = max(off.get(row.engine, 0.0), row.error)
  told = [f"{engine} {', '.join(counts)}" for engine, counts in stages.items()]
  told += [f"{engine} off by {error:.2f}" for engine, error in off.items()]
  if told or not rows:
    return "; ".join(told) or "–"
  why = dict.fromkeys(row.refused for row in rows if row.engine in ("", "mlx" if form != "gguf" else "llama_cpp"))
  told = [reason.replace(f"{family}-{form}", "it")[:_LONGEST] for reason in why]
  notes.setdefault((family, told[0] if told else "no engine has it"), []).append(_FORMS[form])
  return "no"


def main(arguments: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("folders", nargs="*", type=Path)
  parser.add_argument("--only", default="", help="families whose name holds this")
  parser.add_argument("--form", choices=("hub", "v5", "gguf"))
  parser.add_argument("--json", type=Path)
  parser.add_argument("--markdown", type=Path, metavar="FILE", help="the table of docs/models.md")
  parser.add_argument("--one", help=argparse.SUPPRESS)
  found = parser.parse_args(arguments)
  if found.one:
    family, form, folder = json.loads(found.one)
    for row in _of_form(Form(family, form, Path(folder) if folder else None)):
      print(json.dumps({name: getattr(row, name) for name in Found.__slots__}), flush=True)
    return 0
  forms = [form for folder in found.folders for form in forms_in(folder)] or all_forms()
  rows: list[Found] = []
  for form in forms:
    if found.only in form.family and found.form in (None, form.form):
      for row in _in_a_child(form):
        rows.append(row)
        print(f"{row.form:28} {row.engine:10} {row.stages} {row.verdict} {row.refused[:150]}", flush=True)
  if found.markdown:
    found.markdown.write_text(markdown(rows))
  if found.json:
    found.json.write_text(
        json.dumps([{name: getattr(row, name)
                     for name in Found.__slots__} for row in rows], indent=1)
    )
  return 0


if __name__ == "__main__":
  sys.exit(main())
