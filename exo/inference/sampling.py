"""From logits to a token, by each request's own parameters.

Randomness is a function of (seed, choice, position) alone, so a request that goes on elsewhere goes on identically.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

from exo.inference.dry import DryParams, dry_penalties
from exo.inference.engine import Logits
from exo.inference.token_filters import Kept, Mirostat, Probabilities, typical, without_top_choices

if TYPE_CHECKING:
  from exo.inference.grammar import Constraint

_NEGLIGIBLE = 36.0  # nats below the likeliest token
_COLD = 1e-6  # a temperature at which none but the likeliest has a chance, and below which dividing by it gives no numbers
_XTC = 1  # the stream of random numbers that says whether top choices are left out
_TRIES = 8  # tokens that do not fit, before the shortest way out is taken


@dataclass(frozen=True, slots=True)
class SamplingParams:
  """Values are as in the OpenAI API; `top_k` 0 and `min_p` 0 are off, `repetition_penalty` and `typical_p` 1 are off.

  The penalties look at the last `penalty_last_n` tokens, -1: at all of them. With `xtc_probability` the top choices of at least
  `xtc_threshold` are left out but for the last. `mirostat` 1 or 2 instead of what else leaves tokens out, 0: without.
  `top_logprobs` None reports no log probabilities, 0 those of the chosen tokens alone. `grammar`, where given, is
  llguidance's notation of what the text may be.
  """
  temperature: float = 0.0
  top_p: float = 1.0
  top_k: int = 0
  min_p: float = 0.0
  frequency_penalty: float = 0.0
  presence_penalty: float = 0.0
  repetition_penalty: float = 1.0
  seed: int = 0
  logit_bias: Mapping[int, float] = field(default_factory=dict)
  top_logprobs: int | None = None
  grammar: str = ""
  typical_p: float = 1.0
  xtc_probability: float = 0.0
  xtc_threshold: float = 0.1
  mirostat: int = 0
  mirostat_tau: float = 5.0
  mirostat_eta: float = 0.1
  penalty_last_n: int = -1
  dry: DryParams = field(default_factory=DryParams)

  @property
  def needs_prompt(self) -> bool:
    """Whether the sampler must know the prompt's tokens."""
    return self.repetition_penalty != 1.0 or self.dry.multiplier > 0

  @property
  def plain_greedy(self) -> bool:
    """The token is the logits' argmax and nothing else is asked for."""
    return (
        self.temperature == 0 and not self.logit_bias and self.frequency_penalty == 0 and self.presence_penalty == 0
        and self.repetition_penalty == 1 and self.top_logprobs is None and not self.grammar and self.dry.multiplier == 0
    )


class TokenLogprob(msgspec.Struct, frozen=True):
  """A token, its natural-log probability under the model, and the likeliest alternatives, best first.

  `mu` is Mirostat's state after it, 0 without.
  """
  token_id: int
  logprob: float
  top: tuple[tuple[int, float], ...] = ()
  mu: float = 0.0


def log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
  """Log probabilities of one row of logits (V,), in float64."""
  shifted = logits.astype(np.float64) - float(logits.max())
  out: npt.NDArray[np.float64] = shifted - math.log(float(np.exp(shifted).sum()))
  return out


def describe(logits: Logits, token_id: int, top: int, mu: float = 0.0) -> TokenLogprob:
  """The log probability of `token_id` and of the `top` likeliest tokens."""
  logprobs = log_softmax(logits)
  return TokenLogprob(token_id, float(logprobs[token_id]), _likeliest(logprobs, top), mu)


def _likeliest(logprobs: npt.NDArray[np.float64], count: int) -> tuple[tuple[int, float], ...]:
  if count == 0:
    return ()
  candidates = np.argpartition(-logprobs, min(count, logprobs.size - 1))[:count]
  ordered = candidates[np.lexsort((candidates, -logprobs[candidates]))]
  return tuple((int(i), float(logprobs[i])) for i in ordered)


def uniform(seed: int, choice: int, position: int, stream: int = 0) -> float:
  """A number in [0, 1) from a counter-based generator (Philox): no state, the same everywhere. Streams have nothing in common."""
  key = np.array([seed & 0xFFFFFFFFFFFFFFFF, choice], dtype=np.uint64)
  bits = np.random.Philox(key=key, counter=np.array([position, stream, 0, 0], dtype=np.uint64))
  return float(np.random.Generator(bits).random())


class Sampler:
  """Chooses the tokens of one sequence. Its state is which tokens there were, where its grammar is, and Mirostat's `mu`."""
  def __init__(
      self, params: SamplingParams, choice: int = 0, constraint: Constraint | None = None, mu: float = 0.0
  ) -> None:
    self._params = params
    self._choice = choice
    self._constraint = constraint
    self._generated: dict[int, int] = {}
    self._seen: set[int] = set()
    # where what counts is which tokens were last, or in which order
    self._history: list[int] | None = [] if params.dry.multiplier > 0 or params.penalty_last_n >= 0 else None
    self._prompt_tokens = 0
    self._mirostat: Mirostat | None = None
    if params.mirostat and params.temperature >= _COLD:
      self._mirostat = Mirostat(params.mirostat, params.mirostat_tau, params.mirostat_eta, mu)
    self._bias: tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]] | None = None
    if params.logit_bias:
      self._bias = (
          np.fromiter(params.logit_bias.keys(), np.int64), np.fromiter(params.logit_bias.values(), np.float32)
      )

  def note_prompt(self, token_ids: Iterable[int]) -> None:
    """Tell it of prompt tokens; only the repetition penalty and DRY look at them."""
    if self._params.needs_prompt:
      tokens = [int(t) for t in token_ids]
      self._seen.update(tokens)
      if self._history is not None:
        self._history.extend(tokens)
        self._prompt_tokens = len(self._history)

  def note_generated(self, token_id: int) -> None:
    """Tell it of a token that was emitted elsewhere (a request that moved here)."""
    self._generated[token_id] = self._generated.get(token_id, 0) + 1
    self._seen.add(token_id)
    if self._history is not None:
      self._history.append(token_id)
    if self._constraint is not None:
      self._constraint.accept(token_id)

  def sample(self, logits: Logits, position: int) -> TokenLogprob:
    """The token at `position`, from the logits (V,) of the position before, which may be changed.

    The log probability is the model's own, before penalties, bias and temperature.
    """
    params = self._params
    if params.plain_greedy:
      return TokenLogprob(int(logits.argmax()), 0.0)
    if params.top_logprobs is None:
      self._adjust(logits)
      token_id = self._choose_fitting(logits, position)
      self.note_generated(token_id)
      return TokenLogprob(token_id, 0.0, mu=self._mu)
    adjusted = logits.copy()
    self._adjust(adjusted)
    token_id = self._choose_fitting(adjusted, position)
    self.note_generated(token_id)
    return describe(logits, token_id, params.top_logprobs, self._mu)

  @property
  def _mu(self) -> float:
    return 0.0 if self._mirostat is None else self._mirostat.mu

  def _choose_fitting(self, logits: Logits, position: int) -> int:
    if self._constraint is None:
      return self._choose(logits, position)
    for _ in range(_TRIES):
      token_id = self._choose(logits, position)
      if self._constraint.fits(token_id):
        return token_id
      logits[token_id] = -np.inf
    return self._constraint.way_out

  def _adjust(self, out: Logits) -> None:
    """Apply penalties and bias in place; they touch few of the vocabulary's entries."""
    params = self._params
    occurred, counted = self._counted()
    if params.repetition_penalty != 1 and occurred:
      # CTRL (Keskar et al., 2019): towards zero for positive logits, away from it for negative ones
      seen = np.fromiter(occurred, np.int64)
      values = out[seen]
      out[seen] = np.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    if (params.frequency_penalty or params.presence_penalty) and counted:
      ids = np.fromiter(counted.keys(), np.int64)
      counts = np.fromiter(counted.values(), np.float32)
      out[ids] -= counts * np.float32(params.frequency_penalty) + np.float32(params.presence_penalty)
    if params.dry.multiplier > 0 and self._history is not None:
      ids, losses = dry_penalties(params.dry, self._history)
      out[ids] -= losses
    if self._bias is not None:
      ids, values = self._bias
      out[ids] += values
      out[ids[values <= -100]] = -np.inf
    if self._constraint is not None:
      self._constraint.apply(out)

  def _counted(self) -> tuple[set[int], dict[int, int]]:
    """(which tokens occurred, how often which were generated), as far back as the penalties look."""
    window = self._params.penalty_last_n
    if window < 0 or self._history is None:
      return self._seen, self._generated
    begin = max(0, len(self._history) - window)
    generated = Counter(self._history[max(begin, self._prompt_tokens):])
    return set(self._history[begin:]), generated

  def _choose(self, logits: Logits, position: int) -> int:
    params = self._params
    if params.temperature < _COLD:
      return int(logits.argmax())
    scaled = logits.astype(np.float64) / params.temperature
    size = scaled.size
    if 0 < params.top_k < size:
      candidates = np.argpartition(-scaled, params.top_k)[:params.top_k]
    else:  # what is left out has less than 1e-10 of the probability together, and sorting it would cost most of the time
      candidates = np.flatnonzero(scaled > scaled.max() - _NEGLIGIBLE)
    # likeliest first, ties by id: the same order on every machine
    candidates = candidates[np.lexsort((candidates, -scaled[candidates]))]
    probabilities = np.exp(scaled[candidates] - scaled[candidates[0]])
    probabilities /= probabilities.sum()
    if self._mirostat is not None:
      return self._by_surprise(self._mirostat, candidates, probabilities, size, position)
    if params.typical_p < 1:
      candidates, probabilities = _only(typical(probabilities, params.typical_p), candidates, probabilities)
    keep = candidates.size
    if params.min_p > 0:
      keep = max(1, int((probabilities >= params.min_p * probabilities[0]).sum()))
    cumulative = probabilities.cumsum()
    if params.top_p < 1:
      keep = min(keep, int(np.searchsorted(cumulative, params.top_p * cumulative[-1])) + 1)
    if params.xtc_probability > 0 and uniform(params.seed, self._choice, position, _XTC) < params.xtc_probability:
      left = probabilities[:keep] / cumulative[keep - 1]
      kept = without_top_choices(left, params.xtc_threshold)
      candidates, probabilities = _only(kept, candidates[:keep], left)
      keep, cumulative = candidates.size, probabilities.cumsum()
    drawn = uniform(params.seed, self._choice, position) * cumulative[keep - 1]
    return int(candidates[min(int(np.searchsorted(cumulative[:keep], drawn, side="right")), keep - 1)])

  def _by_surprise(
      self, mirostat: Mirostat, candidates: npt.NDArray[np.int64], probabilities: Probabilities, vocab_size: int,
      position: int
  ) -> int:
    keep = mirostat.keeps(probabilities, vocab_size)
    cumulative = probabilities[:keep].cumsum()
    drawn = uniform(self._params.seed, self._choice, position) * cumulative[-1]
    at = min(int(np.searchsorted(cumulative, drawn, side="right")), keep - 1)
    mirostat.drew(float(probabilities[at] / cumulative[-1]))
    return int(candidates[at])


def _only(kept: Kept, candidates: npt.NDArray[np.int64],
          probabilities: Probabilities) -> tuple[npt.NDArray[np.int64], Probabilities]:
  left = probabilities[kept]
  return candidates[kept], left / left.sum()
