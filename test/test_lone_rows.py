"""onnxruntime computes a lone row with weights of 4 bits by another kernel on some processors: then it is computed twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from exo.inference.engine import LogitsOf
from exo.inference.onnx import decoder
from exo.inference.onnx.engine import OnnxStage
from exo.inference.onnx.lone_rows import lone_rows_differ
from exo.inference.weights.checkpoint import Checkpoint, open_checkpoint
from test.support.stages import Stages

PROMPTS = {1: [5, 9, 2, 7], 2: [3, 3, 8], 3: [1, 2, 3, 4, 5, 6, 7]}


def decoded(stages: Stages, together: bool) -> list[np.ndarray]:
  """The logits of three tokens after each prompt, alone or all three in one step; and of a prompt of one token."""
  for sequence, prompt in PROMPTS.items():
    stages.step([(sequence, 0, prompt)], LogitsOf.LAST)
  rows: list[np.ndarray] = []
  for at in range(3):
    entries = [(sequence, len(prompt) + at, [11 + at]) for sequence, prompt in PROMPTS.items()]
    rows += [stages.step(entries).copy()] if together else [np.concatenate([stages.step([one]) for one in entries])]
  stages.each("drop", 4)
  rows.append(stages.step([(4, 0, [6])]).copy())
  for sequence in (*PROMPTS, 4):
    stages.each("drop", sequence)
  return rows


@pytest.mark.parametrize("cuts", [(), (2, 4)])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "phi3"])
def test_a_token_is_the_same_alone_and_among_others(
    name: str, cuts: tuple[int, ...], goldens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """As this processor wants it, and with rows computed twice in any case."""
  opened = open_checkpoint(goldens / name)
  for doubled in {True, lone_rows_differ()}:
    monkeypatch.setattr(decoder, "lone_rows_differ", lambda doubled=doubled: doubled)
    stages = Stages("onnx", opened, cuts, "4")
    assert all(isinstance(model, OnnxStage) and model.doubles == doubled for model in stages.models)
    last = stages.models[-1]
    assert isinstance(last, OnnxStage) and last.doubles_rows == doubled
    for alone, together in zip(decoded(stages, False), decoded(stages, True), strict=True):
      assert np.array_equal(alone, together)
    stages.close()


def test_weights_of_other_widths_are_not_computed_twice(goldens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  """Their lone rows are as the others on every processor that was tried; the graph stays the one that it would be."""
  monkeypatch.setattr(decoder, "lone_rows_differ", lambda: True)
  opened = open_checkpoint(goldens / "llama")
  for quantize in ("8", "none"):
    stages = Stages("onnx", opened, (3, ), quantize)
    assert not any(isinstance(model, OnnxStage) and model.doubles for model in stages.models)
    for alone, together in zip(decoded(stages, False), decoded(stages, True), strict=True):
      assert np.array_equal(alone, together)
    stages.close()


def test_logits_of_one_token_are_those_among_all(goldens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(decoder, "lone_rows_differ", lambda: True)
  stages = Stages("onnx", open_checkpoint(goldens / "llama"), (), "4")
  every = stages.step([(1, 0, PROMPTS[3])]).copy()
  last = stages.step([(2, 0, PROMPTS[3])], LogitsOf.LAST)
  assert every.shape[0] == 7 and last.shape[0] == 1 and np.array_equal(every[-1:], last)
  stages.close()


def test_a_head_of_another_width_is_not_computed_twice(smollm2: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
  """Layers of 4 bits, a head of 8: a third of this model's weights, and a lone row of it is as the others."""
  monkeypatch.setattr(decoder, "lone_rows_differ", lambda: True)
  stages = Stages("onnx", smollm2, (15, ))
  first, last = stages.models
  assert isinstance(first, OnnxStage) and isinstance(last, OnnxStage)
  assert first.doubles and last.doubles and not last.doubles_rows
  for alone, together in zip(decoded(stages, False), decoded(stages, True), strict=True):
    assert np.array_equal(alone, together)
  stages.close()
