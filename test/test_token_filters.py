"""Issue 21, line 9: the samplers that local servers know beside OpenAI's, each by what it leaves out."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest

from exo.inference.dry import DryParams, dry_penalties
from exo.inference.sampling import Sampler, SamplingParams
from exo.inference.shard import Shard
from exo.inference.token_filters import Mirostat, typical, without_top_choices
from exo.networking.grpc.request_codec import request_in, request_out
from exo.networking.messages import Request, TokenDelivery
from exo.orchestration.generation import Generation, GenerationSpec
from exo.orchestration.sequence import RunningSequence
from exo.topology.ring_plan import RingPlan, Stage
from test.test_sampling import LOGITS, draws

FLAT = np.log(np.linspace(1, 3, 200, dtype=np.float32))


def test_21_line_9_typical_p_keeps_what_is_nearest_to_the_entropy() -> None:
  probabilities = np.array([0.5, 0.25, 0.125, 0.125])  # 1.75 bits: 0.25 (2 bits) is nearest, then 0.5 (1 bit)
  assert typical(probabilities, 0.2).tolist() == [False, True, False, False]
  assert typical(probabilities, 0.7).tolist() == [True, True, False, False]
  assert typical(probabilities, 1.0).all()
  assert 0 not in np.flatnonzero(draws(SamplingParams(temperature=1.0, typical_p=0.2), 500))


def test_21_line_9_xtc_leaves_out_the_top_choices_but_for_the_last() -> None:
  assert without_top_choices(np.array([0.4, 0.3, 0.2, 0.1]), 0.15).tolist() == [False, False, True, True]
  assert without_top_choices(np.array([0.9, 0.05, 0.05]), 0.15).all()  # one alone stays
  always = SamplingParams(temperature=1.0, xtc_probability=1.0, xtc_threshold=0.15)
  assert set(np.flatnonzero(draws(always))) == {2, 3, 4}
  half = draws(SamplingParams(temperature=1.0, xtc_probability=0.5, xtc_threshold=0.15))
  assert half[0] == pytest.approx(0.2, abs=0.03)


def test_21_line_9_dry_penalizes_what_would_go_on_with_a_repetition() -> None:
  params = DryParams(1.0, 2.0, 2)
  ids, losses = dry_penalties(params, [1, 2, 3, 9, 1, 2])
  assert (ids.tolist(), losses.tolist()) == ([3], [1.0])
  ids, losses = dry_penalties(params, [7, 1, 2, 3, 9, 7, 1, 2])
  assert (ids.tolist(), losses.tolist()) == ([3], [2.0])
  assert dry_penalties(params, [1, 2, 3, 9, 4, 2])[0].size == 0  # a repetition of one token
  assert dry_penalties(DryParams(1.0, 2.0, 2, breakers=(1, )), [7, 1, 2, 3, 9, 7, 1, 2])[0].size == 0
  assert dry_penalties(DryParams(1.0, 2.0, 2, last_n=3), [1, 2, 3, 9, 1, 2])[0].size == 0
  assert dry_penalties(params, [])[0].size == dry_penalties(params, [5])[0].size == 0
  _, losses = dry_penalties(DryParams(100.0, 100.0, 1), [4] * 5000)
  assert np.isfinite(losses).all()
  sampler = Sampler(SamplingParams(dry=DryParams(5.0, 2.0, 2)))
  sampler.note_prompt([8, 9, 0, 7, 8, 9])
  assert sampler.sample(LOGITS.copy(), 6).token_id == 1  # the likeliest would make the sequence repeat itself


@pytest.mark.parametrize("seed", range(5))
def test_21_line_9_dry_finds_what_a_slow_search_finds(seed: int) -> None:
  draw = np.random.default_rng(seed)
  history, breakers = draw.integers(0, 4, 80).tolist(), (3, )
  expected: dict[int, int] = {}
  for i in range(len(history) - 1):
    n = 0
    while n <= i and history[i - n] == history[-1 - n] and history[-1 - n] not in breakers:
      n += 1
    if n >= 2:
      expected[history[i + 1]] = max(n, expected.get(history[i + 1], 0))
  ids, losses = dry_penalties(DryParams(1.0, 2.0, 2, breakers=breakers), history)
  assert {int(i): round(math.log2(x)) + 2 for i, x in zip(ids, losses, strict=True)} == expected


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("tau", [2.0, 4.0])
def test_21_line_9_mirostat_holds_the_surprise(version: int, tau: float) -> None:
  logits = (-1.2 * np.log(np.arange(1, 5001))).astype(np.float32)  # Zipf's law
  probabilities = np.exp(logits) / np.exp(logits).sum()
  sampler = Sampler(SamplingParams(temperature=1.0, seed=4, mirostat=version, mirostat_tau=tau, mirostat_eta=0.1))
  drawn = [sampler.sample(logits.copy(), i) for i in range(3000)]
  surprise = np.mean([-math.log2(probabilities[token.token_id]) for token in drawn[500:]])
  # the surprise that is held is among the tokens that stay, which is less than among all
  assert tau - 0.5 < surprise < tau + 1.5
  assert all(token.mu for token in drawn)


def test_21_line_9_mirostat_at_least_draws_something() -> None:
  for version in (1, 2):
    one = Mirostat(version, 0.0, 1.0, -50.0)
    assert one.keeps(np.array([0.5, 0.5]), 2) == 1
    assert one.keeps(np.array([1.0]), 1) == 1
  greedy = Sampler(SamplingParams(mirostat=2))
  assert greedy.sample(LOGITS.copy(), 0).token_id == 0


@pytest.mark.parametrize("version", [1, 2])
def test_21_line_9_mirostat_goes_on_elsewhere_with_its_state(version: int) -> None:
  params = SamplingParams(temperature=1.0, seed=9, mirostat=version, mirostat_tau=3.0)
  whole = Sampler(params)
  tokens = [whole.sample(FLAT.copy(), i) for i in range(40)]
  later = Sampler(params, mu=tokens[19].mu)
  for token in tokens[:20]:
    later.note_generated(token.token_id)
  assert [later.sample(FLAT.copy(), i) for i in range(20, 40)] == tokens[20:]
  forgetful = Sampler(params)
  assert [forgetful.sample(FLAT.copy(), i) for i in range(20, 40)] != tokens[20:]

  request = Request("r", "n", (1, 2), 60, frozenset(), params)
  sequence = RunningSequence(1, request, 60, [1, 2, 5], 0)
  sequence.mu = tokens[0].mu
  assert request_in(request_out(sequence.again())).mu == tokens[0].mu


def test_21_line_9_the_entry_node_remembers_the_state() -> None:
  asyncio.run(_remembers())


async def _remembers() -> None:
  plan = RingPlan("m", "epoch", (Stage("n0", Shard("m", 0, 7, 8), "cpu"), ))
  spec = GenerationSpec("r", (1, 2), 60, frozenset(), SamplingParams(temperature=1.0, mirostat=2))
  sampler = Sampler(spec.sampling)
  token = sampler.sample(FLAT.copy(), 2)
  generation = Generation(spec, 60)
  generation.begin(plan, "n0")
  generation.take("n0", TokenDelivery("p", "r", 0, 0, (token, )))
  (again, ) = generation.begin(plan, "n0")
  assert again.replay_ids == (token.token_id, ) and again.mu == token.mu != 0


def test_21_line_9_penalties_look_back_as_far_as_is_said() -> None:
  near = Sampler(SamplingParams(repetition_penalty=5.0, penalty_last_n=2))
  near.note_prompt([0, 3, 4])
  assert near.sample(LOGITS.copy(), 3).token_id == 0
  far = Sampler(SamplingParams(repetition_penalty=5.0, penalty_last_n=3))
  far.note_prompt([0, 3, 4])
  assert far.sample(LOGITS.copy(), 3).token_id == 1
  off = Sampler(SamplingParams(frequency_penalty=2.0, penalty_last_n=0))
  assert [off.sample(LOGITS.copy(), i).token_id for i in range(3)] == [0, 0, 0]
