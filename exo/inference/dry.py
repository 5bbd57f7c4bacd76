"""DRY: what would go on with a repetition is penalized the more, the longer the repetition has become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_LONGEST = 64  # tokens of a repetition that count
_MOST = 1e4  # nats
MAX_BREAKERS = 2**19


@dataclass(frozen=True, slots=True)
class DryParams:
  """A token that would lengthen a repetition of n ≥ `allowed_length` tokens loses `multiplier` · `base`^(n - `allowed_length`).

  Repetitions are looked for in the last `last_n` tokens (-1: in all), and none goes over a token of `breakers`.
  """
  multiplier: float = 0.0
  base: float = 1.75
  allowed_length: int = 2
  last_n: int = -1
  breakers: tuple[int, ...] = ()


def dry_penalties(params: DryParams, history: Sequence[int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
  """(token ids, what each loses) after `history`, the text's tokens so far."""
  recent = history if params.last_n < 0 else history[max(0, len(history) - params.last_n):]
  tokens = np.fromiter(recent, np.int64)
  nothing = np.zeros(0, np.int64), np.zeros(0, np.float32)
  if tokens.size < 2:
    return nothing
  ends = _until_breaker(tokens, params.breakers)
  if not ends:
    return nothing
  # positions whose token is the last one's, as ends of an earlier occurrence; each match is followed back in step
  at = np.flatnonzero(tokens[:-1] == tokens[-1])
  lengths = np.ones(at.size, np.int64)
  alive = np.arange(at.size)
  for back in range(1, ends):
    alive = alive[at[alive] >= back]
    alive = alive[tokens[at[alive] - back] == tokens[-1 - back]]
    if not alive.size:
      break
    lengths[alive] = back + 1
  counts = lengths >= params.allowed_length
  following, lengths = tokens[at[counts] + 1], lengths[counts]
  if not following.size:
    return nothing
  ids = np.unique(following)
  longest = np.zeros(ids.size, np.int64)
  np.maximum.at(longest, np.searchsorted(ids, following), lengths)
  with np.errstate(over="ignore"):
    losses = params.multiplier * np.float64(params.base)**(longest - params.allowed_length)
  return ids, np.minimum(losses, _MOST).astype(np.float32)


def _until_breaker(tokens: npt.NDArray[np.int64], breakers: Sequence[int]) -> int:
  """How many of the last tokens a repetition may have."""
  last = tokens[::-1][:_LONGEST]
  found = np.flatnonzero(np.isin(last, np.asarray(breakers, np.int64)))
  return int(found[0]) if found.size else last.size
