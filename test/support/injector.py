"""Makes the package raise where it is told: every `await` and every beginning of a function becomes a point for that.

`install` has to come before the first import of the package: modules are compiled with the points in them. `exo.log` has
none, since it is how the test hears what happened.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import CodeType, ModuleType

PACKAGE = Path(__file__).resolve().parents[2] / "exo"
_UNTOUCHED = {PACKAGE / "log.py"}
_HOOK = "_exo_point_"


class Kind(StrEnum):
  """What a point stands for: an awaited thing that fails before it began or once it is done; a function that fails."""
  BEFORE = "before await"
  AFTER = "after await"
  ENTRY = "entry"


@dataclass(frozen=True, slots=True)
class Point:
  """A place in the package, as a person would look it up."""
  file: str
  line: int
  function: str
  kind: Kind

  def __str__(self) -> str:
    return f"{self.file}:{self.line} {self.function} ({self.kind})"


class Injector:
  """All points of the modules that are imported; at most one or two of them are armed."""
  def __init__(self) -> None:
    self.points: list[Point] = []
    self.passed: dict[int, int] = {}  # while recording
    self.callbacks: set[int] = set()  # entries that something else than the package has called
    self._recording = False
    self.record_what_follows = False  # begin to record when a point raises
    self._armed: dict[int, tuple[int, BaseException]] = {}
    self.raised: list[int] = []

  def record(self) -> None:
    self.passed, self._recording = {}, True

  def recorded(self) -> dict[int, int]:
    """Which points were passed since `record`, and how often."""
    self._recording = False
    return self.passed

  def arm(self, point: int, error: BaseException, nth: int = 1) -> None:
    """Raise `error` when the point is passed for the `nth` time from now on, once."""
    self._armed[point] = (nth, error)

  def disarm(self) -> list[int]:
    """Returns the points that have raised."""
    self._armed = {}
    raised, self.raised = self.raised, []
    return raised

  def __call__(self, point: int) -> None:
    """What the compiled modules call."""
    if self._recording:
      self._record(point)
    if point in self._armed:
      nth, error = self._armed.pop(point)
      if nth > 1:
        self._armed[point] = (nth - 1, error)
        return
      self.raised.append(point)
      if self.record_what_follows:
        self.record()
      raise error

  def _record(self, point: int) -> None:
    self.passed[point] = self.passed.get(point, 0) + 1
    if self.points[point].kind is Kind.ENTRY:
      caller = sys._getframe(3)  # this method, the hook, the function, whoever called it
      while caller is not None and not caller.f_code.co_filename:
        caller = caller.f_back
      if caller is None or str(PACKAGE) not in caller.f_code.co_filename:
        self.callbacks.add(point)

  def compile(self, source: str, path: Path) -> CodeType:
    """The module's code with the points in it."""
    tree = _Points(self, path.relative_to(PACKAGE.parent).as_posix()).visit(ast.parse(source, str(path)))
    return compile(ast.fix_missing_locations(tree), str(path), "exec", dont_inherit=True)


class _Points(ast.NodeTransformer):
  def __init__(self, injector: Injector, file: str) -> None:
    self._injector, self._file = injector, file
    self._names: list[str] = []

  def _call(self, at: ast.AST, kind: Kind) -> ast.Call:
    points = self._injector.points
    points.append(Point(self._file, getattr(at, "lineno", 0), ".".join(self._names) or "<module>", kind))
    call = ast.Call(ast.Name(_HOOK, ast.Load()), [ast.Constant(len(points) - 1)], [])
    return ast.copy_location(call, at)

  def _first(self, at: ast.AST, kind: Kind, then: ast.expr) -> ast.expr:
    """`(point, then)[1]`"""
    return ast.copy_location(
        ast.Subscript(ast.Tuple([self._call(at, kind), then], ast.Load()), ast.Constant(1), ast.Load()), at
    )

  def _statement(self, at: ast.AST, kind: Kind) -> ast.stmt:
    return ast.copy_location(ast.Expr(self._call(at, kind)), at)

  def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
    return self._within(node.name, node)

  def _within(self, name: str, node: ast.AST) -> ast.AST:
    self._names.append(name)
    self.generic_visit(node)
    self._names.pop()
    return node

  def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
    return self._function(node)

  def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
    return self._function(node)

  def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
    self._names.append(node.name)
    entry = self._statement(node, Kind.ENTRY)
    node.body = [self.visit(statement) for statement in node.body]
    node.body = [s for part in node.body for s in (part if isinstance(part, list) else [part])]
    self._names.pop()
    body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    if len(body) == 1 and isinstance(body[0], ast.Try):  # all that such a function does, it guards
      body[0].body.insert(0, entry)
    else:
      node.body.insert(len(node.body) - len(body), entry)
    return node

  def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
    self._names.append("<lambda>")
    node.body = self._first(node, Kind.ENTRY, self.visit(node.body))
    self._names.pop()
    return node

  def visit_Await(self, node: ast.Await) -> ast.AST:
    self.generic_visit(node)
    parts = [self._call(node, Kind.BEFORE), node, self._call(node, Kind.AFTER)]
    return ast.copy_location(ast.Subscript(ast.Tuple(parts, ast.Load()), ast.Constant(1), ast.Load()), node)

  def visit_AsyncFor(self, node: ast.AsyncFor) -> ast.AST:
    self.generic_visit(node)
    node.iter = self._first(node, Kind.BEFORE, node.iter)
    node.body.insert(0, self._statement(node, Kind.AFTER))
    return node

  def visit_AsyncWith(self, node: ast.AsyncWith) -> list[ast.AST]:
    self.generic_visit(node)
    for item in node.items:
      item.context_expr = self._first(item.context_expr, Kind.BEFORE, item.context_expr)
    node.body.insert(0, self._statement(node, Kind.AFTER))
    return [node, self._statement(node, Kind.AFTER)]


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
  def __init__(self, injector: Injector) -> None:
    self._injector = injector

  def find_spec(
      self,
      name: str,
      path: Sequence[str] | None,
      target: ModuleType | None = None
  ) -> importlib.machinery.ModuleSpec | None:
    if name.partition(".")[0] != PACKAGE.name:
      return None
    spec = importlib.machinery.PathFinder.find_spec(name, path)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py") or Path(spec.origin) in _UNTOUCHED:
      return spec
    return importlib.util.spec_from_file_location(
        name, spec.origin, loader=self, submodule_search_locations=spec.submodule_search_locations
    )

  def exec_module(self, module: ModuleType) -> None:
    path = Path(str(module.__file__))
    module.__dict__[_HOOK] = self._injector
    exec(self._injector.compile(path.read_text(), path), module.__dict__)


def install() -> Injector:
  """Every module of the package that is imported from now on has points. Raises where one was imported before."""
  early = [name for name in sys.modules if name.partition(".")[0] == PACKAGE.name and name != f"{PACKAGE.name}.log"]
  if early:
    raise RuntimeError(f"imported before the injector: {early}")
  injector = Injector()
  sys.meta_path.insert(0, _Finder(injector))
  return injector


def errors() -> Iterator[tuple[str, Callable[[str], BaseException]]]:
  """Kinds of errors to raise, each made from a text by which it is known again."""
  from exo.errors import EngineError
  yield "KeyError", KeyError
  yield "MemoryError", MemoryError
  yield "OSError", lambda text: OSError(28, text)
  yield "EngineError", EngineError
