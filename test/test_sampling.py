"""Each sampling parameter does what it says, and randomness depends on seed, choice and position alone."""

import numpy as np
import pytest

from exo.inference.sampling import Sampler, SamplingParams, describe, log_softmax, uniform

LOGITS = np.log(np.array([0.4, 0.3, 0.2, 0.06, 0.04], np.float32))
LOGITS.flags.writeable = False  # a sampler may change what it is given: it gets copies


def draws(params: SamplingParams, count: int = 4000, logits=LOGITS) -> np.ndarray:
  sampler = Sampler(params)
  return np.bincount([sampler._choose(logits, i) for i in range(count)], minlength=len(logits)) / count


def test_temperature_zero_is_greedy() -> None:
  assert Sampler(SamplingParams()).sample(LOGITS.copy(), 0).token_id == 0


def test_temperature_one_follows_the_model() -> None:
  np.testing.assert_allclose(draws(SamplingParams(temperature=1.0, seed=3)), np.exp(LOGITS), atol=0.03)


def test_temperature_flattens_and_sharpens() -> None:
  assert draws(SamplingParams(temperature=2.0))[4] > draws(SamplingParams(temperature=1.0))[4]
  assert draws(SamplingParams(temperature=0.3))[0] > 0.6


@pytest.mark.parametrize(("params", "allowed"), [
    (SamplingParams(temperature=1.0, top_k=2), {0, 1}),
    (SamplingParams(temperature=1.0, top_p=0.69), {0, 1}),
    (SamplingParams(temperature=1.0, top_p=0.71), {0, 1, 2}),
    (SamplingParams(temperature=1.0, top_p=0.0), {0}),
    (SamplingParams(temperature=1.0, min_p=0.45), {0, 1, 2}),
    (SamplingParams(temperature=1.0, top_k=1), {0}),
])
def test_truncation(params: SamplingParams, allowed: set[int]) -> None:
  assert set(np.flatnonzero(draws(params))) == allowed


def test_bias_bans_and_forces() -> None:
  assert Sampler(SamplingParams(logit_bias={0: -100})).sample(LOGITS.copy(), 0).token_id == 1
  assert Sampler(SamplingParams(logit_bias={4: 100})).sample(LOGITS.copy(), 0).token_id == 4
  assert draws(SamplingParams(temperature=1.0, logit_bias={0: -100}))[0] > 0  # _choose alone sees no bias
  sampler = Sampler(SamplingParams(temperature=2.0, logit_bias={0: -100}))
  assert 0 not in {sampler.sample(LOGITS.copy(), i).token_id for i in range(500)}


def test_penalties() -> None:
  frequency = Sampler(SamplingParams(frequency_penalty=0.2))
  tokens = [frequency.sample(LOGITS.copy(), i).token_id for i in range(6)]
  assert tokens[0] == 0 and len(set(tokens)) > 1  # the leader falls behind after two occurrences
  presence = Sampler(SamplingParams(presence_penalty=2.0))
  assert [presence.sample(LOGITS.copy(), i).token_id for i in range(3)] == [0, 1, 2]
  repetition = Sampler(SamplingParams(repetition_penalty=5.0))
  repetition.note_prompt([0])
  assert repetition.sample(LOGITS.copy(), 0).token_id == 1
  unaffected = Sampler(SamplingParams(frequency_penalty=2.0))
  unaffected.note_prompt([0, 0, 0])
  assert unaffected.sample(LOGITS.copy(), 0).token_id == 0


def test_same_seed_same_choice_same_position() -> None:
  a, b = Sampler(SamplingParams(temperature=1.0, seed=9)), Sampler(SamplingParams(temperature=1.0, seed=9))
  ten = [a.sample(LOGITS.copy(), i).token_id for i in range(10, 40)]
  [b.sample(LOGITS.copy(), i) for i in range(10)]  # what was drawn before does not matter
  assert [b.sample(LOGITS.copy(), i).token_id for i in range(10, 40)] == ten
  other = Sampler(SamplingParams(temperature=1.0, seed=10))
  assert [other.sample(LOGITS.copy(), i).token_id for i in range(10, 40)] != ten
  choice = Sampler(SamplingParams(temperature=1.0, seed=9), choice=1)
  assert [choice.sample(LOGITS.copy(), i).token_id for i in range(10, 40)] != ten


def test_uniform_takes_any_int64_seed_and_is_uniform() -> None:
  assert 0 <= uniform(-2**63, 0, 0) < 1
  numbers = [uniform(1, 0, i) for i in range(2000)]
  assert abs(np.mean(numbers) - 0.5) < 0.03 and min(numbers) < 0.01 and max(numbers) > 0.99


def test_log_probabilities() -> None:
  np.testing.assert_allclose(np.exp(log_softmax(LOGITS)).sum(), 1)
  entry = describe(LOGITS, 2, 3)
  assert entry.logprob == pytest.approx(np.log(0.2), abs=1e-6)
  assert [token for token, _ in entry.top] == [0, 1, 2]
  biased = Sampler(SamplingParams(logit_bias={4: 100}, top_logprobs=1)).sample(LOGITS.copy(), 0)
  assert biased.token_id == 4 and biased.logprob == pytest.approx(np.log(0.04), abs=1e-6)  # the model's own
