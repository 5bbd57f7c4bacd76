"""Which of mlx-lm's architectures can be cut into stages: small ones filled with random numbers, split against whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exo.errors import CacheReuseError, UnsupportedModelError
from exo.inference.mlx.probe import probe
from exo.inference.weights.checkpoint import Checkpoint
from test.support.stages import Stages

if not probe().available:
  pytest.skip(probe().missing, allow_module_level=True)

from exo.inference.mlx import library

library.load_blas()  # before MLX

from test.support.architectures import SmallCheckpoint, architectures, small_arguments  # noqa: E402


def error(a: Any, b: Any) -> float:
  return float(np.linalg.norm(a - b) / np.linalg.norm(b))


EXPECTED = json.loads((Path(__file__).parent / "data" / "mlx_architectures.json").read_text())
FAST = [
    "bailing_moe_v3", "cohere2", "deepseek_v3", "deepseek_v32", "falcon_h1", "gpt2", "gpt_oss", "llama4", "olmo3",
    "stablelm"
]


def agrees_with_its_split(checkpoint: Checkpoint) -> None:
  tokens = np.random.default_rng(0).integers(3, 120, 20).tolist()
  chunks = ((0, 12), (12, 18), (18, 19))
  whole = Stages("mlx", checkpoint)
  expected = [whole.step([(1, a, tokens[a:b])]) for a, b in chunks]
  for cuts in ((2, ), (1, 2, 3)):
    split = Stages("mlx", checkpoint, cuts)
    for (a, b), logits in zip(chunks, expected, strict=True):
      assert error(split.step([(1, a, tokens[a:b])]), logits) < 1e-5


@pytest.mark.parametrize("architecture", FAST)
def test_a_split_equals_the_whole(architecture: str) -> None:
  agrees_with_its_split(SmallCheckpoint(architecture))


def test_what_cannot_be_cut_says_so_by_name_and_runs_whole() -> None:
  checkpoint = SmallCheckpoint("gptj")
  assert Stages("mlx", checkpoint).step([(1, 0, [3, 4, 5])]).shape == (3, 128)
  with pytest.raises(UnsupportedModelError, match="cannot cut models of type 'gptj' into stages"):
    Stages("mlx", checkpoint, (2, ))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_architecture_is_cut_exactly_or_refused_by_name() -> None:
  """`data/mlx_architectures.json` lists which of mlx-lm's can be cut, cannot be, or were not tried for want of a small
  configuration."""
  found: dict[str, list[str]] = {"cut": [], "refused": [], "not tried": []}
  for architecture in architectures():
    try:
      checkpoint = SmallCheckpoint(architecture)
      Stages("mlx", checkpoint).close()
    except Exception:  # noqa: BLE001 - its configuration wants other keys
      found["not tried"].append(architecture)
      continue
    try:
      agrees_with_its_split(checkpoint)
      found["cut"].append(architecture)
    except UnsupportedModelError as refusal:
      assert f"cannot cut models of type {architecture!r}" in str(refusal)
      found["refused"].append(architecture)
  assert found == EXPECTED


def test_line_2_short_rotary_factors_are_minded_where_mlx_lm_ignores_them() -> None:
  """Phi 3.5 MoE with short factors that change nothing: within the original context it is the model without any."""
  half, tokens = small_arguments("phimoe")["hidden_size"] // small_arguments("phimoe")["num_attention_heads"
                                                                                       ] // 2, range(3, 15)
  scaling = {
      "type": "longrope", "short_factor": [1.0] * half, "long_factor": [4.0] * half, "short_mscale": 1.0,
      "long_mscale": 1.5
  }
  plain, scaled = (
      SmallCheckpoint("phimoe", rope_scaling=wanted, original_max_position_embeddings=32) for wanted in (None, scaling)
  )
  entries = [(1, 0, list(tokens))]
  expected, stages = Stages("mlx", plain).step(entries), Stages("mlx", scaled, (2, ))
  assert stages.near_context == 32 and all(model.memory.near_context == 32 for model in stages.models)
  np.testing.assert_allclose(stages.step(entries), expected, atol=1e-4)
  stages.each("drop", 1)
  assert np.abs(stages.step(entries, far=[1]) - expected).max() > 0.01


def test_a_cache_that_cannot_be_shortened_says_so() -> None:
  stages = Stages("mlx", SmallCheckpoint("mamba2"), (2, ))
  tokens = list(range(3, 15))
  first = stages.step([(1, 0, tokens)])
  assert all(model.memory.max_drafting == 0 for model in stages.models)
  with pytest.raises(CacheReuseError, match="cannot shorten the cache of a mamba2 model"):
    stages.each("truncate", 1, 5)
  stages.each("copy", 1, 2, 12)  # all of it can be copied
  a, b = stages.step([(1, 12, [7])]), stages.step([(2, 12, [7])])
  np.testing.assert_array_equal(a, b)
  assert first.shape == (12, 128)
