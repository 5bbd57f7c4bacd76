"""What steps took: summed up when there is time, and right whenever somebody asks."""

import numpy as np

from exo.inference.engine import BatchEntry, LogitsOf
from exo.networking.messages import SequenceToken, StepResult
from exo.orchestration.pace import Pace
from exo.orchestration.prompt_chunks import PromptChunks
from exo.orchestration.step import Step


def step(number: int, tokens: int = 1) -> Step:
  return Step(number, (BatchEntry(1, 5, tokens, LogitsOf.LAST), ), np.zeros(tokens, np.int32), (), ())


def result(number: int, *stage_ms: float) -> StepResult:
  return StepResult("p", number, (SequenceToken(1, 7), ), stage_ms)


def test_a_lap_alone_is_compute_and_hops() -> None:
  pace = Pace(2, PromptChunks(2, 256))
  for number in range(1, 101):
    pace.sent(step(number), number)
    hop_ms = 5.0 if number > 98 else 0.5
    lap_ms = pace.returned(result(number, 3.0, 3.25, 4.0, 4.5), number + (7.0 + 2 * hop_ms) / 1e3)
    assert lap_ms is not None and abs(lap_ms - 7.0 - 2 * hop_ms) < 1e-6
  summary = pace.summary("p")
  assert summary.compute_ms == (3.0, 4.0) and summary.wait_ms == (0.25, 0.5) and summary.laps == 100
  assert (summary.lap_ms, summary.hop_ms, summary.hop_p99_ms) == (8.0, 0.5, 5.0)
  assert summary.transport_ms == 0.125  # of (8 - 3.25 - 4.5) ms, a half


def test_laps_that_share_the_ring_say_nothing_of_hops() -> None:
  pace = Pace(2, PromptChunks(2, 256))
  pace.sent(step(1), 0.0)
  pace.sent(step(2), 0.001)
  pace.returned(result(1, 3.0, 3.0, 4.0, 4.0), 0.008)
  pace.returned(result(2, 3.0, 3.0, 4.0, 8.0), 0.012)
  assert pace.summary("p").laps == 0 and pace.summary("p").lap_ms > 0


def test_steps_that_are_lost_unknown_or_of_another_ring_count_for_nothing() -> None:
  pace = Pace(2, PromptChunks(2, 256))
  pace.sent(step(1), 0.0)
  pace.lost(1)
  pace.sent(step(2), 0.0)
  assert pace.returned(result(1, 1.0, 1.0, 1.0, 1.0), 1.0) is None
  assert pace.returned(result(2, 1.0, 1.0), 1.0) is None
  assert pace.summary("p").lap_ms == 0


def test_prompts_are_learned_from_and_are_in_no_sum() -> None:
  chunks = PromptChunks(2, 256)
  pace = Pace(2, chunks)
  for number in range(1, 400):
    pace.sent(step(number, 1 if number % 2 else 64), number)
    ms = 5.0 if number % 2 else 5.0 + 64 * 0.05
    pace.returned(result(number, ms, ms, ms, ms), number + 0.02)
  assert pace.summary("p").compute_ms == (5.0, 5.0)
  assert chunks.alone(100) > 56, "a token costs little of a step here: half of the prompt a step is best"
