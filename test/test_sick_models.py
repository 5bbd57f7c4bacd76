"""Models that contradict themselves, memory that ends, long contexts, and how a worker finds out whether it still computes."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from exo.errors import EngineError
from exo.inference.engine import Batch, InferenceEngine, StageModel
from exo.inference.engines import load_engine, probe_engine
from exo.inference.proof import ProofCheckpoint, prove
from test.support.stages import Stages

ENGINES = ["dummy", "mlx", "mlx:8", "onnx", "onnx:4", "onnx:none", "tinygrad", "tinygrad:8", "tinygrad:4"]


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
  probe = probe_engine(request.param.partition(":")[0])
  if not probe.available:
    pytest.skip(probe.reason)
  return str(request.param)


# a worker proves itself


def resident_mb() -> float:
  gc.collect()
  return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_line_3_an_engine_that_computes_is_proved_and_nothing_of_it_stays(engine: str) -> None:
  name, _, quantize = engine.partition(":")
  made = load_engine(name)
  prove(made, 1, quantize or None)
  if not Path("/proc/self/statm").exists():
    pytest.skip("this system does not tell what a process holds")
  before = resident_mb()
  for _ in range(20):
    prove(made, 1, quantize or None)
  assert resident_mb() - before < 8


@pytest.mark.parametrize("name", ["mlx", "onnx", "tinygrad"])
def test_line_3_the_proofs_own_numbers_are_right(name: str) -> None:
  """Three engines and numpy reckon the same."""
  if not (probe := probe_engine(name)).available:
    pytest.skip(probe.reason)
  checkpoint, tokens = ProofCheckpoint(), [3, 90, 41, 127, 0, 66, 12]
  stages = Stages(name, checkpoint, quantize="none", max_context=64)
  np.testing.assert_allclose(stages.step([(1, 0, tokens)]), checkpoint.logits(tokens), atol=1e-4)
  stages.close()


def _one_word(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
  logits[-1, 77] = np.nan
  return logits


# what an engine that is broken makes of its logits, and what the proof says
BROKEN: dict[str, tuple[Callable[[npt.NDArray[Any]], npt.NDArray[Any]], str]] = {
    "one is NaN": (_one_word, "numbers that are none"),
    "infinite": (lambda logits: logits * np.inf, "numbers that are none"),
    "zeros": (lambda logits: logits * 0, "wrong numbers: 100% off"),
    "of other tokens": (lambda logits: logits[:, ::-1], "wrong numbers"),
    "too small": (lambda logits: logits * 0.9, "wrong numbers: 10% off"),
    "too few": (lambda logits: logits[:, :-1], "shape"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_line_3_an_engine_that_computes_wrongly_is_found(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
  spoil, said = BROKEN[kind]
  closed: list[StageModel] = []

  def load(*args: Any) -> StageModel:
    model = onnx.load(*args)
    step, close = model.step, model.close
    monkeypatch.setattr(model, "step", lambda batch: spoil(np.array(step(batch))))
    monkeypatch.setattr(model, "close", lambda: closed.append(model) or close())
    return model

  onnx: InferenceEngine = load_engine("onnx")
  with pytest.raises(EngineError, match=said):
    prove(replace(onnx, load=load), 1)
  assert len(closed) == 1


def test_line_3_an_engine_that_raises_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
  dummy = load_engine("dummy")

  def load(*args: Any) -> StageModel:
    model = dummy.load(*args)

    def step(batch: Batch) -> Any:
      raise OSError("no device")

    monkeypatch.setattr(model, "step", step)
    return model

  with pytest.raises(OSError, match="no device"):
    prove(replace(dummy, load=load), 1)
