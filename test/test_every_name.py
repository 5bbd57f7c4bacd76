"""Every name of the registry, against a hub's double with tiny files laid out as the real ones are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from exo.inference.offer import EngineOffer, suitability
from exo.model_card import ModelCard, WheelSource
from exo.models import CARDS
from exo.orchestration.form_choice import sources_for
from exo.orchestration.model_catalog import ModelCatalog
from exo.orchestration.model_fit import RingWorker
from test.support.families import families_folder
from test.support.hub import hub
from test.support.nodes import exo, free_port
from test.support.published import Published
from test.support.stores import hub_here
from test.test_named_files import APPLES, HERE, LLAMA_CPP, ONNX, needs_engines, ready, run, workers


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
  return Published(tmp_path_factory.mktemp("published"))


@needs_engines
@pytest.mark.skipif(families_folder() is None, reason="the checkpoints of families are not here")
@pytest.mark.parametrize(
    "engines", [
        pytest.param(HERE, id="here"),
        pytest.param((APPLES, LLAMA_CPP), id="mac", marks=pytest.mark.slow),
        pytest.param((ONNX, ), id="onnx"),
        pytest.param((LLAMA_CPP, ), id="llama_cpp", marks=pytest.mark.slow),
        pytest.param((APPLES, ), id="mlx", marks=pytest.mark.slow)
    ]
)
def test_it_must_show_3_every_name_resolves_to_files_that_an_engine_here_runs(
    engines: Sequence[EngineOffer], published: Published, tmp_path: Path
) -> None:
  """Or to none before anything is fetched but its head: what is remembered of a model says so first, and its files then."""
  repos = {repo: path for card in CARDS.values() for repo, path in published.repos(card).items()}
  none: list[str] = []

  async def scenario() -> None:
    with hub_here(dict(repos), tmp_path) as server:
      one = ready(tmp_path / "home", *engines)
      catalog = ModelCatalog(one)
      (worker, ) = workers(*engines)
      for name, card in CARDS.items():
        if isinstance(card.source, WheelSource):
          continue
        server.forget()
        if not sources_for(card, [worker]):
          none.append(name)
          continue
        checkpoint = await catalog.checkpoint(name)
        assert suitability(worker.engines, checkpoint.facts).cannot is None, name
        entry = one.find(name)
        assert entry.card is not None and entry.card.format == sources_for_format(card, worker), name
        if entry.card.format == "gguf":
          default = card.packings.get("gguf", "Q4_K_M")
          assert {default.lower() in path.name.lower() for path in checkpoint_files(checkpoint.path)} == {True}, name
        server.repos.clear()  # the model goes on with what was resolved
        assert one.find(name).card == entry.card
        server.repos.update(repos)
        checkpoint.close()
      await one.close()

  run(scenario)
  if LLAMA_CPP in engines:
    assert none == []
  assert ("gpt-oss-20b" in none) == (LLAMA_CPP not in engines)


def sources_for_format(card: ModelCard, worker: RingWorker) -> str:
  return card.taken_from(sources_for(card, [worker])[0]).format


def checkpoint_files(path: Path) -> Iterator[Path]:
  yield from [path] if path.is_file() else path.glob("*.gguf")


@pytest.mark.skipif(not ONNX.available, reason="onnxruntime is not here")
def test_it_must_show_3_what_no_engine_here_runs_is_told_before_it_is_fetched(
    published: Published, tmp_path: Path
) -> None:
  card = CARDS["glm-4.7-flash"]
  with hub(published.repos(card)) as server:
    env = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "PIP_NO_INDEX": "1"}
    port = str(free_port())
    flags = ("--inference-engine", "onnx", "--listen-port", port, "--broadcast-port", port)
    done = exo(tmp_path / "home", "run", card.id, "--prompt", "Hello", *flags, **env)
    assert done.returncode == 1 and "onnx" in done.stderr and "has no model of type" in done.stderr, done.stderr
    weights = next(path for path in published.repos(card)[card.repos["safetensors"].repo].iterdir()
                   if path.name == "model.safetensors")  # yapf: disable
    assert server.sent["model.safetensors"] < weights.stat().st_size / 4
