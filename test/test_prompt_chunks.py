"""How many tokens of prompts go into a step, against stages whose times are known."""

import pytest

from exo.orchestration.prompt_chunks import PromptChunks


def taught(stages: int, fixed_ms: float, token_ms: float, step_tokens: int = 256) -> PromptChunks:
  """Of a plan whose stages take `fixed_ms` for any step and `token_ms` more for each token of a prompt."""
  chunks = PromptChunks(stages, step_tokens)
  for _ in range(100):
    chunks.learn(1, 0, fixed_ms)
    chunks.learn(0, chunks.beside_decodes, fixed_ms + token_ms * chunks.beside_decodes)
  return chunks


def took_ms(left: int, chunk: int, stages: int, fixed_ms: float, token_ms: float) -> float:
  """A prompt alone on such a ring, simulated stage by stage."""
  done = [0.0] * stages
  while left:
    size = min(chunk, left)
    left -= size
    for stage in range(stages):
      done[stage] = max(done[stage], done[stage - 1] if stage else 0.0) + fixed_ms + token_ms * size
  return done[-1]


@pytest.mark.parametrize("stages", [2, 3, 5])
@pytest.mark.parametrize("left", [100, 500, 2000, 8000])
@pytest.mark.parametrize(("fixed_ms", "token_ms"), [(5.5, 0.8), (5.5, 0.05), (20.0, 4.0)])
def test_a_prompt_alone_takes_little_more_than_with_the_best_chunk(
    stages: int, left: int, fixed_ms: float, token_ms: float
) -> None:
  chosen = took_ms(left, taught(stages, fixed_ms, token_ms).alone(left), stages, fixed_ms, token_ms)
  best = min(took_ms(left, chunk, stages, fixed_ms, token_ms) for chunk in range(16, 257))
  assert chosen <= 1.08 * best


def test_one_stage_takes_all_that_a_step_may() -> None:
  assert taught(1, 5.0, 1.0).alone(2000) == 256
  assert PromptChunks(1, 64).alone(2000) == 64


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_decodes_keep_their_pace_beside_prompts(stages: int) -> None:
  chunks = taught(stages, 20.0, 0.5)
  step_ms = 20.0 + 0.5 * chunks.beside_decodes
  # a turn of the ring: `stages` steps of decodes became one, with prompts in the others
  turn_ms = step_ms if stages == 1 else 20.0 + (stages - 1) * step_ms
  assert turn_ms <= 2.5 * 20.0 * stages
  assert chunks.beside_decodes > 16, "the prompt stands still"


def test_nothing_is_divided_by_before_anything_is_known() -> None:
  chunks = PromptChunks(2, 256)
  assert 16 <= chunks.alone(1) <= chunks.alone(10**6) <= 256
  chunks.learn(0, 64, 50.0)  # a prompt before any decode
  chunks.learn(1, 0, 5.0)
  chunks.learn(0, 32, 0.0)  # a clock that stood still
  assert 16 <= chunks.alone(500) <= 256 and chunks.beside_decodes >= 2


@pytest.mark.parametrize("times", [(5e-324, 1e9), (1e9, 5e-324), (1e-310, 1e9), (0.0, 0.0)])
def test_times_of_a_liar_end_nothing(times: tuple[float, float]) -> None:
  chunks = PromptChunks(2, 256)
  for _ in range(20):
    chunks.learn(1, 0, times[0])
    chunks.learn(0, 64, times[1])
    assert all(16 <= chunks.alone(left) <= 256 for left in (1, 100, 10**6))
    assert 2 <= chunks.beside_decodes <= 256
