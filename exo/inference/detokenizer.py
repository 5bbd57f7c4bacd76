"""From token ids to text, a few at a time: never splitting a character, never raising, whatever the ids are."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
  from exo.inference.tokenizer import Tokenizer

_WINDOW = 8  # tokens whose text decides how the next one is joined to it, where tokens are no bytes
_LONGEST_CHARACTER = 4  # bytes
_UTF8 = codecs.getincrementaldecoder("utf-8")
BROKEN = "\ufffd"


class Detokenizer:
  """Turns a stream of token ids into a stream of text. Ids that there are not add nothing.

  `after` are the tokens that the text continues: with them the first word keeps a space before it, and a character that
  they began is completed, while what is broken in them stays theirs; `echoed` where their text stands before this one, as
  `text_before` gives it. Special tokens are left out but for those in `visible`, which show their names.
  """
  def __init__(
      self,
      tokenizer: Tokenizer,
      after: Sequence[int] = (),
      visible: frozenset[int] = frozenset(),
      echoed: bool = False
  ) -> None:
    self._tokenizer, self._visible = tokenizer, visible
    self._joiner: _Joiner = (_Bytes if tokenizer.joins_bytes else _Words)(tokenizer, after, echoed)

  def push(self, token_ids: Iterable[int]) -> str:
    """The text that these tokens complete; what is cut in mid-character waits for the next call."""
    parts = []
    for token_id in token_ids:
      if token_id in self._visible:
        parts.append(self._joiner.finish() + self._joiner.name(token_id))
      elif not self._tokenizer.is_special(token_id):
        parts.append(self._joiner.push(token_id))
    return "".join(parts)

  @property
  def waiting(self) -> bytes:
    """Bytes of tokens that are not text yet."""
    return self._joiner.waiting

  def finish(self) -> str:
    """What is still waiting, with U+FFFD for bytes that no character completes; once, at the end."""
    return self._joiner.finish()


class _Joiner(Protocol):
  """How the tokens of one kind of tokenizer become text."""
  def __init__(self, tokenizer: Tokenizer, after: Sequence[int], echoed: bool) -> None:
    ...

  @property
  def waiting(self) -> bytes:
    ...

  def push(self, token_id: int) -> str:
    ...

  def name(self, token_id: int) -> str:
    ...

  def finish(self) -> str:
    ...


class _Bytes(_Joiner):
  """Tokens are bytes of UTF-8, and a text is what they are when joined."""
  def __init__(self, tokenizer: Tokenizer, after: Sequence[int], echoed: bool) -> None:
    self._tokenizer = tokenizer
    end = _end_of(tokenizer, after)
    self._first_spaces = 0 if end else tokenizer.stripped_spaces
    self._decoder = _UTF8("replace")
    begun = _begun(tokenizer, after)
    self._decoder.decode(begun)
    self._borrowed = b"" if echoed else begun

  def push(self, token_id: int) -> str:
    data = self._tokenizer.token_bytes(token_id)
    if not data:
      return ""
    if self._borrowed:
      if not _goes_on(self._borrowed, data):
        self._decoder.reset()
      self._borrowed = b""
    text = self._decoder.decode(data)
    while text and self._first_spaces and text[0] == " ":
      text, self._first_spaces = text[1:], self._first_spaces - 1
    if text:
      self._first_spaces = 0
    return text

  @property
  def waiting(self) -> bytes:
    return b"" if self._borrowed else self._decoder.getstate()[0]

  def name(self, token_id: int) -> str:
    self._first_spaces = 0
    return self._tokenizer.token_bytes(token_id).decode("utf-8", "replace")

  def finish(self) -> str:
    if self._borrowed:
      self._borrowed = b""
      self._decoder.reset()
    return self._decoder.decode(b"", True)


class _Words(_Joiner):
  """Tokens are words or parts of words, which the tokenizer's decoder joins in its own way."""
  def __init__(self, tokenizer: Tokenizer, after: Sequence[int], echoed: bool) -> None:
    self._tokenizer = tokenizer
    self._ids = [i for i in after[-_WINDOW:] if not tokenizer.is_special(i)]
    self._waiting = 0  # ids at the end whose text is not out

  def push(self, token_id: int) -> str:
    self._ids.append(token_id)
    self._waiting += 1
    text = self._new_text()
    if text.endswith(BROKEN) and self._waiting < _LONGEST_CHARACTER:
      return ""
    self._take()
    return text

  def _new_text(self) -> str:
    """What the waiting ids add to the text of those before them."""
    whole = self._tokenizer.decode(self._ids)
    before = self._tokenizer.decode(self._ids[:len(self._ids) - self._waiting])
    return whole[len(before):]

  def _take(self) -> None:
    self._waiting = 0
    del self._ids[:-_WINDOW]

  @property
  def waiting(self) -> bytes:
    return b""

  def name(self, token_id: int) -> str:
    self._ids.clear()
    return self._tokenizer.token_text(token_id)

  def finish(self) -> str:
    text = self._new_text() if self._waiting else ""
    self._take()
    return text


def text_before(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
  """The text of a prompt that an answer will continue: without the character that its last tokens only begin."""
  text = tokenizer.decode(token_ids, skip_special=False)
  return text.removesuffix(BROKEN) if tokenizer.joins_bytes and _begun(tokenizer, token_ids) else text


def _end_of(tokenizer: Tokenizer, token_ids: Sequence[int]) -> bytes:
  """The last bytes of the tokens' text, as many as decide which character they begin; empty where there is no text."""
  data = b""
  for token_id in reversed(token_ids):
    if not tokenizer.is_special(token_id):
      data = tokenizer.token_bytes(token_id) + data
    if len(data) >= _LONGEST_CHARACTER:
      break
  return data[-2 * _LONGEST_CHARACTER:]


def _begun(tokenizer: Tokenizer, token_ids: Sequence[int]) -> bytes:
  """The bytes of a character that the last token leaves unfinished."""
  if not token_ids or tokenizer.is_special(token_ids[-1]):
    return b""
  decoder = _UTF8("replace")
  decoder.decode(_end_of(tokenizer, token_ids))
  return decoder.getstate()[0]


def _goes_on(begun: bytes, data: bytes) -> bool:
  """Whether the character that these bytes begin can go on with `data`."""
  try:
    _UTF8("strict").decode(begun + data[:1])
  except UnicodeDecodeError:
    return False
  return True
