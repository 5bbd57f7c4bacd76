"""From token deliveries to text: incremental, never splitting a character, ending before a stop string."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from exo.inference.sampling import TokenLogprob
from exo.inference.tokenizer import Tokenizer
from exo.networking.messages import PromptProgress, TokenDelivery
from exo.repetition import RepetitionGuard


@dataclass(frozen=True, slots=True)
class TextToken:
  """A token and the bytes that it gave to the text; fewer than its own where a stop string cut it."""
  logprob: TokenLogprob
  data: bytes


@dataclass(frozen=True, slots=True)
class TextDelta:
  """What one delivery adds to a choice. `finish_reason` "" while it goes on.

  `tokens` is empty unless tokens were asked for; then those of `text`, so that their bytes joined are its own. `stop` is
  the stop string that ended the text. `progress` comes alone, before the first text of a request that asks for it. `circles`:
  the text was ended since it said the same over and over.
  """
  choice: int
  text: str
  tokens: tuple[TextToken, ...]
  finish_reason: str = ""
  stop: str | None = None
  progress: PromptProgress | None = None
  circles: bool = False


@dataclass(slots=True)
class _Piece:
  """Text that is certain, with the tokens that it came of."""
  text: str
  tokens: tuple[TextToken, ...]


class ChoiceText:
  """The text of one choice. `push` its deliveries in order; after a finish reason nothing more comes.

  `after` are tokens that the text continues, `echoed` when its reader has their text, `visible` special tokens that show
  their names in it. With `guarded` it ends where it goes in circles.
  """
  def __init__(
      self,
      tokenizer: Tokenizer,
      choice: int,
      stops: Sequence[str] = (),
      *,
      with_tokens: bool = False,
      after: Sequence[int] = (),
      echoed: bool = False,
      visible: Iterable[int] = (),
      guarded: bool = False,
  ) -> None:
    self._tokenizer, self._visible = tokenizer, frozenset(visible)
    self._detokenizer = tokenizer.detokenizer(after, self._visible, echoed=echoed)
    self._choice, self._stops, self._with_tokens = choice, tuple(stops), with_tokens
    self._held: deque[_Piece] = deque()  # text that may turn out to begin a stop string
    self._unseen: list[TokenLogprob] = []  # tokens that have not become text yet
    self._guard = RepetitionGuard() if guarded else None
    self._ahead = b""  # bytes that wait for the rest of a character, but whose token is out
    self.completion_tokens = 0

  def push(self, delivery: TokenDelivery) -> TextDelta:
    self.completion_tokens += len(delivery.tokens)
    finish = delivery.finish_reason
    if not self._with_tokens:
      text = self._detokenizer.push(token.token_id for token in delivery.tokens)
      self._hold(text + (self._detokenizer.finish() if finish else ""))
    else:
      for token in delivery.tokens:
        self._unseen.append(token)
        self._hold(self._detokenizer.push([token.token_id]))
      if finish:
        self._hold(self._detokenizer.finish(), last=True)
    return self._guarded(self._released(finish))

  def _guarded(self, delta: TextDelta) -> TextDelta:
    """Cut where the guard says so."""
    circled = None if self._guard is None else self._guard.push(delta.text)
    if circled is None:
      return delta
    piece = _cut(_Piece(delta.text, delta.tokens), circled)
    return TextDelta(delta.choice, piece.text, piece.tokens, "stop", circles=True)

  def _released(self, finish: str) -> TextDelta:
    """What of the text that is held can no more become a stop string."""
    if not self._stops:
      return self._delta(sum(len(piece.text) for piece in self._held), finish)
    held = "".join(piece.text for piece in self._held)
    at, stop = min(((i, s) for s in self._stops if (i := held.find(s)) >= 0), default=(-1, ""))
    if at >= 0:
      return self._delta(at, "stop", stop)
    return self._delta(len(held) - (0 if finish else self._possible_stop(held)), finish)

  def _hold(self, text: str, last: bool = False) -> None:
    if not text and not (last and self._unseen):
      return
    self._held.append(_Piece(text, self._tokens_of(text)))

  def _tokens_of(self, text: str) -> tuple[TextToken, ...]:
    """The tokens that `text` came of, with their bytes; those that only wait for more of a character stay unseen."""
    parts = [self._shown_bytes(token.token_id) for token in self._unseen]
    waiting, kept = self._detokenizer.waiting, len(parts)
    while waiting and kept and waiting.endswith(b"".join(parts[kept - 1:])):
      kept -= 1
    shown = self._ahead + b"".join(parts)
    shown = shown[:len(shown) - len(waiting)]
    if shown[:1] == b" " and shown[1:].decode("utf-8", "replace") == text:  # the space that a text does not begin with
      begin = next(i for i, part in enumerate(parts) if part)
      parts[begin] = parts[begin][1:]
    elif shown.decode("utf-8", "replace") != text:  # of a decoder that joins words, or begun by the prompt
      holder = max((i for i, part in enumerate(parts[:kept]) if part), default=0)
      parts = [text.encode() if i == holder else b"" for i in range(len(parts))]
    left = sum(map(len, parts[kept:]))
    self._ahead = waiting[:max(0, len(waiting) - left)]
    tokens = tuple(TextToken(token, part) for token, part in zip(self._unseen[:kept], parts, strict=False))
    self._unseen = self._unseen[kept:]
    return tokens

  def _shown_bytes(self, token_id: int) -> bytes:
    if self._tokenizer.is_special(token_id) and token_id not in self._visible:
      return b""
    return self._tokenizer.token_bytes(token_id)

  def _delta(self, count: int, finish: str, stop: str | None = None) -> TextDelta:
    """Let the first `count` characters of what is held out, with their tokens; at a stop string the rest is gone."""
    texts: list[str] = []
    tokens: list[TextToken] = []
    while self._held and (len(self._held[0].text) <= count if stop is None else count > 0):
      piece = self._held.popleft()
      if len(piece.text) > count:
        piece = _cut(piece, count)
      texts.append(piece.text)
      tokens.extend(piece.tokens)
      count -= len(piece.text)
    if count and stop is None and not (piece := self._held[0]).tokens:  # a piece with tokens goes out as a whole
      texts.append(piece.text[:count])
      piece.text = piece.text[count:]
    return TextDelta(self._choice, "".join(texts), tuple(tokens), finish, stop)

  def _possible_stop(self, held: str) -> int:
    """How many characters at the end could be the beginning of a stop string."""
    return max(_overlap(held, stop) for stop in self._stops)


def _overlap(held: str, stop: str) -> int:
  """The length of the longest end of `held` that `stop` begins with, and goes on after."""
  at = held.find(stop[0], max(0, len(held) - len(stop) + 1))
  while at >= 0:
    if stop.startswith(held[at:]):
      return len(held) - at
    at = held.find(stop[0], at + 1)
  return 0


def _cut(piece: _Piece, count: int) -> _Piece:
  """The first `count` characters, with what their tokens gave to them."""
  left = len(piece.text[:count].encode())
  tokens = []
  for token in piece.tokens:
    if left <= 0:
      break
    tokens.append(TextToken(token.logprob, token.data[:left]))
    left -= len(token.data)
  return _Piece(piece.text[:count], tuple(tokens))
