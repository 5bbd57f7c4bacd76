"""Constrained sampling: a grammar, in llguidance's notation, that says which tokens may come next.

The grammars live in a process of their own (`grammar_process.py`). A mask is asked for as soon as the token before is known,
while the device computes the logits that it will be applied to.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from exo.child_process import ChildGoneError, ChildProcess
from exo.errors import EngineError, ExoError, InvalidRequestError, in_words
from exo.inference.engine import Logits
from exo.log import log

if TYPE_CHECKING:
  from exo.inference.grammar_process import State
  from exo.inference.tokenizer import Tokenizer

MAX_GRAMMAR_CHARS = 256 * 1024
COMPILE_S = 10.0
_PREPARE_S = 60.0  # of a vocabulary, once
_KEPT_ANSWERS = 64  # to questions that need no vocabulary

_numbers = itertools.count()
# what the process may forget; finalizers run at any moment, hence only note it
_gone_vocabularies, _gone_sequences = deque[int](), deque[int]()


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
  return ThreadPoolExecutor(4, thread_name_prefix="exo-grammar")


@lru_cache(maxsize=1)
def _child() -> ChildProcess:
  return ChildProcess("exo.inference.grammar_process", "grammars")


class GrammarCompiler:
  """Compiles grammars for a model's vocabulary, which the process is told when the first one comes."""
  def __init__(self, tokenizer: Tokenizer) -> None:
    self._tokenizer = tokenizer
    self._number = next(_numbers)
    self._told = 0  # the generation of the process that knows the vocabulary
    self._lock = threading.Lock()

  def prepare(self) -> Future[None]:
    """Tell the process the vocabulary ahead, in the background: with a large one that takes seconds, which no client should wait."""
    return _pool().submit(self._prepare)

  def ready(self) -> None:
    """Wait until the process knows the vocabulary. Blocks for as long as that takes, which is no grammar's fault."""
    self._tell()

  def _prepare(self) -> None:
    try:
      self._tell()
    except Exception as error:  # noqa: BLE001 - whoever asks for a grammar tries again, and hears of it
      log(1, "a vocabulary could not be prepared ahead: %s", in_words(error))

  def check(self, grammar: str) -> list[str]:
    """Compile it, and keep it for the requests that follow; returns the library's warnings.

    Raises `InvalidRequestError` that says what is wrong with it. Blocks for as long as compiling takes.
    """
    warnings: list[str] = self.ask("check", self._number, _bounded(grammar))
    return warnings

  def start(self, grammar: str, max_tokens: int) -> Constraint:
    """A constraint for a text of at most `max_tokens`, compiled in the background."""
    return Constraint(self, self._tokenizer.eos_ids, self._number, grammar, max_tokens)

  def ask(self, name: str, *arguments: Any) -> Any:
    """An answer of the process, which knows the vocabulary then. Blocks; what takes too long is ended with the process."""
    for last in (False, True):
      self._tell()
      try:
        return _ask(COMPILE_S, name, *arguments)
      except ChildGoneError:
        if last:
          raise
    raise AssertionError

  def _tell(self) -> None:
    with self._lock:
      child = _child()
      if child.pid is not None and self._told == child.generation:
        return
      known = self._tokenizer
      tokens = [known.token_bytes(i) for i in range(known.vocab_size)]
      special = [i for i in range(len(tokens)) if known.is_special(i)]
      _ask(_PREPARE_S, "vocabulary", self._number, tokens, special, sorted(known.eos_ids))
      if not self._told:
        weakref.finalize(self, _gone_vocabularies.append, self._number)
      self._told = child.generation


@lru_cache(maxsize=_KEPT_ANSWERS)
def unusable_keywords(schemas: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
  """For each schema of a text (as JSON), those of its keywords that a grammar cannot hold it to. Blocks."""
  return tuple(tuple(keywords) for keywords in _asked_again("unusable", list(schemas)))


@lru_cache(maxsize=_KEPT_ANSWERS)
def as_lark(grammar: str) -> str:
  """A grammar in Lark's notation or in GBNF, llama.cpp's, in the library's. Blocks. Raises `InvalidRequestError`."""
  lark: str = _asked_again("lark", _bounded(grammar))
  return lark


def _asked_again(name: str, *arguments: Any) -> Any:
  """As `_ask`, once more where the process died, of somebody else's question perhaps."""
  try:
    return _ask(COMPILE_S, name, *arguments)
  except ChildGoneError:
    return _ask(COMPILE_S, name, *arguments)


def _forget() -> None:
  """Tell the process, where there is one, what is not needed any more."""
  gone = [[queue.popleft() for _ in range(len(queue))] for queue in (_gone_vocabularies, _gone_sequences)]
  if any(gone) and _child().pid is not None:
    _child().call("forget", *gone)


def _bounded(grammar: str) -> str:
  if len(grammar) > MAX_GRAMMAR_CHARS:
    raise InvalidRequestError(
        f"the schema is too large: its grammar has {len(grammar)} characters, {MAX_GRAMMAR_CHARS} are allowed"
    )
  return grammar


def _ask(timeout_s: float, name: str, *arguments: Any) -> Any:
  try:
    return _child().ask(timeout_s, name, *arguments)
  except TimeoutError:
    raise InvalidRequestError("the schema takes too long to compile", "response_format") from None


class Constraint:
  """The state of one sequence's grammar. `apply` to logits, choose a token that `fits`, then `accept` it.

  Not thread-safe for its user; the work behind it runs elsewhere. Where the process behind it dies, another one is told
  what was said so far.
  """
  def __init__(
      self, compiler: GrammarCompiler, eos_ids: frozenset[int], vocabulary: int, grammar: str, max_tokens: int
  ) -> None:
    self._compiler, self._number = compiler, next(_numbers)
    self._eos = sorted(eos_ids)
    self._said: list[int] = []
    self._begin = (vocabulary, grammar, max_tokens)
    weakref.finalize(self, _gone_sequences.append, self._number)
    self._pending: Future[State | None] = _pool().submit(self._begun)

  def _begun(self) -> State:
    _forget()
    vocabulary, grammar, max_tokens = self._begin
    said = list(self._said)
    state: State = self._compiler.ask("begin", self._number, vocabulary, _bounded(grammar), max_tokens, said)
    return state

  def apply(self, logits: Logits) -> None:
    """Set the logits (V,) of all tokens that may not come next to -inf. Raises `InvalidRequestError` when none may."""
    state = self._result()
    if state is None or state[0] is None:
      ends = logits[self._eos].copy()
      logits[:] = -np.inf
      logits[self._eos] = ends
      return
    bits = np.unpackbits(np.frombuffer(state[0], np.uint8), bitorder="little")[:logits.size].view(bool)
    logits[:bits.size][~bits] = -np.inf
    logits[bits.size:] = -np.inf

  def _result(self) -> State | None:
    try:
      return self._pending.result(_PREPARE_S + 2 * COMPILE_S)
    except TimeoutError:
      raise InvalidRequestError("the schema takes too long to compile", "response_format") from None
    except ExoError:
      raise
    except Exception as error:  # the library may raise anything, and only this request must hear of it
      raise EngineError(f"constrained sampling failed: {in_words(error)}") from error

  def fits(self, token_id: int) -> bool:
    """Whether the text can still be ended in its room after this token, which the grammar allows."""
    state = self._result()
    if state is None or not state[2] or token_id in self._eos:
      return True
    return bool(self._known(lambda: _ask(COMPILE_S, "fits", self._number, token_id)))

  def _known(self, ask: Callable[[], Any]) -> Any:
    """What `ask` gives, in a process that knows this sequence."""
    try:
      return ask()
    except ChildGoneError:
      self._begun()
      return ask()

  @property
  def way_out(self) -> int:
    """The next token on the shortest way to an end, where `fits` refused others."""
    state = self._result()
    return self._eos[0] if state is None else state[1]

  def accept(self, token_id: int) -> None:
    """Go on after this token."""
    before = self._pending

    def work() -> State | None:
      before.result(_PREPARE_S + 2 * COMPILE_S)
      if token_id in self._eos:
        return None
      self._said.append(token_id)
      try:
        state: State = _ask(COMPILE_S, "accept", self._number, token_id)
      except ChildGoneError:
        state = self._begun()
      return state

    self._pending = _pool().submit(work)
