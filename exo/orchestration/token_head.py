"""The last stage's part: from logits to tokens, log probabilities and the reason to stop, for every open sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from exo.errors import ProtocolError, to_wire
from exo.inference.engine import BatchEntry, Logits, TokenIds
from exo.inference.grammar import GrammarCompiler
from exo.inference.sampling import Sampler, TokenLogprob, describe
from exo.networking.messages import Failure, Request, RequestFailed, SequenceOpen, SequenceToken, TokenDelivery

Deliveries = Sequence[tuple[str, TokenDelivery | RequestFailed]]


@dataclass(slots=True)
class _State:
  request: Request
  prompt_tokens: int
  sampler: Sampler
  cached_tokens: int
  generated: int = 0
  prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
  hidden_sum: npt.NDArray[np.float64] | None = None  # of the prompt so far, for embeddings
  last_row: Logits | None = None  # of the chunk before, which scores the first token of the next


class TokenHead:
  """One plan's open sequences. Runs on the device thread."""
  def __init__(self, plan_id: str, grammars: GrammarCompiler | None = None) -> None:
    self._plan_id, self._grammars = plan_id, grammars
    self._open: dict[int, _State] = {}

  def open(self, opened: SequenceOpen) -> None:
    request, constraint = opened.request, None
    if request.sampling.grammar and self._grammars is not None:
      constraint = self._grammars.start(request.sampling.grammar, request.max_tokens)
    sampler = Sampler(request.sampling, request.choice, constraint, request.mu)
    sampler.note_prompt(opened.request.prompt_ids)
    for token_id in opened.request.replay_ids:
      sampler.note_generated(token_id)
    had = len(opened.request.replay_ids)
    self._open[opened.sequence] = _State(opened.request, opened.prompt_tokens, sampler, opened.reused, had)

  def drop(self, sequence: int) -> None:
    self._open.pop(sequence, None)

  def take(self, entries: tuple[BatchEntry, ...], token_ids: TokenIds,
           logits: Logits) -> tuple[list[SequenceToken], list[tuple[str, TokenDelivery | RequestFailed]]]:
    """(tokens for the first stage, deliveries with their entry nodes) of one step; `logits` has the wanted rows."""
    tokens: list[SequenceToken] = []
    deliveries: list[tuple[str, TokenDelivery | RequestFailed]] = []
    row = start = 0
    for entry in entries:
      state = self._open.get(entry.sequence)
      if state is None:
        raise ProtocolError(f"a step for sequence {entry.sequence}, which is not open")
      rows = logits[row:row + entry.logit_rows]
      ids = token_ids[start:start + entry.n_tokens]
      row, start = row + entry.logit_rows, start + entry.n_tokens
      if (taken := self._next(entry, state, ids, rows)) is not None:
        tokens.extend(taken[0])
        deliveries.append((state.request.entry_node, taken[1]))
    return tokens, deliveries

  def take_hidden(
      self, entries: tuple[BatchEntry, ...], hidden: npt.NDArray[np.float32]
  ) -> tuple[list[SequenceToken], list[tuple[str, TokenDelivery | RequestFailed]]]:
    """As `take`, for entries that want embeddings: `hidden` (tokens, hidden size) is after the final norm."""
    tokens: list[SequenceToken] = []
    deliveries: list[tuple[str, TokenDelivery | RequestFailed]] = []
    start = 0
    for entry in entries:
      state = self._open[entry.sequence]
      part = hidden[start:start + entry.n_tokens].sum(axis=0, dtype=np.float64)
      start += entry.n_tokens
      state.hidden_sum = part if state.hidden_sum is None else state.hidden_sum + part
      if entry.position + entry.n_tokens >= state.prompt_tokens:
        request = state.request
        mean = (state.hidden_sum / state.prompt_tokens).astype(np.float32)
        delivery = TokenDelivery(self._plan_id, request.request_id, request.choice, 0, (), "stop", embedding=mean)
        tokens.append(SequenceToken(entry.sequence, 0, "stop"))
        deliveries.append((request.entry_node, delivery))
    return tokens, deliveries

  def _score_prompt(self, state: _State, ids: TokenIds, rows: Logits) -> None:
    """Each prompt token's log probability under the row before it; the first of all has none."""
    top = state.request.prompt_logprobs or 0
    before = [state.last_row, *rows[:-1]]
    for token_id, scores in zip(ids, before, strict=True):
      if scores is not None:
        state.prompt_logprobs.append(describe(scores, int(token_id), top))
    state.last_row = np.array(rows[-1])

  def _next(self, entry: BatchEntry, state: _State, ids: TokenIds,
            rows: Logits) -> tuple[list[SequenceToken], TokenDelivery | RequestFailed] | None:
    """None where nothing is sampled yet, or again."""
    try:
      if state.request.prompt_logprobs is not None and entry.position < state.prompt_tokens:
        self._score_prompt(state, ids, rows)
      if entry.position < state.prompt_tokens:
        if not entry.logit_rows or entry.position + entry.n_tokens < state.prompt_tokens:
          return None
        rows, ids = rows[-1:], ids[-1:]
      if not entry.logit_rows:  # a token that its client has already
        return None
      return self._sampled(entry, state, ids, rows)
    except Exception as error:  # noqa: BLE001 - of a grammar that leads nowhere, say: it ends its own request, not the others
      failed = RequestFailed(self._plan_id, state.request.request_id, Failure(*to_wire(error)))
      return [SequenceToken(entry.sequence, 0, "stop")], failed

  def _sampled(self, entry: BatchEntry, state: _State, ids: TokenIds,
               rows: Logits) -> tuple[list[SequenceToken], TokenDelivery]:
    """The token that follows the first of `ids`, and as long as each is the draft that comes next, those after it."""
    request, index = state.request, state.generated
    chosen: list[TokenLogprob] = []
    tokens: list[SequenceToken] = []
    finish = ""
    end = entry.position + entry.n_tokens
    for k, row in enumerate(rows):
      token, finish = self._sample(state, row, end - len(rows) + k + 1)
      tokens.append(SequenceToken(entry.sequence, token.token_id, finish, token.mu))
      if finish != "stop" and request.max_tokens > 0:
        chosen.append(token)
      if finish or k + 1 == len(rows) or token.token_id != ids[k + 1]:
        break
    scored, state.prompt_logprobs, state.last_row = tuple(state.prompt_logprobs), [], None
    delivery = TokenDelivery(
        self._plan_id, request.request_id, request.choice, index, tuple(chosen), finish, scored, entry.n_tokens,
        0 if index else state.cached_tokens
    )
    return tokens, delivery

  @staticmethod
  def _sample(state: _State, row: Logits, position: int) -> tuple[TokenLogprob, str]:
    """(the token at `position`, why it is the last or "")."""
    request = state.request
    if request.max_tokens == 0:
      return TokenLogprob(0, 0.0), "length"
    token = state.sampler.sample(row, position)
    if token.token_id in request.eos_ids:
      return token, "stop"
    state.generated += 1
    return token, "length" if state.generated >= request.max_tokens else ""
