"""Issue 20, line 4: a model that makes nothing of plain English is called random or broken, once for each file, after its first answer."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from exo.inference.engines import offered_engines
from exo.inference.sampling import SamplingParams
from exo.inference.weights.checkpoint import Checkpoint
from exo.orchestration import sense_check
from exo.orchestration.generation import GenerationSpec
from exo.orchestration.node import Node
from exo.orchestration.sense_check import LEAST_GAIN, gains_kept, warning_of, warnings_of
from test.support.engine_rings import engine_ring
from test.support.families import Form
from test.support.nodes import exo, ring, wait_until
from test.support.shaped_models import Shape, write_shaped


def shelf_of_noise(folder: Path) -> Path:
  """With a model of random weights whose vocabulary knows letters."""
  (folder / "shelf").mkdir()
  return write_shaped(folder / "shelf" / "noise.gguf", Shape(3, 256, 512, 4, 2, 600, 2048), "Q8_0").parent


async def answered(node: Node, model: str) -> None:
  spec = GenerationSpec("first", (1, 2, 3, 4), 2, frozenset(), SamplingParams(temperature=0))
  async with node.generation(spec, await node.model(model)) as generation:
    async for _ in generation:
      pass


@pytest.mark.parametrize("count", [1, 2])
def test_line_4_a_random_model_is_called_so_once(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(sense_check, "_QUIET_S", 0.2)
  shelf = shelf_of_noise(tmp_path)
  lines: list[str] = []
  monkeypatch.setattr(sense_check, "log", lambda level, text, *values: lines.append(text % values))

  async def scenario() -> None:
    async with engine_ring(tmp_path, shelf, *[offered_engines("auto")] * count) as nodes:
      node = nodes[-1]
      assert not node.sense.warnings()
      for _ in range(2):
        await answered(node, "noise")
        async with asyncio.timeout(20):
          while not node.sense.warnings():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
      assert gains_kept(node.config.state_dir).keys() == node.sense.warnings().keys()

  asyncio.run(scenario())
  assert len(lines) == 1 and "noise: plain English" in lines[0] and "random or broken" in lines[0]

  async def later() -> None:
    """Whoever starts again knows it, asks nothing, and says so at the first answer."""
    async with engine_ring(tmp_path, shelf, *[offered_engines("auto")] * count) as nodes:
      node = nodes[-1]
      assert node.sense.warnings()
      node.sense._generate = None  # type: ignore[assignment]
      for _ in range(2):
        await answered(node, "noise")
      await asyncio.sleep(1)

  asyncio.run(later())
  assert len(lines) == 2 and lines[1] == lines[0]


def test_line_4_nobody_waits_for_it_and_who_is_busy_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(sense_check, "_QUIET_S", 0.5)
  shelf = shelf_of_noise(tmp_path)

  async def scenario() -> None:
    async with engine_ring(tmp_path, shelf, offered_engines("auto")) as (node, ):
      asked: list[str] = []
      generate = node.sense._generate
      node.sense._generate = lambda spec, model: asked.append(model.id) or generate(
          spec, model
      )  # type: ignore[func-returns-value]
      spec = GenerationSpec("long", (1, 2, 3, 4), 400, frozenset(), SamplingParams(temperature=0))
      await answered(node, "noise")
      async with node.generation(spec, await node.model("noise")) as generation:
        async for _ in generation:
          assert not asked
      while not node.plans.idle:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
      await node.plans.close_model("noise")  # nothing is loaded for it
      await asyncio.sleep(2)
      assert not asked and not node.sense.warnings()

  asyncio.run(scenario())


def test_line_4_a_model_that_knows_english_is_not_warned_of(
    smollm2: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setattr(sense_check, "_QUIET_S", 0.2)
  (tmp_path / "shelf" / "smol").mkdir(parents=True)
  (tmp_path / "shelf" / "smol" / smollm2.path.name).symlink_to(smollm2.path)

  async def scenario() -> None:
    async with engine_ring(tmp_path, tmp_path / "shelf", offered_engines("auto")) as (node, ):
      await answered(node, "smol")
      async with asyncio.timeout(30):
        while not (kept := gains_kept(node.config.state_dir)):  # noqa: ASYNC110
          await asyncio.sleep(0.05)
      (gain, ) = kept.values()
      assert gain > 6 and not node.sense.warnings()  # chance is 10.8 nats below certainty here

  asyncio.run(scenario())


def test_line_4_status_and_models_show_what_is_wrong(tmp_path: Path) -> None:
  flags = ("--model-dir", str(shelf_of_noise(tmp_path)))
  with ring(tmp_path / "home", 1, *flags) as (node, ):
    asked = {"model": "noise", "prompt": [1, 2, 3], "max_tokens": 1, "temperature": 0}
    assert node.post("/v1/completions", asked)[0] == 200

    def told() -> list[dict[str, Any]]:
      return [model for model in node.get("/v1/models")[1]["data"] if model["warning"]]

    (model, ) = wait_until(told, 30, "a warning")
    assert model["id"] == "noise" and "random or broken" in model["warning"]
    shown = exo(tmp_path / "home", "status").stdout
    assert "warning   noise: plain English is" in shown
    listed = exo(tmp_path / "home", "models", *flags)
    assert "noise: plain English is" in listed.stderr + listed.stdout


def test_line_4_a_vocabulary_without_the_words_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(sense_check, "_QUIET_S", 0.1)
  Form("granite", "hub").lay_out(tmp_path / "shelf")

  async def scenario() -> None:
    async with engine_ring(tmp_path, tmp_path / "shelf", offered_engines("auto")) as (node, ):
      await answered(node, "granite-hub")
      await asyncio.sleep(1)
      assert not gains_kept(node.config.state_dir) and not node.sense.warnings()

  asyncio.run(scenario())


def test_line_4_what_is_kept_is_read_with_care(tmp_path: Path) -> None:
  assert gains_kept(tmp_path) == {}
  for odd in ("", "[]", "{", '{"a": "b"}', '{"a": null}', "[" * 5000, '{"a": 1e999}'):
    (tmp_path / "sense.json").write_text(odd)
    assert gains_kept(tmp_path) == {}
  (tmp_path / "sense.json").write_text(json.dumps({"good": 7.5, "random": -0.2, "odd": True}))
  assert gains_kept(tmp_path) == {"good": 7.5, "random": -0.2}
  assert list(warnings_of(gains_kept(tmp_path))) == ["random"]
  assert warning_of(LEAST_GAIN) == "" and "0.49 nats" in warning_of(0.49) and "less likely" in warning_of(-3.0)
