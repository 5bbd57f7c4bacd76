"""Constrained sampling: a grammar, in llguidance's notation, that says which tokens may come next.

A mask is computed on a thread of its own as soon as the token before is known, while the device computes the logits that
it will be applied to.
"""

from __future__ import annotations

import re
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from exo.errors import EngineError, EngineUnavailableError, ExoError, InvalidRequestError
from exo.inference.engine import Logits

if TYPE_CHECKING:
  from exo.inference.tokenizer import Tokenizer

MAX_GRAMMAR_CHARS = 256 * 1024
COMPILE_S = 10.0
_LISTING = re.compile(r"\n\s*\d+ \|")
_PLACE = re.compile(r"^at \d+\(\d+\): |failed to compile JSON schema: ")
_LONGEST_END = 512  # tokens
_MARGIN = 8

Mask = npt.NDArray[np.uint8]  # one bit a token, least significant first


def _library() -> Any:
  try:
    import llguidance
  except ImportError as error:
    raise EngineUnavailableError(
        "structured output needs the package llguidance, which is not installed on the node that samples: pip install llguidance"
    ) from error
  return llguidance


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
  return ThreadPoolExecutor(2, thread_name_prefix="exo-grammar")


class GrammarCompiler:
  """Compiles grammars for one model's vocabulary; the vocabulary is prepared when the first one comes."""
  def __init__(self, tokenizer: Tokenizer) -> None:
    self._tokenizer = tokenizer
    self._prepared: Any = None
    self._lock = threading.Lock()

  def check(self, grammar: str) -> None:
    """Raises `InvalidRequestError` that says what is wrong with it. Blocks for as long as compiling takes."""
    self._matcher(grammar)

  def start(self, grammar: str, max_tokens: int) -> Constraint:
    """A constraint for a text of at most `max_tokens`, compiled in the background."""
    return Constraint(_pool().submit(self._matcher, grammar), self._tokenizer, max_tokens)

  def _matcher(self, grammar: str) -> tuple[Any, Any]:
    """(the library's form of the vocabulary, the state of the grammar at its beginning)."""
    library = _library()
    if len(grammar) > MAX_GRAMMAR_CHARS:
      raise InvalidRequestError(
          f"the schema is too large: its grammar has {len(grammar)} characters, {MAX_GRAMMAR_CHARS} are allowed"
      )
    with self._lock:
      if self._prepared is None:
        self._prepared = library.LLTokenizer(
            self._tokenizer.backend.to_str(), eos_token=sorted(self._tokenizer.eos_ids)
        )
    # the library's own bounds on states, items and fuel are what ends a pathological grammar
    limits = library.LLParserLimits(max_grammar_size=100_000, verbose_errors=False)
    matcher = library.LLMatcher(self._prepared, grammar, limits=limits, log_level=0)
    if matcher.is_error():
      raise InvalidRequestError(f"the schema cannot be used: {_first_lines(matcher.get_error())}")
    return self._prepared, matcher


def _first_lines(text: str) -> str:
  """The library's reason, without the listing of the grammar that it adds."""
  return " ".join(_PLACE.sub("", _LISTING.split(text, maxsplit=1)[0]).split())[:400]


class Constraint:
  """The state of one sequence's grammar. `apply` to logits, choose a token that `fits`, then `accept` it.

  A text that must be JSON is led to its end before its room ends: a token after which what is open could no longer be
  closed does not fit. Not thread-safe for its user; the work behind it runs elsewhere.
  """
  def __init__(self, prepared: Future[tuple[Any, Any]], tokenizer: Tokenizer, max_tokens: int) -> None:
    self._tokenizer, self._left = tokenizer, max_tokens
    self._eos = sorted(tokenizer.eos_ids)
    self._words = -(-tokenizer.vocab_size // 32)
    self._json = _JsonState()
    self._library_tokenizer: Any = None
    self._matcher: Any = None
    self._ends_after: dict[int, list[int] | None] = {}  # what is known of the ends after the token that comes next
    self._closers = {
        in_string: [t for c in texts if (t := tokenizer.byte_token(ord(c))) is not None]
        for in_string, texts in ((True, '"'), (False, '}]"0:1,{['))
    }
    self._end: list[int] | None = None  # tokens that would end the text here, where its end is near
    self._margin = _MARGIN  # by how much one token may put the end off
    self._next_look = max_tokens
    self._pending: Future[Mask | None] = _pool().submit(lambda: self._begin(prepared))

  def _begin(self, prepared: Future[tuple[Any, Any]]) -> Mask | None:
    self._library_tokenizer, self._matcher = prepared.result(COMPILE_S)
    self._margin += len(self._shortest_end(self._matcher, self._json) or ())
    return self._next()

  def apply(self, logits: Logits) -> None:
    """Set the logits (V,) of all tokens that may not come next to -inf. Raises `InvalidRequestError` when none may."""
    allowed = self._result()
    if allowed is None:
      ends = logits[self._eos].copy()
      logits[:] = -np.inf
      logits[self._eos] = ends
      return
    bits = np.unpackbits(allowed, bitorder="little")[:logits.size].view(bool)
    logits[:bits.size][~bits] = -np.inf
    logits[bits.size:] = -np.inf

  def _result(self) -> Mask | None:
    try:
      return self._pending.result(COMPILE_S)
    except FutureTimeoutError:
      raise InvalidRequestError("the schema takes too long to compile", "response_format") from None
    except ExoError:
      raise
    except Exception as error:  # the library may raise anything, and only this request must hear of it
      raise EngineError(f"constrained sampling failed: {type(error).__name__}") from error

  def fits(self, token_id: int) -> bool:
    """Whether the text can still be ended in its room after this token, which the grammar allows."""
    self._result()
    if self._end is None or len(self._end) + self._margin < self._left or token_id in self._eos:
      return True
    matcher, state = self._matcher.deep_copy(), self._json.copy()
    if not matcher.consume_token(token_id):
      return False
    state.push(self._tokenizer.token_bytes(token_id))
    end = self._shortest_end(matcher, state)
    self._ends_after = {token_id: end}
    return end is not None and len(end) < self._left - 1  # the last place is for the end token

  @property
  def way_out(self) -> int:
    """The next token on the shortest way to an end, where `fits` refused others."""
    return self._end[0] if self._end else self._eos[0]

  def accept(self, token_id: int) -> None:
    """Go on after this token."""
    self._left -= 1
    before = self._pending

    def work() -> Mask | None:
      before.result(COMPILE_S)
      if token_id in self._eos:
        return None
      self._json.push(self._tokenizer.token_bytes(token_id))
      if not self._matcher.consume_token(token_id):
        raise InvalidRequestError(f"the schema cannot be followed: {_first_lines(self._matcher.get_error())}")
      return self._next(token_id)

    self._pending = _pool().submit(work)

  def _next(self, accepted: int | None = None) -> Mask | None:
    """Which tokens may come next; None: the end alone. On a grammar thread."""
    if self._matcher.is_stopped() and not self._matcher.is_error():
      return None
    known, self._ends_after = self._ends_after, {}
    if self._end and accepted == self._end[0]:
      known = {self._end[0]: self._end[1:]}
    self._end = None
    if self._left <= self._next_look:
      end = known[accepted] if accepted in known else self._shortest_end(self._matcher, self._json)
      room = self._left - len(end or ()) - self._margin
      self._next_look = self._left - max(1, room // self._margin)
      if end is not None and len(end) < self._left:
        self._end = end
    return self._mask(self._matcher)

  def _mask(self, matcher: Any) -> Mask:
    mask = np.zeros(self._words * 4, np.uint8)
    matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
    if matcher.is_error():
      raise InvalidRequestError(f"the schema cannot be followed: {_first_lines(matcher.get_error())}")
    return mask

  def _shortest_end(self, matcher: Any, state: _JsonState) -> list[int] | None:
    """Tokens that close what is open, found by always taking the closer that JSON has at that place; None if none do."""
    matcher, state, path = matcher.deep_copy(), state.copy(), list[int]()
    while len(path) < _LONGEST_END:
      if matcher.is_accepting() or matcher.is_stopped():
        return path
      forced = self._library_tokenizer.greedy_tokenize(matcher.compute_ff_bytes().decode(errors="ignore"))
      if not forced:
        allowed = np.unpackbits(self._mask(matcher), bitorder="little")
        forced = [next((t for t in self._closers[state.in_string] if allowed[t]), int(allowed.argmax()))]
      if not matcher.consume_tokens(forced):
        return None
      state.push(b"".join(map(self._tokenizer.token_bytes, forced)))
      path.extend(forced)
    return None


class _JsonState:
  """How deep in JSON a text is, as far as its end needs to know."""
  def __init__(self) -> None:
    self.depth, self.in_string, self._escaped = 0, False, False

  def copy(self) -> _JsonState:
    new = _JsonState()
    new.depth, new.in_string, new._escaped = self.depth, self.in_string, self._escaped
    return new

  def push(self, data: bytes) -> None:
    for byte in data:
      if self._escaped:
        self._escaped = False
      elif self.in_string:
        self._escaped, self.in_string = byte == ord("\\"), byte != ord('"')
      elif byte == ord('"'):
        self.in_string = True
      elif byte in b"{[":
        self.depth += 1
      elif byte in b"}]":
        self.depth = max(0, self.depth - 1)
