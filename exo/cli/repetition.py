"""Small models that answer greedily sometimes fall into a circle and never leave it."""

_TIMES = 6
_SHORTEST = 20  # characters: shorter units repeat in tables and drawings
_LONGEST = 2000


def goes_in_circles(text: str) -> bool:
  """Whether a text ends with one passage of 20 to 2,000 characters, six times over."""
  mark = text[-_SHORTEST:]
  before = text.rfind(mark, max(0, len(text) - _LONGEST - _SHORTEST), len(text) - 1)
  period = len(text) - _SHORTEST - before
  if before < 0 or len(text) < period * _TIMES or not mark.strip():
    return False
  period *= -(-_SHORTEST // period)
  return len(text) >= period * _TIMES and text.endswith(text[-period:] * _TIMES)
