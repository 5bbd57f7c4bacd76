"""How many tokens of prompts a step computes: few beside decodes, that these keep their pace, and on a ring so many that
every stage soon has some.

Pure: learns from what steps took. Times in milliseconds.
"""

from __future__ import annotations

import math

_SMOOTH = 0.2
_PATIENCE = 1.9  # how many times its pace alone a token may take while prompts are computed
_LEAST = 16  # tokens
_FIRST_BESIDE = 32
_FIRST_RATIO = 16.0  # tokens in whose time a step begins and ends, where nothing is known yet
_MOST_RATIO = 1e4  # times may come from a node that lies


class PromptChunks:
  """The sizes for one plan, given what the slowest of its `stages` took for earlier steps."""
  def __init__(self, stages: int, step_tokens: int) -> None:
    self._stages, self._step_tokens = stages, step_tokens
    self._decode_ms = 0.0  # the slowest stage's compute for a step of decodes alone
    self._token_ms = 0.0  # and for each token of a step of prompts alone, without what any step takes
    self._beside = float(_FIRST_BESIDE)

  @property
  def beside_decodes(self) -> int:
    """Tokens of prompts in a step while sequences decode."""
    return min(self._step_tokens, max(2, int(self._beside) // 8 * 8))

  def alone(self, left: int) -> int:
    """Tokens a step when `left` tokens of prompts are to be computed and nothing decodes.

    With S stages, k even steps of `left` tokens take k + S-1 turns of f + t·left/k, where f is what any step takes and t
    what a token adds; that is least for k = sqrt((S-1)·left·t / f). One stage takes as many as it may.
    """
    if self._stages == 1:
      return self._step_tokens
    ratio = self._decode_ms / self._token_ms if self._decode_ms and self._token_ms else _FIRST_RATIO
    ratio = min(_MOST_RATIO, max(1 / _MOST_RATIO, ratio))
    steps = math.sqrt((self._stages - 1) * left / ratio)
    even = -(-left // max(1, round(steps)))
    return min(self._step_tokens, max(_LEAST, -(-even // 8) * 8))

  def learn(self, decodes: int, prompt_tokens: int, slowest_ms: float) -> None:
    """A step of so many decodes and so many tokens of prompts took so long on the slowest stage."""
    if not prompt_tokens:
      if decodes:
        self._decode_ms = _smoothed(self._decode_ms, slowest_ms)
      return
    if not decodes and prompt_tokens >= _LEAST and self._decode_ms:
      self._token_ms = _smoothed(self._token_ms, max(1e-3, slowest_ms - self._decode_ms) / prompt_tokens)
    self._learn_beside(prompt_tokens, slowest_ms)

  def _learn_beside(self, prompt_tokens: int, slowest_ms: float) -> None:
    usual = self.beside_decodes
    if not self._decode_ms or not usual <= prompt_tokens <= 2 * usual:
      return
    if self._stages == 1:
      allowed_ms = self._decode_ms * _PATIENCE
    else:  # a lap has one frame of decodes and `stages` - 1 of prompts, where it had `stages` of decodes
      allowed_ms = self._decode_ms * (_PATIENCE * self._stages - 1) / (self._stages - 1)
    factor = min(1.25, max(0.75, allowed_ms / max(slowest_ms, 1e-3)))
    self._beside = min(float(self._step_tokens), max(float(_LEAST), self._beside * factor))


def _smoothed(before: float, value: float) -> float:
  return before + _SMOOTH * (value - before) if before else value
