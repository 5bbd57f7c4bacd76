"""How long the steps of one plan take: to size the chunks of prompts, and to show where time goes.

Pure: whoever calls tells the time. All figures in milliseconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

from exo.inference.engine import LogitsOf
from exo.networking.messages import PlanPace, StepResult
from exo.orchestration.step import Step

_RECENT = 512  # steps
_SUM_UP_EVERY = 128  # steps
_SMOOTH = 0.2
_PATIENCE = 2.1  # how many times its pace alone a token may take while prompts are computed
_LEAST_CHUNK = 16
_FIRST_CHUNK = 32


@dataclass(slots=True)
class _Lap:
  """A step on its way. `alone` while no other one was on its way too."""
  started: float
  decodes: int
  prompt_tokens: int
  alone: bool


class Pace:
  """`chunk_tokens` is how much of prompts a step may compute while sequences decode, so that these keep their pace."""
  def __init__(self, stages: int, step_tokens: int) -> None:
    self._stages, self._step_tokens = stages, step_tokens
    self._laps: dict[int, _Lap] = {}
    self._decode_ms = 0.0  # the slowest stage's compute for a step of decodes alone
    self._chunk = float(_FIRST_CHUNK)
    self._compute: list[deque[float]] = [deque(maxlen=_RECENT) for _ in range(stages)]
    self._waited: list[deque[float]] = [deque(maxlen=_RECENT) for _ in range(stages)]
    self._lap_ms: deque[float] = deque(maxlen=_RECENT)
    self._hop_ms: deque[float] = deque(maxlen=_RECENT)
    self._transport_ms: deque[float] = deque(maxlen=_RECENT)
    self._summary: PlanPace | None = None
    self._unsummed = 0  # laps that the summary does not know of

  @property
  def chunk_tokens(self) -> int:
    return min(self._step_tokens, int(self._chunk) // 8 * 8)

  def sent(self, step: Step, now_s: float) -> None:
    """A step with something to compute leaves."""
    if not step.entries:
      return
    prompts = [e for e in step.entries if e.n_tokens > 1 and e.logits != LogitsOf.ALL]  # with all logits: drafts
    prompt_tokens = sum(entry.n_tokens for entry in prompts)
    decodes = len(step.entries) - len(prompts)
    for lap in self._laps.values():
      lap.alone = False
    self._laps[step.number] = _Lap(now_s, decodes, prompt_tokens, not self._laps)

  def returned(self, result: StepResult, now_s: float) -> float | None:
    """The step's lap, in ms; None for a step that is not known."""
    lap = self._laps.pop(result.step, None)
    if lap is None or len(result.compute_ms) != self._stages:
      return None
    lap_ms = (now_s - lap.started) * 1e3
    if lap.decodes and not lap.prompt_tokens:
      self._unsummed += 1
      self._lap_ms.append(lap_ms)
      for stage, (ms, spent) in enumerate(zip(result.compute_ms, result.spent_ms, strict=False)):
        self._compute[stage].append(ms)
        self._waited[stage].append(spent - ms)
      if self._stages > 1:
        self._transport_ms.append((lap_ms - sum(result.spent_ms)) / self._stages)
        if lap.alone:
          self._hop_ms.append((lap_ms - sum(result.compute_ms)) / self._stages)
    self._size_chunks(lap, max(result.compute_ms))
    return lap_ms

  def lost(self, step: int) -> None:
    """A step will not come back."""
    self._laps.pop(step, None)

  def _size_chunks(self, lap: _Lap, slowest_ms: float) -> None:
    if not lap.prompt_tokens:
      self._decode_ms += _SMOOTH * (slowest_ms - self._decode_ms) if self._decode_ms else slowest_ms
      return
    if not self._decode_ms or lap.prompt_tokens < self.chunk_tokens or lap.prompt_tokens > 2 * self.chunk_tokens:
      return
    if self._stages == 1:
      allowed_ms = self._decode_ms * _PATIENCE
    else:  # a lap has one frame of decodes and `stages` - 1 of prompts, where it had `stages` of decodes
      allowed_ms = self._decode_ms * (_PATIENCE * self._stages - 1) / (self._stages - 1)
    factor = min(1.25, max(0.75, allowed_ms / slowest_ms))
    self._chunk = min(float(self._step_tokens), max(float(_LEAST_CHUNK), self._chunk * factor))

  def summary(self, plan_id: str) -> PlanPace:
    """What recent steps of decodes took; while steps are under way, maybe without the latest few."""
    if self._summary is None or self._unsummed >= _SUM_UP_EVERY or (self._unsummed and not self._laps):
      self._summary, self._unsummed = self._summed_up(plan_id), 0
    return self._summary

  def _summed_up(self, plan_id: str) -> PlanPace:
    hop_ms, hop_p99_ms = _quantiles(self._hop_ms, 0.5, 0.99)
    return PlanPace(
        plan_id, _median(self._lap_ms), tuple(_median(ms) for ms in self._compute),
        tuple(_median(ms) for ms in self._waited), hop_ms, hop_p99_ms, _median(self._transport_ms), len(self._hop_ms)
    )


def _median(values: Collection[float]) -> float:
  return _quantiles(values, 0.5)[0]


def _quantiles(values: Collection[float], *fractions: float) -> list[float]:
  """The nearest of the values, not between two of them: this runs at every heartbeat, in the loop that serves the ring,
  where numpy's takes thirty times as long."""
  ordered = sorted(values)
  return [round(ordered[round((len(ordered) - 1) * f)], 3) if ordered else 0.0 for f in fractions]
