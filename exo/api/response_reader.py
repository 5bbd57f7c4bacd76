"""Reads an answer by the `response_template` that its model ships, in a process of its own and within a time bound.

A template that cannot be used is told once in the log; the built-in formats read such a model's answers.
"""

from __future__ import annotations

import itertools
import json
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from exo.api.chat_parts import AnswerParser, CallArguments, CallBegin, Content, Part, Reasoning
from exo.api.response_answer import CALL, REASONING
from exo.child_process import ChildGoneError, ChildProcess
from exo.errors import ExoError, in_words
from exo.log import log

MAX_TEMPLATE_CHARS = 64 * 1024
_MOST_PROMPT = 64 * 1024  # characters of its end, in which the answer's beginning is looked for
_READY_S = 60.0  # to start, and to import the library
STEP_S = 5.0  # of one piece; it takes a millisecond, but machines are busy
_TRIES = 2  # the first time may have been another answer's
_GONE_TRIES = 4
_KNOWN = 64  # templates that are remembered

_numbers = itertools.count()
_gone = deque[int]()  # answers that nobody reads any more; finalizers run at any moment, hence only note it
_lock = threading.Lock()
_verdicts: OrderedDict[str, str] = OrderedDict()  # of templates: what is wrong with each, "" for nothing


@lru_cache(maxsize=1)
def _child() -> ChildProcess:
  return ChildProcess("exo.api.response_process", "answers")


def usable(template: Any) -> str | None:
  """The template as text, if answers can be read by it. Blocks when it is seen for the first time."""
  if template is None:
    return None
  text = json.dumps(template)
  with _lock:
    if text not in _verdicts:
      _judge(text, _flaw(text))
    return text if not _verdicts[text] else None


def _judge(text: str, flaw: str) -> None:
  _verdicts[text] = flaw
  if flaw:
    log(0, "a model's response_template is not used, its answers are read in a format that exo knows: %s", flaw)
  while len(_verdicts) > _KNOWN:
    _verdicts.popitem(last=False)


def _flaw(text: str) -> str:
  if len(text) > MAX_TEMPLATE_CHARS:
    return f"it has {len(text)} characters, {MAX_TEMPLATE_CHARS} are allowed"
  for last in (False, True):
    try:
      _ready()
      _child().ask(STEP_S, "check", text)
      return ""
    except TimeoutError:
      return f"it takes longer than {STEP_S:g} s"
    except ChildGoneError as error:
      if last:
        return error.message
    except Exception as error:  # noqa: BLE001 - the library raises anything
      return in_words(error)
  raise AssertionError


def _ready() -> int:
  """The generation of a process that has what it needs."""
  child = _child()
  if child.pid is None or _prepared.generation != child.generation:
    child.ask(_READY_S, "ready")
    _prepared.generation = child.generation
  return child.generation


class _Prepared:
  generation = 0


_prepared = _Prepared()


class ResponseReader:
  """An `AnswerParser` whose methods block, and for which a text that a pattern of the template fits in two ways may be read
  in another way when it comes in other pieces. `instead(thinking)` makes one of a built-in format, for the rest of an answer that
  the template turns out to take too long for; `thinking`: in the middle of a thought.
  """
  def __init__(
      self, template: str, prompt: str, tools: Sequence[Mapping[str, Any]], instead: Callable[[bool], AnswerParser]
  ) -> None:
    self._begin = (template, prompt[-_MOST_PROMPT:], json.dumps(list(tools)))
    self._instead = instead
    self._other: AnswerParser | None = None
    self._number = next(_numbers)
    self._generation = 0  # of the process that knows this answer
    self._said = ""
    self._pending = ""
    self._thinking = False
    self._calls = 0
    self._strip = True  # whitespace at the beginning of content
    weakref.finalize(self, _gone.append, self._number)

  @property
  def called(self) -> bool:
    return self._calls > 0 or (self._other is not None and self._other.called)

  @property
  def thinking(self) -> bool:
    return self._other.thinking if self._other is not None else self._thinking

  def push(self, text: str) -> list[Part]:
    if self._other is not None:
      return self._of_other(self._other.push(text))
    if not text:
      return []
    return self._read("feed", text)

  def finish(self) -> list[Part]:
    return self._of_other(self._other.finish()) if self._other is not None else self._read("finish", "")

  def _read(self, name: str, text: str) -> list[Part]:
    try:
      pieces, pending, thinking = self._ask(name, *([text] if name == "feed" else []))
    except (ExoError, TimeoutError, ValueError, KeyError) as error:
      return self._go_on_without(text, error, ended=name == "finish")
    self._said, self._pending, self._thinking = self._said + text, pending, thinking
    return [part for kind, first, second in pieces for part in self._parts(kind, first, second)]

  def _ask(self, name: str, *arguments: Any) -> Any:
    timeouts = gone = 0
    while True:
      try:
        generation = _ready()
        if self._generation != generation:
          _child().ask(STEP_S, "begin", self._number, *self._begin, self._said)
          self._generation = generation
        if _gone:
          _child().call("forget", [_gone.popleft() for _ in range(len(_gone))])
        return _child().ask(STEP_S, name, self._number, *arguments)
      except ChildGoneError:
        gone += 1
        if gone == _GONE_TRIES:
          raise
      except TimeoutError:
        timeouts += 1
        if timeouts == _TRIES:
          with _lock:
            if not _verdicts.get(self._begin[0]):
              _judge(self._begin[0], f"reading an answer by it takes longer than {STEP_S:g} s")
          raise

  def _go_on_without(self, text: str, error: BaseException, *, ended: bool) -> list[Part]:
    """The built-in format reads what has not been given yet, and the rest."""
    log(1, "an answer is read on without its model's response_template: %s", in_words(error))
    self._other = self._instead(self._thinking)
    parts = self._other.push(self._pending + text)
    return self._of_other([*parts, *self._other.finish()] if ended else parts)

  def _of_other(self, parts: Sequence[Part]) -> list[Part]:
    """With the calls numbered on."""
    return [
        replace(part, index=part.index + self._calls) if isinstance(part, CallBegin | CallArguments) else part
        for part in parts
    ]

  def _parts(self, kind: str, first: str, second: str) -> list[Part]:
    if kind == CALL:
      self._calls, self._strip = self._calls + 1, True
      return [CallBegin(self._calls - 1, first), CallArguments(self._calls - 1, second)]
    if kind == REASONING:
      self._strip = True
      return [Reasoning(first)]
    text = first.lstrip() if self._strip else first
    self._strip = self._strip and not text
    return [Content(text)] if text else []
