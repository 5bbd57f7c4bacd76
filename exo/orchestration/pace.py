"""How long the steps of one plan take, to show where time goes.

Pure: whoever calls tells the time. All figures in milliseconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

from exo.inference.engine import LogitsOf
from exo.networking.messages import StepResult
from exo.networking.peer_messages import PlanPace
from exo.orchestration.prompt_chunks import PromptChunks
from exo.orchestration.step import Step

_RECENT = 512  # steps
_SUM_UP_EVERY = 128  # steps


@dataclass(slots=True)
class _Lap:
  """A step on its way. `alone` while no other one was on its way too."""
  started: float
  decodes: int
  prompt_tokens: int
  alone: bool


class Pace:
  """What it sees of steps, `chunks` learns too."""
  def __init__(self, stages: int, chunks: PromptChunks) -> None:
    self._stages, self._chunks = stages, chunks
    self._laps: dict[int, _Lap] = {}
    self._compute: list[deque[float]] = [deque(maxlen=_RECENT) for _ in range(stages)]
    self._waited: list[deque[float]] = [deque(maxlen=_RECENT) for _ in range(stages)]
    self._lap_ms: deque[float] = deque(maxlen=_RECENT)
    self._hop_ms: deque[float] = deque(maxlen=_RECENT)
    self._transport_ms: deque[float] = deque(maxlen=_RECENT)
    self._fresh: list[tuple[_Lap, StepResult, float]] = []
    self._summary: PlanPace | None = None
    self._unsummed = 0  # laps that the summary does not know of

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
    """The step's lap, in ms; None for a step that is not known. The rest is left for `catch_up`: the ring waits."""
    lap = self._laps.pop(result.step, None)
    if lap is None or len(result.stage_ms) != 2 * self._stages:
      return None
    lap_ms = (now_s - lap.started) * 1e3
    self._chunks.learn(lap.decodes, lap.prompt_tokens, max(result.compute_ms))  # the next step is cut by it
    self._fresh.append((lap, result, lap_ms))
    if len(self._fresh) > _SUM_UP_EVERY:
      self.catch_up()
    return lap_ms

  def catch_up(self) -> None:
    """Take in the steps that have returned since the last time."""
    fresh, self._fresh = self._fresh, []
    for lap, result, lap_ms in fresh:
      compute_ms, spent_ms = result.compute_ms, result.spent_ms
      if lap.decodes and not lap.prompt_tokens:
        self._unsummed += 1
        self._lap_ms.append(lap_ms)
        for stage, (ms, spent) in enumerate(zip(compute_ms, spent_ms, strict=False)):
          self._compute[stage].append(ms)
          self._waited[stage].append(spent - ms)
        if self._stages > 1:
          self._transport_ms.append((lap_ms - sum(spent_ms)) / self._stages)
          if lap.alone:
            self._hop_ms.append((lap_ms - sum(compute_ms)) / self._stages)

  def lost(self, step: int) -> None:
    """A step will not come back."""
    self._laps.pop(step, None)

  def summary(self, plan_id: str) -> PlanPace:
    """What recent steps of decodes took; while steps are under way, maybe without the latest few."""
    self.catch_up()
    enough = min(_SUM_UP_EVERY, max(1, len(self._lap_ms) // 4))
    if self._summary is None or self._unsummed >= enough or (self._unsummed and not self._laps):
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
  """Nearest ranks: numpy's take twice as long, and this runs in the loop that serves the ring."""
  ordered = sorted(values)
  return [round(ordered[round((len(ordered) - 1) * f)], 3) if ordered else 0.0 for f in fractions]
