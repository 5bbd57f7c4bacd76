"""How long a request will wait for its turn, from what recent steps and answers were like. Times in seconds."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Collection, Iterable

from exo.networking.messages import Request
from exo.oldest import forget_oldest
from exo.orchestration.fair_clock import share_of
from exo.orchestration.sequence import RunningSequence

_SMOOTH = 0.1
# where nothing is known yet
_TOKEN_S, _PROMPT_TOKEN_S, _ANSWER_TOKENS = 0.05, 0.005, 256.0
_MOST_S = 3600.0  # times may come from a node that lies
_MOST_SHARES = 1024


class WaitEstimate:
  """For one plan. Clients differ: how long answers are is learned of each share."""
  def __init__(self, stages: int) -> None:
    self._stages = stages
    self._token_s = self._prompt_token_s = 0.0
    self._answer_tokens: OrderedDict[str, float] = OrderedDict()

  def learn_step(self, lap_s: float, sequences: int, tokens: int, prompt_tokens: int) -> None:
    """A step that gave `tokens` to so many sequences and computed so much of prompts took `lap_s` around the ring."""
    if sequences and tokens:
      self._token_s = _smoothed(self._token_s, lap_s * sequences / tokens)
    elif prompt_tokens:  # several such steps are on a ring's way at once
      self._prompt_token_s = _smoothed(self._prompt_token_s, lap_s / prompt_tokens / self._stages)

  def learn_answer(self, request: Request, tokens: int) -> None:
    """An answer came to its end after so many tokens."""
    share = share_of(request)
    self._answer_tokens[share] = _smoothed(self._answer_tokens.pop(share, 0.0), tokens)
    forget_oldest(self._answer_tokens, _MOST_SHARES)

  def wait_s(self, running: Collection[RunningSequence], ahead: Iterable[Request], free: int) -> float:
    """Until there is a place after all those `ahead`; `free` places are there beside those that are taken."""
    token_s = self._token_s or _TOKEN_S
    prompt_token_s = self._prompt_token_s or _PROMPT_TOKEN_S
    usual = dict(self._answer_tokens)
    for sequence in running:  # what runs tells of the share's answers too, before the first of them has ended
      share = share_of(sequence.request)
      usual[share] = max(usual.get(share, _ANSWER_TOKENS), 2.0 * sequence.generated)
    ends = [0.0] * (free if running else max(1, free))
    for sequence in running:
      # one that is longer than usual may be about to end, or not before it is as long again
      expected = max(usual[share_of(sequence.request)] - sequence.generated, sequence.generated)
      tokens = min(sequence.request.max_tokens - sequence.generated, expected)
      ends.append(sequence.prompt_left * prompt_token_s + tokens * token_s)
    heapq.heapify(ends)
    for request in ahead:
      tokens = min(request.max_tokens, usual.get(share_of(request), _ANSWER_TOKENS))
      prompt_s = len(request.prompt_ids) * prompt_token_s
      heapq.heapreplace(ends, ends[0] + prompt_s + max(tokens, len(request.replay_ids)) * token_s)
    return min(_MOST_S, ends[0])


def _smoothed(before: float, value: float) -> float:
  return before + _SMOOTH * (value - before) if before else value
