"""The process in which grammars are compiled and followed, since preparing a vocabulary holds the interpreter for seconds.

Runs as `main`: vocabularies and sequences by number. Calls of one sequence come one after another.
"""

from __future__ import annotations

import json
import re
import threading
import weakref
from collections import OrderedDict
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from exo.child_process import ChildGoneError, serve
from exo.errors import EngineUnavailableError, InvalidRequestError

_THREADS = 3  # the library lets others run meanwhile
_LISTING = re.compile(r"\n\s*\d+ \|")
_PLACE = re.compile(r"^at \d+\(\d+\): |failed to compile JSON schema: ")
_LONGEST_END = 512  # tokens
_MARGIN = 8
_KEPT, _KEPT_CHARS = 32, 2 * 1024 * 1024  # grammars that are kept compiled, of a vocabulary

T = TypeVar("T")

# (mask of one bit a token, least significant first, or None for the end alone, the next token on the shortest way to an end, whether `fits` must be asked)
State = tuple[bytes | None, int, bool]


def _library() -> Any:
  try:
    import llguidance
  except ImportError as error:
    raise EngineUnavailableError(
        "structured output needs the package llguidance, which is not installed on the node that samples: pip install llguidance"
    ) from error
  return llguidance


# letters that a GBNF grammar gives by their numbers, after an even number of backslashes
_NUMBERED = re.compile(r"(?<!\\)((?:\\\\)*)\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8}))")


def _letter(match: re.Match[str]) -> str:
  """Itself: the library writes its number without leading zeros, which nothing reads. ASCII may be a sign of the grammar."""
  number = int(match[2] or match[3], 16)
  if number < 0x80 or 0xD800 <= number < 0xE000 or number > 0x10FFFF:
    return match[0] if number >= 0x80 else f"{match[1]}\\x{number:02x}"
  return match[1] + chr(number)


class Vocabulary:
  """A model's tokens as bytes. `closers`: tokens that may close what is open, inside a string and outside."""
  def __init__(self, tokens: list[bytes], special: list[int], eos: list[int]) -> None:
    self.tokens, self.eos = tokens, eos
    alone = {token: i for i, token in enumerate(tokens) if len(token) == 1}
    self.closers = {
        in_string: [alone[c] for byte in texts if (c := bytes([byte])) in alone]
        for in_string, texts in ((True, b'"'), (False, b'}]"0:1,{['))
    }
    library = _library()
    # what ends an answer is no text in it, whatever kind of token its file takes it for
    wrapper = library.TokenizerWrapper(_Wrapped(weakref.ref(self), sorted({*special, *eos})))
    self.prepared: Any = None
    self.prepared = library.LLTokenizer(wrapper, n_vocab=len(tokens), eos_token=eos or None)
    self._kept = OrderedDict[str, Any]()  # by grammar, the one that was asked for last at the end
    self._lock = threading.Lock()

  def matcher(self, grammar: str) -> Any:
    """The state of the grammar at its beginning. Raises `InvalidRequestError` that says what is wrong with it."""
    with self._lock:
      kept = self._kept.get(grammar)
      if kept is not None:
        self._kept.move_to_end(grammar)
        return kept.deep_copy()
    library = _library()
    # the library's own bounds on states, items and fuel are what ends a pathological grammar
    limits = library.LLParserLimits(max_grammar_size=100_000, verbose_errors=False)
    matcher = library.LLMatcher(self.prepared, grammar, limits=limits, log_level=0)
    if matcher.is_error():
      raise InvalidRequestError(f"the schema cannot be used: {_first_lines(matcher.get_error())}")
    with self._lock:
      self._kept[grammar] = matcher.deep_copy()
      while len(self._kept) > _KEPT or (len(self._kept) > 1 and sum(map(len, self._kept)) > _KEPT_CHARS):
        self._kept.popitem(last=False)
    return matcher


class _Wrapped:
  """What the library asks of a tokenizer. It keeps this, so that this must not keep the vocabulary that keeps it."""
  bos_token_id = None

  def __init__(self, vocabulary: weakref.ref[Vocabulary], special: list[int]) -> None:
    self._vocabulary, self.special_token_ids = vocabulary, special
    known = _there(vocabulary)
    self.tokens, self.eos_token_id = known.tokens, known.eos[0] if known.eos else 0

  def __call__(self, text: str | bytes) -> list[int]:
    """Of what a grammar forces: any tokens that write it will do, so the longest ones."""
    prepared = _there(self._vocabulary).prepared
    if prepared is None:  # the library tries what this takes
      return []
    found: list[int] = prepared.greedy_tokenize(text if isinstance(text, str) else text.decode("utf-8", "replace"))
    return found


def _there(vocabulary: weakref.ref[Vocabulary]) -> Vocabulary:
  found = vocabulary()
  if found is None:
    raise ChildGoneError("the vocabulary has been forgotten")
  return found


def _first_lines(text: str) -> str:
  """The library's reason, without the listing of the grammar that it adds."""
  return " ".join(_PLACE.sub("", _LISTING.split(text, maxsplit=1)[0]).split())[:400]


class Sequence:
  """The state of one text's grammar.

  A text that must be JSON is led to its end before its room ends: a token after which what is open could no longer be
  closed does not fit.
  """
  def __init__(self, vocabulary: Vocabulary, grammar: str, max_tokens: int) -> None:
    self._vocabulary, self._left = vocabulary, max_tokens
    self._words = -(-len(vocabulary.tokens) // 32)
    self._json = _JsonState()
    self._matcher = vocabulary.matcher(grammar)
    self._ends_after: dict[int, list[int] | None] = {}  # what is known of the ends after the token that comes next
    self._end: list[int] | None = None  # tokens that would end the text here, where its end is near
    self._margin = _MARGIN  # by how much one token may put the end off
    self._margin += len(self._shortest_end(self._matcher, self._json) or ())
    self._next_look = max_tokens

  def fits(self, token_id: int) -> bool:
    """Whether the text can still be ended in its room after this token, which the grammar allows."""
    if not self._near_end or token_id in self._vocabulary.eos:
      return True
    matcher, state = self._matcher.deep_copy(), self._json.copy()
    if not matcher.consume_token(token_id):
      return False
    state.push(self._vocabulary.tokens[token_id])
    end = self._shortest_end(matcher, state)
    self._ends_after = {token_id: end}
    return end is not None and len(end) < self._left - 1  # the last place is for the end token

  @property
  def _near_end(self) -> bool:
    return self._end is not None and len(self._end) + self._margin >= self._left

  def accept(self, token_id: int) -> None:
    """Go on after this token, which is not the end."""
    self._left -= 1
    self._json.push(self._vocabulary.tokens[token_id])
    if not self._matcher.consume_token(token_id):
      raise InvalidRequestError(f"the schema cannot be followed: {_first_lines(self._matcher.get_error())}")

  def state(self, accepted: int | None = None) -> State:
    """What may come next, after the token that was accepted last."""
    if self._matcher.is_stopped() and not self._matcher.is_error():
      return None, self._way_out, False
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
    return self._mask(self._matcher).tobytes(), self._way_out, self._near_end

  @property
  def _way_out(self) -> int:
    return self._end[0] if self._end else self._vocabulary.eos[0] if self._vocabulary.eos else 0

  def _mask(self, matcher: Any) -> npt.NDArray[np.uint8]:
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
      text = matcher.compute_ff_bytes().decode(errors="ignore")
      forced = self._vocabulary.prepared.greedy_tokenize(text)
      if not forced:
        allowed = np.unpackbits(self._mask(matcher), bitorder="little")
        closers = self._vocabulary.closers[state.in_string]
        forced = [next((t for t in closers if allowed[t]), int(allowed.argmax()))]
      if not matcher.consume_tokens(forced):
        return None
      state.push(b"".join(self._vocabulary.tokens[t] for t in forced))
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


class _Service:
  """Everything that the parent may call."""
  def __init__(self) -> None:
    self._vocabularies: dict[int, Vocabulary] = {}
    self._sequences: dict[int, Sequence] = {}

  def vocabulary(self, number: int, tokens: list[bytes], special: list[int], eos: list[int]) -> None:
    self._vocabularies[number] = Vocabulary(tokens, special, eos)

  def forget(self, vocabularies: list[int], sequences: list[int]) -> None:
    for number in vocabularies:
      self._vocabularies.pop(number, None)
    for number in sequences:
      self._sequences.pop(number, None)

  def check(self, vocabulary: int, grammar: str) -> list[str]:
    """The library's warnings: what the grammar allows beyond what it says."""
    matcher = _known(self._vocabularies, vocabulary).matcher(grammar)
    return [str(warning)[:400] for warning in matcher.get_grammar_warnings()]

  def unusable(self, schemas: list[str]) -> list[list[str]]:
    """For each schema of a text, those of its keywords that the library cannot hold it to."""
    return [_unusable(json.loads(schema)) for schema in schemas]

  def lark(self, grammar: str) -> str:
    """A grammar in the library's notation, or in llama.cpp's (GBNF), in the library's."""
    _library()
    from llguidance.gbnf_to_lark import any_to_lark
    try:
      return str(any_to_lark(_NUMBERED.sub(_letter, grammar) if "::=" in grammar else grammar))
    except RecursionError:
      raise InvalidRequestError("the grammar cannot be used: it nests too deeply") from None
    except Exception as error:  # noqa: BLE001 - the library raises many kinds, all of them about the text
      raise InvalidRequestError(f"the grammar cannot be used: {_first_lines(str(error))}") from None

  def begin(self, number: int, vocabulary: int, grammar: str, max_tokens: int, said: list[int]) -> State:
    """A sequence that has said these tokens already."""
    sequence = Sequence(_known(self._vocabularies, vocabulary), grammar, max_tokens)
    for token_id in said:
      sequence.accept(token_id)
    self._sequences[number] = sequence
    return sequence.state()

  def accept(self, number: int, token_id: int) -> State:
    sequence = _known(self._sequences, number)
    sequence.accept(token_id)
    return sequence.state(token_id)

  def fits(self, number: int, token_id: int) -> bool:
    return _known(self._sequences, number).fits(token_id)


def _unusable(schema: dict[str, Any]) -> list[str]:
  tries: tuple[list[str],
               ...] = ([], ["pattern"], ["format"], ["pattern",
                                                     "format"], ["pattern", "format", "minLength", "maxLength"])
  validate = _library().LLMatcher.validate_grammar
  for without in tries:
    left = {key: value for key, value in schema.items() if key not in without}
    if all(key in schema for key in without[:2]) and not validate("start: %json " + json.dumps(left)):
      return [key for key in without if key in schema]
  return list(schema)


def _known(by_number: dict[int, T], number: int) -> T:
  try:
    return by_number[number]
  except KeyError:
    raise ChildGoneError("it was told to a process before this one") from None


def main() -> None:
  service = _Service()
  names = ("vocabulary", "forget", "check", "unusable", "lark", "begin", "accept", "fits")
  serve({name: getattr(service, name) for name in names}, _THREADS)
