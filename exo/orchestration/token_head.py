"""The last stage's part: from logits to tokens, log probabilities and the reason to stop, for every open sequence."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from exo.errors import ProtocolError
from exo.inference.engine import BatchEntry, Logits, TokenIds
from exo.inference.sampling import Sampler, TokenLogprob, describe
from exo.networking.messages import Request, SequenceOpen, SequenceToken, TokenDelivery


@dataclass(slots=True)
class _State:
  request: Request
  prompt_tokens: int
  sampler: Sampler
  generated: int = 0
  prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
  last_row: Logits | None = None  # of the chunk before, which scores the first token of the next


class TokenHead:
  """One plan's open sequences. Runs on the device thread."""
  def __init__(self, plan_id: str) -> None:
    self._plan_id = plan_id
    self._open: dict[int, _State] = {}

  def open(self, opened: SequenceOpen) -> None:
    sampler = Sampler(opened.request.sampling, opened.request.choice)
    sampler.note_prompt(opened.request.prompt_ids)
    self._open[opened.sequence] = _State(opened.request, opened.prompt_tokens, sampler)

  def drop(self, sequence: int) -> None:
    self._open.pop(sequence, None)

  def take(self, entries: tuple[BatchEntry, ...], token_ids: TokenIds,
           logits: Logits) -> tuple[list[SequenceToken], list[tuple[str, TokenDelivery]]]:
    """(tokens for the first stage, deliveries with their entry nodes) of one step; `logits` has the wanted rows."""
    tokens: list[SequenceToken] = []
    deliveries: list[tuple[str, TokenDelivery]] = []
    row = start = 0
    for entry in entries:
      state = self._open.get(entry.sequence)
      if state is None:
        raise ProtocolError(f"a step for sequence {entry.sequence}, which is not open")
      rows = logits[row:row + entry.logit_rows]
      ids = token_ids[start:start + entry.n_tokens]
      row, start = row + entry.logit_rows, start + entry.n_tokens
      if state.request.prompt_logprobs is not None and entry.position < state.prompt_tokens:
        self._score_prompt(state, ids, rows)
      if entry.logit_rows and entry.position + entry.n_tokens >= state.prompt_tokens:
        token, delivery = self._next(entry, state, rows[-1])
        tokens.append(token)
        deliveries.append((state.request.entry_node, delivery))
    return tokens, deliveries

  def _score_prompt(self, state: _State, ids: TokenIds, rows: Logits) -> None:
    """Each prompt token's log probability under the row before it; the first of all has none."""
    top = state.request.prompt_logprobs or 0
    before = [state.last_row, *rows[:-1]]
    for token_id, scores in zip(ids, before, strict=True):
      if scores is not None:
        state.prompt_logprobs.append(describe(scores, int(token_id), top))
    state.last_row = np.array(rows[-1])

  def _next(self, entry: BatchEntry, state: _State, row: Logits) -> tuple[SequenceToken, TokenDelivery]:
    request, index = state.request, state.generated
    chosen: tuple[TokenLogprob, ...] = ()
    finish, token_id = "length", 0
    if request.max_tokens > 0:
      token = state.sampler.sample(row, entry.position + entry.n_tokens)
      token_id = token.token_id
      if token_id in request.eos_ids:
        finish = "stop"
      else:
        chosen, state.generated = (token, ), index + 1
        finish = "length" if state.generated >= request.max_tokens else ""
    scored, state.prompt_logprobs, state.last_row = tuple(state.prompt_logprobs), [], None
    delivery = TokenDelivery(self._plan_id, request.request_id, request.choice, index, chosen, finish, scored)
    return SequenceToken(entry.sequence, token_id, finish), delivery
