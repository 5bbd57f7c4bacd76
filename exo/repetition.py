"""Answers that say the same over and over: small models fall into a circle now and then, and never leave it."""

from __future__ import annotations

_TIMES = 6
_WORDS, _DRAWN = 300, 1000  # characters that must have gone by: of words, and of what tables and drawings are made of
_MARK = 20  # characters by which an earlier round is found
_CANDIDATES = 12  # earlier places of the mark that are tried
_LONGEST = 2000
_EVERY = 32  # characters between two looks

STOP_REASON = "repetition"  # what clients read beside `finish_reason`


def goes_in_circles(text: str) -> bool:
  """Whether a text ends with one passage of up to 2,000 characters, six times over and for long enough."""
  mark, at = text[-_MARK:], len(text) - _MARK
  for _ in range(_CANDIDATES if at > 0 else 0):
    at = text.rfind(mark, max(0, len(text) - _LONGEST - _MARK), max(0, at + _MARK - 1))
    if at < 0:
      break
    if _repeats(text, len(text) - _MARK - at):
      return True
  return False


def _repeats(text: str, period: int) -> bool:
  """Whether the text ends with its last `period` characters again and again."""
  unit = text[-period:]
  least = _WORDS if len(set(filter(str.isalpha, unit))) > 1 else _DRAWN
  times = max(_TIMES, -(-least // period))
  return len(text) >= period * times and text.endswith(unit * times)


class RepetitionGuard:
  """Of one answer, piece by piece: where it ends depends on its text alone, not on how that was cut into pieces."""
  def __init__(self) -> None:
    self._tail, self._seen, self._looked = "", 0, 0

  def push(self, text: str) -> int | None:
    """How many characters of a further piece are said before the answer has gone in circles; None: it may go on."""
    self._tail += text
    self._seen += len(text)
    while self._looked + _EVERY <= self._seen:
      self._looked += _EVERY
      behind = self._seen - self._looked  # of the tail, what comes after this look
      if goes_in_circles(self._tail[:len(self._tail) - behind]):
        return len(text) - behind
    self._tail = self._tail[-(_LONGEST * _TIMES + _DRAWN):]
    return None
