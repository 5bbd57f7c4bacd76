"""Changes modules in small ways, one at a time, runs the quick tests of each, and tells which changes nobody noticed.

  python scripts/mutants.py [--only MODULE] [--most N]

A copy of the project is changed, never the project itself.
"""

from __future__ import annotations

import argparse
import ast
import copy
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# module: its quick tests, as pytest is told of them
TESTED: dict[str, tuple[str, ...]] = {
    "exo/repetition.py": ("test/test_repetition.py", "-k", "circle or guard_sees or same_character"),
    "exo/sizes.py": ("test/test_node_names.py", "-k", "one_form"),
    "exo/node_names.py": ("test/test_node_names.py", "-k", "own or suffix or chosen"),
    "exo/orchestration/prompt_chunks.py": ("test/test_prompt_chunks.py", ),
    "exo/orchestration/waiting_line.py": (
        "test/test_sick_queues.py", "-k",
        "places_go or nothing_running or one_place or saves_up or without_a_label or line_makes_way or middle or tables or any_order"
    ),
}
_TEST_S = 120.0
_COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn,
    ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is
}  # yapf: disable
_COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult
}  # yapf: disable


@dataclass(frozen=True, slots=True)
class Mutant:
  line: int
  what: str
  source: str


def mutants(source: str) -> Iterator[Mutant]:
  """Every one of a module, in the order of its lines."""
  tree = ast.parse(source)
  for i, node in enumerate(ast.walk(tree)):
    for what, change in _changes(node):
      changed = copy.deepcopy(tree)
      change(next(found for j, found in enumerate(ast.walk(changed)) if j == i))
      yield Mutant(getattr(node, "lineno", 0), what, ast.unparse(changed))


def _changes(node: ast.AST) -> Iterator[tuple[str, Callable[[ast.AST], None]]]:
  match node:
    case ast.Compare(ops=[op]) if type(op) in _COMPARED:
      other = _COMPARED[type(op)]
      yield f"{type(op).__name__} is {other.__name__}", lambda found: setattr(found, "ops", [other()])
    case ast.BinOp(op=op) if type(op) in _COMPUTED:
      instead = _COMPUTED[type(op)]
      yield f"{type(op).__name__} is {instead.__name__}", lambda found: setattr(found, "op", instead())
    case ast.BoolOp(op=op):
      joined = ast.Or if isinstance(op, ast.And) else ast.And
      yield f"{type(op).__name__} is {joined.__name__}", lambda found: setattr(found, "op", joined())
    case ast.Constant(value=bool() as value):
      yield f"{value} is {not value}", lambda found: setattr(found, "value", not value)
    case ast.Constant(value=int() | float() as number):
      yield f"{number} is {number + 1}", lambda found: setattr(found, "value", number + 1)
    case ast.UnaryOp(op=ast.Not()):
      yield "not is dropped", lambda found: setattr(found, "op", ast.UAdd())
    case ast.IfExp() | ast.If():
      yield "the condition is turned", _turn
    case ast.Return(value=ast.expr()):
      yield "None is returned", lambda found: setattr(found, "value", ast.Constant(None))


def _turn(found: ast.AST) -> None:
  assert isinstance(found, ast.IfExp | ast.If)
  found.test = ast.UnaryOp(ast.Not(), found.test)


def living(module: str, most: int, report: Callable[[str], None]) -> tuple[int, list[Mutant]]:
  """(how many were tried, those that no test noticed); at most so many are drawn, the same ones every time."""
  found = list(mutants((ROOT / module).read_text()))
  if len(found) > most:
    found = sorted(random.Random(1).sample(found, most), key=lambda mutant: mutant.line)
  alive = []
  with tempfile.TemporaryDirectory() as folder:
    for name in ("exo", "test", "scripts", "pyproject.toml"):
      source, target = ROOT / name, Path(folder) / name
      if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "fuzz", "*.png"))
      else:
        shutil.copy(source, target)
    for mutant in found:
      (Path(folder) / module).write_text(mutant.source)
      if not _noticed(folder, TESTED[module]):
        alive.append(mutant)
        report(f"{module}:{mutant.line}: {mutant.what}")
  return len(found), alive


def _noticed(folder: str, tests: tuple[str, ...]) -> bool:
  command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]
  try:
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=_TEST_S, check=False)
  except subprocess.TimeoutExpired:
    return True
  if done.returncode not in (0, 1):
    return True  # it cannot even be imported
  return done.returncode == 1


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--only", choices=TESTED)
  parser.add_argument("--most", type=int, default=60, metavar="N", help="mutants of a module (default 60)")
  arguments = parser.parse_args()
  for module in [arguments.only] if arguments.only else TESTED:
    tried, alive = living(module, arguments.most, lambda line: print(line, flush=True))
    print(f"| `{module}` | {tried} | {len(alive)} |", flush=True)


if __name__ == "__main__":
  main()
