"""How long a request will wait for its turn, from what recent steps and answers were like. Times in seconds."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from exo.networking.messages import Request
from exo.orchestration.sequence import RunningSequence

_SMOOTH = 0.1
# where nothing is known yet
_TOKEN_S, _PROMPT_TOKEN_S, _ANSWER_TOKENS = 0.05, 0.005, 256.0
_MOST_S = 3600.0  # times may come from a node that lies


class WaitEstimate:
  """For one plan."""
  def __init__(self, stages: int) -> None:
    self._stages = stages
    self._token_s = self._prompt_token_s = 0.0
    self._answer_tokens = _ANSWER_TOKENS

  def learn_step(self, lap_s: float, sequences: int, tokens: int, prompt_tokens: int) -> None:
    """A step that gave `tokens` to so many sequences and computed so much of prompts took `lap_s` around the ring."""
    if sequences and tokens:
      self._token_s = _smoothed(self._token_s, lap_s * sequences / tokens)
    elif prompt_tokens:  # several such steps are on a ring's way at once
      self._prompt_token_s = _smoothed(self._prompt_token_s, lap_s / prompt_tokens / self._stages)

  def learn_answer(self, tokens: int) -> None:
    """An answer ended after so many tokens."""
    self._answer_tokens = _smoothed(self._answer_tokens, tokens)

  def wait_s(self, running: Iterable[RunningSequence], ahead: Iterable[Request]) -> float:
    """Until a place is free after all those `ahead`, where those that run have all there are."""
    token_s = self._token_s or _TOKEN_S
    prompt_token_s = self._prompt_token_s or _PROMPT_TOKEN_S
    ends = [
        s.prompt_left * prompt_token_s +
        self._answer(s.request.max_tokens - s.generated, self._answer_tokens - s.generated) * token_s for s in running
    ] or [0.0]
    heapq.heapify(ends)
    for request in ahead:
      replayed = len(request.replay_ids)
      answer = replayed + self._answer(request.max_tokens - replayed, self._answer_tokens - replayed)
      heapq.heapreplace(ends, ends[0] + len(request.prompt_ids) * prompt_token_s + answer * token_s)
    return min(_MOST_S, ends[0])

  def _answer(self, most: int, expected: float) -> float:
    """Tokens to come: one that is longer than usual already may be about to end, or half as long as usual again."""
    return max(0.0, min(most, max(expected, self._answer_tokens / 2)))


def _smoothed(before: float, value: float) -> float:
  return before + _SMOOTH * (value - before) if before else value
