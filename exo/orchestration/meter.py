"""What a node has done since it started, counted where it happens: the source of `/metrics` and of the screens.

Recording costs well under a microsecond, since some of it happens for every token; nothing here is ever reset.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence

# upper bounds; the last bucket has none
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SHORT_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_COUNTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
_LOAD_WINDOW_S = 2.0


class Histogram:
  """Counts of observations by upper bound (inclusive), and their sum."""
  def __init__(self, bounds: Sequence[float]) -> None:
    self.bounds = tuple(bounds)
    self.counts = [0] * (len(self.bounds) + 1)
    self.sum = 0.0

  def observe(self, value: float, times: int = 1) -> None:
    self.counts[bisect_left(self.bounds, value)] += times
    self.sum += value * times

  def cumulative(self) -> list[int]:
    """Observations up to each bound, and all of them last."""
    total, out = 0, []
    for count in self.counts:
      total += count
      out.append(total)
    return out


def _histograms(bounds: Sequence[float]) -> Callable[[], Histogram]:
  return lambda: Histogram(bounds)


class Meter:
  """One node's counts, on its event loop. Keys are label values, in the order that `api/metrics.py` names them."""
  def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
    self._clock = clock
    # as the API's server: (route, method, status)
    self.http_requests: Counter[tuple[str, str, str]] = Counter()
    # as the entry node: (model, outcome), (model,)
    self.requests: Counter[tuple[str, str]] = Counter()
    self.prompt_tokens: Counter[str] = Counter()
    self.generated_tokens: Counter[str] = Counter()
    self.first_token_s: defaultdict[str, Histogram] = defaultdict(_histograms(_SECONDS))
    self.between_tokens_s: defaultdict[str, Histogram] = defaultdict(_histograms(_SHORT_SECONDS))
    self.failovers: Counter[str] = Counter()
    # as a stage: (model,)
    self.compute_s: defaultdict[str, Histogram] = defaultdict(_histograms(_SHORT_SECONDS))
    self.batch_sequences: defaultdict[str, Histogram] = defaultdict(_histograms(_COUNTS))
    self.batch_tokens: defaultdict[str, Histogram] = defaultdict(_histograms(_COUNTS))
    self.frames = 0
    # as a first stage: (model,)
    self.step_s: defaultdict[str, Histogram] = defaultdict(_histograms(_SHORT_SECONDS))
    self.hop_s: defaultdict[str, Histogram] = defaultdict(_histograms(_SHORT_SECONDS))
    # as a member of the ring
    self.peer_events: Counter[str] = Counter()
    self._busy_s = 0.0
    self._load_samples: deque[tuple[float, float]] = deque([(self._clock(), 0.0)])

  def stage_computed(self, model: str, sequences: int, tokens: int, compute_ms: float) -> None:
    """This node's stage of a model has computed one frame."""
    self.frames += 1
    self._busy_s += compute_ms / 1e3
    if sequences:
      self.compute_s[model].observe(compute_ms / 1e3)
      self.batch_sequences[model].observe(sequences)
      self.batch_tokens[model].observe(tokens)

  def step_returned(self, model: str, total_s: float, compute_ms: Sequence[float]) -> None:
    """A frame let out here is through all its stages; what they did not compute was spent on the way between them."""
    self.step_s[model].observe(total_s)
    if len(compute_ms) > 1:
      self.hop_s[model].observe(max(0.0, total_s - sum(compute_ms) / 1e3) / len(compute_ms))

  @property
  def load(self) -> float:
    """The part of the last two seconds in which the device computed, 0..1."""
    now, samples = self._clock(), self._load_samples
    if now - samples[-1][0] >= _LOAD_WINDOW_S / 10:
      samples.append((now, self._busy_s))
    while len(samples) > 1 and now - samples[1][0] >= _LOAD_WINDOW_S:
      samples.popleft()
    since, busy_s = samples[0]
    return min(1.0, (self._busy_s - busy_s) / (now - since)) if now > since else 0.0
