"""Issue 20, line 4: what an engine's library computes otherwise than a model's authors is said, and another engine comes before it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from exo.inference.families.catalogue import families
from exo.inference.families.known_deviations import FoundDeviation, deviations_of
from exo.inference.offer import EngineOffer, able
from exo.inference.repertoire import Repertoire
from exo.inference.weights.checkpoint import open_checkpoint
from test.support.families import Form, families_folder
from test.support.nodes import NodeProcess, exo


def gguf(kind: str, **metadata: float) -> tuple[FoundDeviation, ...]:
  return deviations_of(kind, True, {key.replace("__", "."): value for key, value in metadata.items()}.get)


def test_line_4_each_has_a_name_an_engine_and_a_sentence() -> None:
  told = [deviation for family in families() for deviation in family.deviations]
  assert len({deviation.name for deviation in told}) == len(told) >= 5
  for deviation in told:
    assert deviation.engine == "llama_cpp" and len(deviation.what.split()) > 5 and deviation.since >= 0


def test_line_4_it_counts_from_a_position_that_the_model_says() -> None:
  selected, = gguf("deepseek32", attention__indexer__top_k=64)
  assert selected.since == 64 and str(selected).endswith("(from position 64 on)")
  unsaid, = gguf("deepseek32")
  assert unsaid.since == 2048
  for odd in (True, -1, "x", 1.5):
    assert deviations_of("glm-dsa", True, {"attention.indexer.top_k": odd}.get)[0].since == 2048


def test_line_4_only_models_that_have_it_are_told() -> None:
  first_mistral = {"block_count": 32, "feed_forward_length": 14336, "context_length": 32768, "rope__freq_base": 10000.0}
  assert [found.name for found in gguf("llama", **first_mistral)] == ["mistral-window"]
  assert not gguf("llama", **first_mistral | {"rope__freq_base": 1e6})  # from v0.2 on there is no window
  assert not gguf("llama") and not gguf("nobody's") and not deviations_of("llama", False, {}.get)
  assert gguf("deepseek2", rope__scaling__yarn_beta_fast=1.0)
  assert not gguf("deepseek2", rope__scaling__yarn_beta_fast=32.0)


def test_line_4_a_name_of_another_version_is_no_fault() -> None:
  assert FoundDeviation("of-another-version",
                        3).known is None and not FoundDeviation("of-another-version", 3).is_of("mlx")


def test_line_4_another_engine_that_has_it_right_comes_first(goldens: Path) -> None:
  facts = open_checkpoint(goldens / "llama").facts
  any_model = Repertoire(any_model=True)
  offers = [EngineOffer(name, "CPU", "", 1, repertoire=any_model) for name in ("llama_cpp", "mlx")]
  assert [offer.name for offer in able(offers, facts)] == ["llama_cpp", "mlx"]
  deviating = replace(facts, deviations=(FoundDeviation("starcoder2-window", 4096), ))
  assert [offer.name for offer in able(offers, deviating)] == ["mlx", "llama_cpp"]


@pytest.mark.skipif(families_folder() is None, reason="the checkpoint of gpt-oss is not on this machine")
def test_line_4_lists_say_it_and_the_log_says_it_once(tmp_path: Path) -> None:
  models = tmp_path / "models"
  Form("gpt_oss", "gguf").lay_out(models)
  node = NodeProcess(
      tmp_path / "node",
      "--model-dir",
      str(models),
      "--inference-engine",
      "llama_cpp",
      "--discovery-module",
      "none",
      node_id="a"
  )
  try:
    node.wait_ready()
    told = node.get("/v1/models/gpt_oss-gguf")[1]["known_deviations"]
    assert len(told) == 1 and told[0].startswith("llama_cpp: ") and "YaRN" in told[0]
    for _ in range(2):
      status, _answer = node.post("/v1/completions", {"model": "gpt_oss-gguf", "prompt": [3, 4, 5], "max_tokens": 2})
      assert status == 200
    assert node.log.count("known deviation") == 1
    assert f"  deviates  gpt_oss-gguf on {told[0]}" in exo(node.home, "status").stdout
  finally:
    node.stop()
