"""Which file a name stands for: by the engines that are here, by what is here, and by what the name says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from exo.download.manifest import Manifest, RepoFile, manifest_from_json, quantizations_in
from exo.download.model_state import model_state
from exo.download.model_store import ModelStore
from exo.errors import ExoError
from exo.gguf_names import quantization_of
from exo.inference.engines import offered_engines, probe_engine
from exo.inference.offer import EngineOffer, in_order
from exo.model_card import HubSource, ModelCard, WheelSource
from exo.models import CARDS
from exo.orchestration.form_choice import FormChoice, sources_for
from exo.orchestration.model_catalog import ModelCatalog
from exo.orchestration.model_fit import RingWorker
from exo.topology.ring_state import WorkerState
from test.support.engine_rings import ring_of, scores
from test.support.hub import hub
from test.support.nodes import NodeProcess, exo, free_port
from test.support.published import Published
from test.support.stores import Ring, hub_here, store

MB = 2**20
LLAMA_CPP, MLX, ONNX = (probe_engine(name) for name in ("llama_cpp", "mlx", "onnx"))
APPLES = replace(MLX, rank=40, devices=("gpu0", ))  # as it is offered on a Mac
HERE = offered_engines("auto")
NAME = "llama-3.2-3b"
CARD = CARDS[NAME]

needs_engines = pytest.mark.skipif(not (LLAMA_CPP.available and MLX.available), reason="llama.cpp or MLX is not here")


def workers(*offers: EngineOffer, mb: int = 10**8) -> list[RingWorker]:
  return [RingWorker(WorkerState("n0", "cpu", 0, mb * MB, mb * MB), in_order(offers))]


def forms(card: ModelCard, *offers: EngineOffer) -> list[str]:
  return [card.taken_from(source).format for source in sources_for(card, workers(*offers))]


def ready(home: Path, *offers: EngineOffer) -> ModelStore:
  one = store(home)
  one.prefer(FormChoice(lambda: workers(*offers)))
  return one


def run(scenario: Callable[[], Awaitable[None]]) -> None:
  asyncio.run(asyncio.wait_for(scenario(), 300))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
  return Published(tmp_path_factory.mktemp("published"))


# the decision


@needs_engines
def test_line_10_the_engine_that_would_run_it_says_which_form() -> None:
  assert forms(CARD, LLAMA_CPP, MLX, ONNX) == ["gguf", "mlx", "safetensors"]
  assert forms(CARD, LLAMA_CPP) == ["gguf"]  # it reads nothing else
  assert forms(CARD, ONNX) == ["gguf", "mlx", "safetensors"]
  assert forms(CARD, APPLES, LLAMA_CPP) == forms(CARD, APPLES) == ["mlx", "gguf", "safetensors"]
  # what MLX reads of a family may be its own form only
  assert forms(CARDS["glm-4.7-flash"], APPLES) == ["mlx", "safetensors"]
  assert forms(CARDS["glm-4.7-flash"], APPLES, LLAMA_CPP)[0] == "mlx"
  assert forms(CARDS["gpt-oss-20b"], APPLES) == ["mlx", "safetensors"]  # both packed as MXFP4
  assert forms(CARDS["gpt-oss-20b"], APPLES, LLAMA_CPP) == ["mlx", "safetensors", "gguf"]
  assert forms(CARDS["glm-4.7-flash"], ONNX) == []
  assert forms(CARDS["deepseek-v3.2"], APPLES) == ["mlx"]  # published in FP8, which no engine here reads
  assert isinstance(sources_for(CARDS["smollm2-135m"], workers(APPLES, LLAMA_CPP))[0], WheelSource)
  assert forms(replace(CARD, kind=None), LLAMA_CPP) == ["gguf"]  # of what nobody has said what it is
  assert forms(replace(CARD, kind=None), APPLES) == ["mlx", "gguf", "safetensors"]


@needs_engines
def test_line_10_engines_that_were_measured_change_what_is_taken() -> None:
  now = workers(APPLES, LLAMA_CPP)
  choice = FormChoice(lambda: now)
  assert CARD.taken_from(choice(CARD)[0]).format == "mlx" and choice(CARD) is choice(CARD)
  now = [replace(now[0], engines=now[0].engines[::-1])]
  assert CARD.taken_from(choice(CARD)[0]).format == "gguf"
  now = []
  assert choice(CARD) == ()


def test_line_10_what_a_repository_lists() -> None:
  for name, found in (
      ("Llama-3.2-3B-Instruct-Q4_K_M.gguf", "Q4_K_M"), ("UD-Q4_K_XL/M-UD-Q4_K_XL-00001-of-00003.gguf", "UD-Q4_K_XL"),
      ("gpt-oss-20b-mxfp4.gguf", "MXFP4"), ("BF16/M-BF16-00002-of-00002.gguf", "BF16"), ("m-iq3_xxs.GGUF", "IQ3_XXS"),
      ("model.gguf", ""), ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"), ("M-TQ1_0.gguf", "TQ1_0"), ("Q8_0.gguf", "Q8_0")
  ):  # yapf: disable
    assert quantization_of(name) == found, name
  parts = [RepoFile(f"Q8_0/m-Q8_0-0000{i}-of-00002.gguf", 40) for i in (1, 2)]
  files = [*parts, RepoFile("m-Q4_K_M.gguf", 50), RepoFile("mmproj-F16.gguf", 1), RepoFile("README.md", 1)]
  assert quantizations_in(files) == ("Q4_K_M", "Q8_0")
  told = Manifest("m", "org/m", "1", tuple(files[:1]), ("Q4_K_M", "Q8_0"))
  assert manifest_from_json(told.to_json()).quantizations == ("Q4_K_M", "Q8_0")
  value = json.loads(told.to_json())
  for wrong in (None, 5, ["\x1b[31m", "Q8_0"], ["x"] * 1000):
    found = manifest_from_json(json.dumps(value | {"quantizations": wrong}))
    assert found == told and found.quantizations in ((), ("Q8_0", ))


# names, and what is here


@needs_engines
@pytest.mark.parametrize(("name", "repo", "file"), [
    (NAME, "gguf", "Q4_K_M"), (f"{NAME}:gguf", "gguf", "Q4_K_M"), (f"{NAME}:Q8_0", "gguf", "Q8_0"),
    (f"{NAME}:q8_0", "gguf", "Q8_0"), (f"{NAME}:mlx", "mlx", "model.safetensors"),
    (f"{NAME}:safetensors", "safetensors", "model.safetensors")
])  # yapf: disable
def test_line_10_a_name_takes_its_file_and_nothing_else(
    name: str, repo: str, file: str, published: Published, tmp_path: Path
) -> None:
  async def scenario() -> None:
    with hub_here(published.repos(CARD), tmp_path) as server:
      one = ready(tmp_path / "home", LLAMA_CPP, MLX, ONNX)
      expected = one.find(name)
      assert expected.path is None and expected.card is not None and expected.card.source.repo == CARD.repos[
          repo].repo  # type: ignore[union-attr]
      path = await one.fetch(expected)
      assert file in path.name or (path / file).is_file()
      assert {name
              for name in server.sent if name.endswith((".gguf", ".safetensors"))} == {
                  weights.name.rpartition("/")[2]
                  for weights in one.holding(name).manifest.weights  # type: ignore[union-attr]
              }
      found = one.find(name)
      assert found.path == path and {
          line.split()[1].split("/resolve")[0]
          for line in server.requests if "resolve" in line
      } == {f"/{CARD.repos[repo].repo}"}
      assert model_state(one, found).forms[:3] == tuple(CARD.repos)
      if repo == "gguf":  # its own list says which quantizations there are
        assert set(model_state(one, found).forms[3:]) == set(CARD.quantizations)
      removed = await one.delete(name)
      assert removed.n_bytes > 1000 and one.find(name).path is None
      await one.close()

  run(scenario)


@needs_engines
@pytest.mark.parametrize("form", ["safetensors", "mlx", "Q8_0", "Q4_K_M", "gguf"])
def test_line_10_what_is_here_in_another_form_is_used_without_a_fetch(
    form: str, published: Published, tmp_path: Path
) -> None:
  async def scenario() -> None:
    with hub_here(published.repos(CARD), tmp_path) as server:
      one = ready(tmp_path / "home", LLAMA_CPP, MLX, ONNX)
      await one.fetch(one.find(f"{NAME}:{form}"))
      server.forget()
      entry = one.find(NAME)
      assert entry.path is not None and await one.fetch(entry) == entry.path and not server.requests
      assert (await ModelCatalog(one).checkpoint(NAME)).path == entry.path and not server.requests
      listed = [known.id for known in one.listed() if known.path is not None]
      assert listed == [NAME]  # once, under the name that stands for it
      # a machine whose engine cannot run it takes what it can
      other = ready(tmp_path / "home", LLAMA_CPP)
      found = other.find(NAME)
      assert found.card is not None and (found.path is not None) == (form not in ("safetensors", "mlx"))
      listed = [known.id for known in other.listed() if known.path is not None]
      assert listed == [NAME if found.path else f"{NAME}:{form}"]
      await one.close()

  run(scenario)


@needs_engines
def test_line_10_of_several_forms_the_best_is_used_and_all_go_with_the_name(
    published: Published, tmp_path: Path
) -> None:
  async def scenario() -> None:
    with hub_here(published.repos(CARD), tmp_path) as server:
      one = ready(tmp_path / "home", LLAMA_CPP, MLX, ONNX)
      for form in ("safetensors", "Q8_0", "mlx"):
        await one.fetch(one.find(f"{NAME}:{form}"))
      assert one.find(NAME).card.source == HubSource(
          CARD.repos["gguf"].repo, "main", "Q8_0"
      )  # type: ignore[union-attr]
      assert {known.id for known in one.listed() if known.path} == {NAME, f"{NAME}:safetensors", f"{NAME}:mlx"}
      assert ready(tmp_path / "home", APPLES).find(NAME).card.format == "mlx"  # type: ignore[union-attr]
      assert len(one.holdings(NAME)) == 3
      server.forget()
      await one.fetch(one.find(f"{NAME}:Q4_K_M"))  # who asks for it gets it, whatever is here
      assert server.sent and one.find(f"{NAME}:gguf").path is not None
      await one.delete(f"{NAME}:mlx")
      assert {known.id for known in one.listed() if known.path} > {f"{NAME}:safetensors"}
      await one.delete(NAME)
      assert not [known.id for known in one.listed() if known.stamp]
      assert not [
          folder for folder in (tmp_path / "home").iterdir() if folder.name.startswith(("unsloth", "bartowski"))
      ]
      await one.close()

  run(scenario)


@needs_engines
def test_line_10_what_was_begun_is_gone_on_with(published: Published, tmp_path: Path) -> None:
  """As on a ring, each of whose nodes has some layers."""
  async def scenario() -> None:
    with hub_here(published.repos(CARD), tmp_path) as server:
      one = ready(tmp_path / "home", LLAMA_CPP, MLX, ONNX)
      await one.head(one.find(f"{NAME}:safetensors"))
      entry = one.find(NAME)
      assert entry.card is not None and entry.card.format == "safetensors" and entry.stamp
      server.repos.clear()
      await one.head(entry)
      await one.close()

  run(scenario)


@needs_engines
def test_line_10_where_the_better_form_is_not_there_another_is_taken(published: Published, tmp_path: Path) -> None:
  """Repositories are as they are remembered: one may have been renamed, or ask for consent."""
  async def scenario() -> None:
    repos = published.repos(CARD)
    del repos[CARD.repos["gguf"].repo], repos[CARD.repos["mlx"].repo]
    with hub_here(repos, tmp_path) as server:
      one = ready(tmp_path / "home", LLAMA_CPP, MLX, ONNX)
      path = await one.fetch(one.find(NAME))
      assert (path / "model.safetensors").is_file() and one.find(NAME).path == path
      only = ready(tmp_path / "other", LLAMA_CPP)
      with pytest.raises(ExoError, match=f"no repository {CARD.repos['gguf'].repo}"):
        await only.fetch(only.find(NAME))
      with pytest.raises(ExoError, match=f"no repository {CARD.repos['mlx'].repo}"):  # who asks for it is told
        await one.fetch(one.find(f"{NAME}:mlx"))
      server.faults.status = [503] * 20  # what may pass is no reason for another form
      last = ready(tmp_path / "last", LLAMA_CPP, MLX, ONNX)
      with pytest.raises(ExoError, match="503"):
        await last.head(last.find(NAME))
      assert not list((tmp_path / "last").glob("*/.exo/manifest.json"))
      await asyncio.gather(one.close(), only.close(), last.close())

  run(scenario)


# rings


@needs_engines
@pytest.mark.parametrize("form", ["safetensors", "mlx", "Q8_0"])
def test_line_10_a_neighbours_form_comes_before_the_hubs(form: str, published: Published, tmp_path: Path) -> None:
  async def scenario() -> None:
    with hub_here(published.repos(CARD), tmp_path) as server:
      has = ready(tmp_path / "has", LLAMA_CPP, MLX, ONNX)
      await has.fetch(has.find(f"{NAME}:{form}"))
      server.forget()
      server.repos.clear()  # nor is a hub needed for it
      wants, other = ready(tmp_path / "wants", LLAMA_CPP, MLX, ONNX), ready(tmp_path / "other", LLAMA_CPP)
      Ring({"has": has, "wants": wants, "other": other})
      entry = await wants.find_anywhere(NAME)
      assert entry.card is not None and entry.card.form == form and await wants.is_within_reach(entry)
      path = await wants.fetch(entry)
      assert wants.find(NAME).path == path and not server.sent
      if form in ("safetensors", "mlx"):  # which llama.cpp does not read
        entry = await other.find_anywhere(NAME)
        assert entry.card is not None and entry.card.format == "gguf" and not await other.is_within_reach(entry)
        with pytest.raises(ExoError):
          await other.head(entry)
      await asyncio.gather(has.close(), wants.close(), other.close())

  run(scenario)


@needs_engines
def test_line_10_nodes_that_hold_different_forms_of_a_name_run_one_of_them(
    published: Published, tmp_path: Path
) -> None:
  ids = [5, 6, 7, 9, 11, 40, 3, 8]

  async def scenario() -> None:
    with hub_here(published.repos(CARD), tmp_path) as server:
      for i, form in enumerate(("Q8_0", "mlx", "safetensors")):
        one = ready(tmp_path / f"home{i}", *HERE)
        await one.fetch(one.find(f"{NAME}:{form}"))
        await one.close()
      server.repos.clear()
      members = [(tmp_path / f"home{i}", None, HERE) for i in range(4)]
      async with ring_of(*members) as nodes:
        for node in nodes[:2]:
          found = await scores(node, NAME, ids)
          assert len(found) == len(ids) - 1
        run_files = {plan.file.source for node in nodes for plan in node.plans.plans if plan.model_id == NAME}
        assert run_files and run_files <= {source.repo for source in CARD.repos.values()}

  run(scenario)


# the command line and the routes


@needs_engines
def test_line_10_run_fetches_what_the_engine_here_wants_and_models_shows_it(
    published: Published, tmp_path: Path
) -> None:
  with hub(published.repos(CARD)) as server:
    home, env = tmp_path / "home", {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "PIP_NO_INDEX": "1"}
    flags = ("--listen-port", (port := str(free_port())), "--broadcast-port", port)
    shown = told(exo(home, "models", **env).stdout, NAME)
    assert shown[2:5] == ["Q4_K_M", "1.8", "GB"] and "Q2_K…Q8_0" in shown and "mlx" in shown and "safetensors" in shown
    only = told(exo(home, "models", "--inference-engine", "mlx", **env).stdout, NAME)
    assert only[2] in ("mlx", "Q4_K_M")
    rows = exo(home, "models", NAME, **env).stdout.splitlines()[1:]
    assert [row.split()[0] for row in rows] == [NAME, *(f"{NAME}:{form}" for form in CARD.forms)]
    assert any(row.startswith(f"{NAME}:Q8_0 ") and "3.2 GB" in row for row in rows)
    done = exo(home, "run", NAME, "--prompt", "w1", "--max-tokens", "3", *flags, **env)
    assert done.returncode == 0, done.stderr
    assert {name for name in server.sent if "." in name} == {"Llama-3.2-3B-Instruct-Q4_K_M.gguf"}
    (entry, *_) = json.loads(exo(home, "models", NAME, "--json", **env).stdout)
    assert entry["here"] and entry["form"] == "Q4_K_M" and set(entry["forms"]) == {*CARD.repos, *CARD.quantizations}
    server.forget()
    node = NodeProcess(home, *flags, node_id="n0", env=env)
    try:
      node.wait_ready()
      for name in (NAME, f"{NAME}:Q8_0", f"{NAME}:gguf"):
        assert node.get(f"/v1/models/{name}")[1]["id"] == name
        status, answer = node.chat("w1", model=name, max_tokens=2)
        assert status == 200 and answer["model"] == name, answer
      assert {name for name in server.sent if "." in name} == {"Llama-3.2-3B-Instruct-Q8_0.gguf"}
      body = {"model": f"{NAME}:Q8_0", "prompt": "w1", "max_tokens": 2}
      assert node.post("/v1/completions", body)[0] == 200
      status, answer = node.post("/api/generate", {"model": f"{NAME}:Q8_0", "prompt": "w1", "stream": False})
      assert status == 200, answer
      assert node.chat("w1", model=f"{NAME}:Q9_9", max_tokens=2)[0] == 404
    finally:
      node.stop()
    gone = exo(home, "rm", NAME, **env)
    assert gone.returncode == 0, gone.stderr
    assert not [folder for folder in home.iterdir() if "GGUF" in folder.name]


def told(table: str, name: str) -> list[str]:
  (row, ) = [line.split() for line in table.splitlines() if line.startswith(f"{name} ")]
  return row
