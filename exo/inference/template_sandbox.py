"""Jinja for templates that come from strangers: sandboxed, and bounded in time and in the text that it may build.

Jinja's sandbox keeps a template away from Python, not from `{{ 'x' * 10**10 }}` or loops in loops. Here a render has a
deadline, checked at every line of the template and every call that it makes, and a budget of characters, spent by every
operation that can make a text or a list longer.
"""

from __future__ import annotations

import functools
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence, Sized
from types import FrameType
from typing import Any

from jinja2 import Template, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment

RENDER_TIMEOUT_S = 5.0
FREE_CHARACTERS = 32 * 2**20
_MAX_INTEGER_BITS = 4096
_MAX_WIDTH = 100_000  # of padding, indentation, batches
_WIDE = re.compile(r"\*|\d{6,}")  # a width in a format that is absurd, or comes from elsewhere
_NESTED = re.compile(r":[^{}]*\{")  # a width in braces


class TemplateBoundsError(TemplateError):
  """The template wants more time or room than a prompt can need."""


class _Budget(threading.local):
  """Of the render that runs on this thread."""
  left = 0
  deadline = float("inf")
  time_s = RENDER_TIMEOUT_S

  def spend(self, characters: int) -> None:
    self.left -= characters
    if self.left < 0:
      raise TemplateBoundsError("it builds more text than a prompt can need")

  def check_time(self) -> None:
    if time.monotonic() > self.deadline:
      raise TemplateBoundsError(f"it takes longer than {self.time_s:g} s")


_budget = _Budget()


def _length(value: object) -> int:
  return len(value) if isinstance(value, Sized) else 24


def _check_widths(values: Sequence[object]) -> None:
  if any(isinstance(value, int) and abs(value) > _MAX_WIDTH for value in values):
    raise TemplateBoundsError("it asks for an absurd width")


def _check_replace(text: object, old: object, new: object) -> None:
  if isinstance(text, str) and isinstance(old, str):
    _budget.spend(len(text) + (text.count(old) if old else len(text) + 1) * _length(new))


def _check_method(method: Any, arguments: Sequence[Any], named: Sequence[Any]) -> None:
  """A method of a text that can make it longer."""
  text, name = method.__self__, method.__name__
  _check_widths([*arguments, *named])
  if name == "replace" and len(arguments) >= 2:
    _check_replace(text, arguments[0], arguments[1])
  elif name == "join" and arguments and isinstance(arguments[0], Sized):
    _budget.spend(len(arguments[0]) * (len(text) + 1))
  _budget.spend(len(text))


class _Generator(CodeGenerator):
  """As Jinja's, with `~` through the environment."""
  def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
    self.write("environment.concatenated((")
    for part in node.nodes:
      self.visit(part, frame)
      self.write(", ")
    self.write("))")


class _Generation(Extension):
  """`{% generation %}`, with which templates mark what the model writes, for training: here it is text like any."""
  tags = {"generation"}  # noqa: RUF012 - as the base class has it

  def parse(self, parser: Parser) -> list[nodes.Node]:
    next(parser.stream)
    return parser.parse_statements(("name:endgeneration", ), drop_needle=True)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
  """Templates of this environment are rendered by `render_bounded` only."""
  code_generator_class = _Generator
  intercepted_binops = frozenset({"+", "*", "**", "%"})

  def __init__(self) -> None:
    super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
    del self.globals["lipsum"]
    self.filters = {name: bounded_filter(name, function) for name, function in self.filters.items()}

  def concatenated(self, parts: Sequence[Any]) -> str:
    texts = [str(part) for part in parts]
    _budget.spend(sum(map(len, texts)))
    return str_join(texts)

  def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
    if operator == "%" and isinstance(left, str):
      if _WIDE.search(left):
        raise TemplateBoundsError("it asks for an absurd width")
    elif operator == "**":
      if _bits(left) * (abs(right) if isinstance(right, int) else 1) > _MAX_INTEGER_BITS:
        raise TemplateBoundsError("it computes with absurd numbers")
    elif operator == "*":
      for one, other in ((left, right), (right, left)):
        if isinstance(one, Sized) and isinstance(other, int):
          _budget.spend(len(one) * max(0, other))
      if _bits(left) + _bits(right) > _MAX_INTEGER_BITS:
        raise TemplateBoundsError("it computes with absurd numbers")
    elif isinstance(left, Sized) and isinstance(right, Sized):
      _budget.spend(len(left) + len(right))
    return super().call_binop(context, operator, left, right)

  def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
    wrapped = super().wrap_str_format(value)
    if wrapped is not None and (_WIDE.search(value.__self__) or _NESTED.search(value.__self__)):
      raise TemplateBoundsError("it asks for an absurd width")
    return wrapped

  def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
    """A template may make its own lists longer, as those of Kimi K2 in GGUF files do, and none that it is given."""
    return (type(obj) is list and attr == "append") or super().is_safe_attribute(obj, attr, value)

  def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
    owner = getattr(__obj, "__self__", None)
    if isinstance(owner, str):
      _check_method(__obj, args, list(kwargs.values()))
    elif type(owner) is list:
      _budget.spend(_length(None))
    return super().call(__context, __obj, *args, **kwargs)


def _bits(value: object) -> int:
  return value.bit_length() if isinstance(value, int) else 0


def bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
  """`function`, with its arguments and its result held against the bounds."""
  @functools.wraps(function)
  def bounded(*arguments: Any, **named: Any) -> Any:
    given = [*arguments, *named.values()]
    texts = [value for value in given if isinstance(value, str)]
    _check_widths(given[1:])
    if name == "replace" and len(texts) >= 3:
      _check_replace(*texts[:3])
    elif name == "format" and texts and _WIDE.search(texts[0]):
      raise TemplateBoundsError("it asks for an absurd width")
    elif name in ("indent", "wordwrap", "join"):
      lines = max((value.count("\n") + 1 if isinstance(value, str) else _length(value) for value in given), default=0)
      _budget.spend(lines * (sum(map(len, texts)) + max((v for v in given if isinstance(v, int)), default=4)))
    result = function(*arguments, **named)
    _budget.spend(_length(result))
    return result

  return bounded


class _Given(list[Any]):
  """A list that the template has not made: it is part of a request."""


def _given(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _given(item) for key, item in value.items()}
  return _Given(map(_given, value)) if isinstance(value, list | tuple) else value


def render_bounded(
    template: Template,
    variables: dict[str, Any],
    free_characters: int = FREE_CHARACTERS,
    time_s: float = RENDER_TIMEOUT_S
) -> str:
  """The rendered text, at most `free_characters` long. Raises `TemplateBoundsError`, a `TemplateError`."""
  def on_call(frame: FrameType, event: str, argument: object) -> Any:
    _budget.check_time()
    return on_line if frame.f_code.co_filename == "<template>" else None

  def on_line(frame: FrameType, event: str, argument: object) -> Any:
    _budget.check_time()
    return on_line

  before = sys.gettrace()
  _budget.left, _budget.time_s, _budget.deadline = free_characters, time_s, time.monotonic() + time_s
  parts: list[str] = []
  try:
    sys.settrace(on_call)  # of this thread alone; the one thing that can end a loop from within
    for part in template.generate({name: _given(value) for name, value in variables.items()}):
      _budget.spend(len(part))
      parts.append(part)
  finally:
    sys.settrace(before)
    _budget.deadline = float("inf")
  return "".join(parts)
