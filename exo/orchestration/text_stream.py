"""From token deliveries to text: incremental, never splitting a character, ending before a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from exo.inference.sampling import TokenLogprob
from exo.inference.tokenizer import Tokenizer
from exo.networking.messages import TokenDelivery


@dataclass(frozen=True, slots=True)
class TextDelta:
  """What one delivery adds to a choice. `finish_reason` "" while it goes on."""
  choice: int
  text: str
  tokens: tuple[TokenLogprob, ...]
  finish_reason: str = ""


class ChoiceText:
  """The text of one choice. `push` its deliveries in order; after a finish reason nothing more comes."""
  def __init__(self, tokenizer: Tokenizer, choice: int, stops: Sequence[str] = ()) -> None:
    self._detokenizer = tokenizer.detokenizer()
    self._choice, self._stops = choice, tuple(stops)
    self._held = ""  # text that may turn out to begin a stop string
    self.completion_tokens = 0

  def push(self, delivery: TokenDelivery) -> TextDelta:
    self.completion_tokens += len(delivery.tokens)
    text = self._detokenizer.push(token.token_id for token in delivery.tokens)
    if delivery.finish_reason:
      text += self._detokenizer.finish()
    if not self._stops:
      return TextDelta(self._choice, text, delivery.tokens, delivery.finish_reason)
    self._held += text
    at = min((i for stop in self._stops if (i := self._held.find(stop)) >= 0), default=-1)
    if at >= 0:
      return TextDelta(self._choice, self._held[:at], delivery.tokens, "stop")
    keep = 0 if delivery.finish_reason else self._possible_stop()
    out, self._held = self._held[:len(self._held) - keep], self._held[len(self._held) - keep:]
    return TextDelta(self._choice, out, delivery.tokens, delivery.finish_reason)

  def _possible_stop(self) -> int:
    """How many characters at the end could be the beginning of a stop string."""
    longest = min(len(self._held), max(map(len, self._stops)) - 1)
    return next((n for n in range(longest, 0, -1) if any(s.startswith(self._held[-n:]) for s in self._stops)), 0)
