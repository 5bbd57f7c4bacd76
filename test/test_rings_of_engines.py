"""Models and nodes that leave the choice: every family under `auto`, on one node and two, and a ring of three engines."""

from __future__ import annotations

import asyncio
import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exo.errors import ModelFilesError, UnsupportedModelError
from exo.inference.engines import offered_engines, probe_engine
from exo.inference.offer import choose
from exo.inference.sampling import SamplingParams
from exo.inference.weights.checkpoint import open_checkpoint
from exo.orchestration.generation import GenerationSpec
from exo.orchestration.node import Node
from test.support.engine_rings import engine_ring, scores
from test.support.families import TOLERANCE, Form, all_forms, few_forms, of_tokens
from test.support.nodes import NodeProcess, free_port, wait_until
from test.support.stages import Stages
from test.test_families import OFF, opens

ENGINES = ("onnx", "mlx", "tinygrad")
NOBODYS = "nobodys-hub"  # of a type that no engine knows


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
  """A folder with every family in every form that is here."""
  folder = tmp_path_factory.mktemp("shelf")
  for form in all_forms():
    form.lay_out(folder)
  nobodys = folder / NOBODYS
  shutil.copytree(folder / "granite-hub", nobodys)
  config = json.loads((nobodys / "config.json").read_text())
  (nobodys / "config.json").write_text(json.dumps(config | {"model_type": "nobodys"}))
  return folder


def some_engine_can(form: Form, shelf: Path) -> bool:
  checkpoint = open_checkpoint(shelf / str(form))
  try:
    return choose(offered_engines("auto"), checkpoint.facts) is not None
  finally:
    checkpoint.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("forms", [few_forms(), pytest.param(all_forms(), marks=pytest.mark.slow)], ids=["few", "all"])
def test_line_2_every_family_is_right_or_refused_with_its_reason(
    forms: list[Form], count: int, shelf: Path, tmp_path: Path
) -> None:
  wrong, refused = set(), {}

  async def scenario() -> None:
    async with engine_ring(tmp_path, shelf, *[offered_engines("auto")] * count) as nodes:
      for form in forms:
        for ids, expected in form.references():
          try:
            found = await scores(nodes[-1], str(form), ids)
          except (UnsupportedModelError, ModelFilesError) as error:
            refused[str(form)] = str(error)
            continue
          if not np.abs(found - expected).max() <= OFF.get(str(form), TOLERANCE):
            wrong.add(str(form))

  asyncio.run(scenario())
  print("\n".join(f"{form}: {why}" for form, why in refused.items()))
  assert not wrong
  assert set(refused) == {str(form) for form in forms if not opens(form) or not some_engine_can(form, shelf)}
  for form, why in refused.items():
    assert len(why) > 30, f"{form}: {why}"


@pytest.mark.skipif(not probe_engine("mlx").available, reason="mlx cannot run here")
def test_line_2_what_a_ring_generates_is_near_or_far_as_a_whole(shelf: Path, tmp_path: Path) -> None:
  form = Form("phi3_5_mini", "hub")
  prompt = next(form.references())[0]

  async def generated(node: Node, count: int) -> list[int]:
    spec = GenerationSpec(uuid.uuid4().hex, tuple(prompt), count, frozenset(), SamplingParams(temperature=0))
    async with node.generation(spec, await node.model(str(form))) as generation:
      return [token.token_id async for delivery in generation for token in delivery.tokens]

  async def scenario() -> None:
    async with engine_ring(tmp_path, shelf, *[offered_engines("mlx")] * 2) as nodes:
      stages = Stages("mlx", open_checkpoint(shelf / str(form)), (2, ))
      within = stages.near_context - len(prompt) + 1
      for count in (within, within + 1):
        assert await generated(nodes[0], count) == stages.greedy(prompt, count)
      stages.close()

  asyncio.run(scenario())


@pytest.mark.timeout(120)
@pytest.mark.parametrize("count", [1, 2])
def test_line_2_the_golden_checkpoints_are_right(count: int, goldens: Path, tmp_path: Path) -> None:
  folders = sorted(path for path in goldens.iterdir() if path.is_dir())

  async def scenario() -> None:
    async with engine_ring(tmp_path, goldens, *[offered_engines("auto")] * count) as nodes:
      for folder in folders:
        for ids, logits in zip(np.load(folder / "tokens.npy"), np.load(folder / "logits.npy"), strict=True):
          expected = of_tokens(logits, ids.tolist())
          found = await scores(nodes[-1], folder.name, ids.tolist())
          assert np.abs(found - expected).max() < TOLERANCE, folder.name

  asyncio.run(scenario())


# a ring in which each node has another engine


@pytest.fixture(scope="module")
def three(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[NodeProcess]]:
  if missing := [name for name in ENGINES if not probe_engine(name).available]:
    pytest.skip(f"{missing} cannot run here")
  home, port = tmp_path_factory.mktemp("three"), str(free_port(2))
  flags = ("--listen-port", port, "--broadcast-port", port, "--max-memory", "2000", "--model-dir", str(shelf))
  nodes = [NodeProcess(home, *flags, "--inference-engine", name, node_id=f"with-{name}") for name in ENGINES]
  try:
    for node in nodes:
      node.wait_ready()
    wait_until(lambda: all(len(node.peers()) == 3 for node in nodes), 20, "a ring of three")
    yield nodes
  finally:
    for node in nodes:
      node.stop()


def scored(node: NodeProcess, model: str, ids: list[int]) -> tuple[int, Any]:
  """(status, the log probabilities of all tokens but the first, or the error's message)."""
  asked = {"model": model, "prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 0, "temperature": 0}
  status, body = node.post("/v1/completions", asked)
  if status != 200:
    return status, body["error"]["message"]
  return status, np.array(body["choices"][0]["logprobs"]["token_logprobs"][1:])


def is_right(node: NodeProcess, form: Form) -> None:
  for ids, expected in form.references():
    status, found = scored(node, str(form), ids)
    assert status == 200, found
    assert np.abs(found - expected).max() < TOLERANCE


@pytest.mark.timeout(300)
def test_line_2_what_two_of_three_can_run_is_served_from_every_node_by_those_two(three: list[NodeProcess]) -> None:
  form = Form("qwen3_moe", "hub")
  for node in three:
    is_right(node, form)
  topology = three[1].get("/v1/topology")[1]
  stages = [plan["stages"] for plan in topology["plans"] if plan["model"] == str(form)]
  assert {stage["node_id"] for plan in stages for stage in plan} == {"with-mlx", "with-tinygrad"}
  told = three[0].get("/v1/topology")[1]["ailments"]
  assert [(a["node_id"], a["reason"]) for a in told
          if a["model"] == str(form)] == [("with-onnx", "onnx has no model of type 'qwen3_moe'")]


@pytest.mark.timeout(300)
def test_line_2_what_one_can_run_is_served_by_it_and_what_none_can_names_them_all(three: list[NodeProcess]) -> None:
  for node in three:
    is_right(node, Form("granite", "hub"))
  for node in three:
    status, why = scored(node, NOBODYS, [5, 6, 7])
    assert status == 400 and all(f"{name} " in why for name in ENGINES), why
