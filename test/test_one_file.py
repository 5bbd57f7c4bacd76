"""Line 5: a plan runs one file, which all of its stages have, whoever holds what under the model's name."""

from __future__ import annotations

import asyncio
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from exo.api.ring_stream import ring_json
from exo.download.content_sample import KnownContents, content_sample
from exo.download.manifest import Manifest, RepoFile
from exo.download.model_library import Holding
from exo.download.model_store import ModelStore
from exo.errors import OtherFilesError, UnsupportedModelError
from exo.inference.engines import probe_engine
from exo.inference.model_facts import ModelFacts
from exo.inference.offer import EngineOffer
from exo.inference.repertoire import Repertoire
from exo.inference.sampling import SamplingParams
from exo.inference.shard import Shard
from exo.inference.weights.checkpoint import open_checkpoint
from exo.model_file import ModelFile
from exo.models import CARDS
from exo.orchestration.file_choice import Candidate, choose
from exo.orchestration.file_identity import comparable, file_of
from exo.orchestration.generation import GenerationSpec
from exo.orchestration.model_catalog import ModelCatalog
from exo.orchestration.model_fit import RingWorker
from exo.orchestration.node import Node
from exo.orchestration.ring_view import file_views
from exo.topology.ring_plan import RingPlan, Stage
from exo.topology.ring_state import WorkerState
from test.support.engine_rings import ring_of, scores
from test.support.families import TOLERANCE, Form, families_folder
from test.support.hub import COMMIT, sha256_of
from test.support.models import put_other_weights
from test.support.nodes import ROOT
from test.support.stores import held_by, hub_here, store

TINY = ROOT / "test" / "data" / "goldens" / "llama"
REPO, OLD = "org/tiny", "89" * 20
MLX = probe_engine("mlx")
IDS = [5, 6, 7, 9, 11, 40, 3, 8]


def other_weights(folder: Path, seed: int) -> Path:
  """The same model with other weights of the same shapes."""
  shutil.copytree(TINY, folder)
  put_other_weights(folder, seed)
  return folder


@asynccontextmanager
async def ring(tmp_path: Path, *shelves: Path | None, engines: Sequence[EngineOffer] = ()) -> AsyncIterator[list[Node]]:
  """Nodes n0, n1, … that share nothing, each with what lies in its shelf, in one process."""
  each = engines or [probe_engine("onnx")] * len(shelves)
  members = [(tmp_path / f"home{i}", shelf, (engine, ))
             for i, (shelf, engine) in enumerate(zip(shelves, each, strict=True))]
  async with ring_of(*members) as nodes:
    yield nodes


async def alone(tmp_path: Path, folder: Path) -> np.ndarray:
  """What a node by itself says of these very files."""
  shelf = tmp_path / f"alone-{uuid.uuid4().hex}"
  shutil.copytree(folder, shelf / "m")
  async with ring(shelf, shelf) as (node, ):
    return await scores(node, "m", IDS)


def by(node: Node, model: str) -> set[str]:
  """The nodes of the plans of a model that are open here."""
  return {node_id for plan in node.plans.plans if plan.model_id == model for node_id in plan.node_ids}


def left_out(node: Node) -> dict[str, str]:
  return {node_id: told[0].reason for node_id, told in node.planner.left_out().items()}


def run(scenario: object) -> None:
  asyncio.run(asyncio.wait_for(scenario(), 100))  # type: ignore[operator]


# what tells files apart


def identity(folder: Path, *, whole: bool = True) -> ModelFile:
  one = ModelStore(folder.parent / "none", models=[folder])
  (entry, ) = (entry for entry in one.listed() if entry.path == folder)
  checkpoint = open_checkpoint(folder)
  try:
    return file_of(checkpoint, one.holding_of_entry(entry), one.contents, whole=whole)
  finally:
    checkpoint.close()


def test_line_5_equal_copies_are_equal_and_other_weights_of_the_same_shapes_are_not(tmp_path: Path) -> None:
  first, copy = tmp_path / "a" / "first", tmp_path / "b" / "copy"
  for folder in (first, copy):
    shutil.copytree(TINY, folder)
  os.utime(copy / "model.safetensors", (1, 1))
  other = other_weights(tmp_path / "c" / "other", 1)
  assert identity(first).is_same(identity(copy)) and identity(first).key == identity(copy).key
  assert identity(first).headers == identity(other).headers
  assert identity(first).is_same(identity(other)) is False and identity(first).key != identity(other).key
  stages = (Stage("n", Shard("m", 0, 5, 6), "cpu"), )
  assert len({RingPlan("m", "e", stages, identity(of)).plan_id for of in (first, copy, other)}) == 2


def test_line_5_a_large_file_is_told_from_others_by_pieces_of_it(tmp_path: Path) -> None:
  size = 200 * 2**20
  files = []
  for name, at in (("a", 0), ("b", 0), ("c", 1), ("d", size - 1)):
    files.append(tmp_path / name)
    with files[-1].open("wb") as file:
      file.truncate(size)
      file.seek(at)
      file.write(b"\1" if at else b"\0")
  samples = [content_sample(file) for file in files]
  assert samples[0] == samples[1] and len(set(samples)) == 3
  known = KnownContents()
  assert known.sample(files[0]) == samples[0]
  with files[0].open("r+b") as file:
    file.write(b"\2")
  assert known.sample(files[0]) not in samples


def test_line_5_a_copy_of_the_users_own_is_the_hubs_file_if_it_has_its_hash(tmp_path: Path) -> None:
  copy, other = tmp_path / "copy", other_weights(tmp_path / "other", 1)
  shutil.copytree(TINY, copy)
  weights = TINY / "model.safetensors"
  manifest = Manifest("m", REPO, COMMIT, (RepoFile(weights.name, weights.stat().st_size, sha256_of(weights)), ))
  checkpoint = open_checkpoint(TINY)
  # of a hub's file of which only the header is here nothing but the hashes is known
  hubs = file_of(checkpoint, Holding(manifest, TINY), KnownContents(), whole=False)
  assert hubs.hashes and not hubs.sample and hubs.source == REPO and hubs.revision == COMMIT
  for folder, same in ((copy, True), (other, False)):
    own, contents = identity(folder), KnownContents()
    assert own.is_same(hubs) is None
    one = ModelStore(tmp_path / "none", models=[folder])
    found = comparable(own, hubs, open_checkpoint(folder), one.holding(folder.name), contents)  # type: ignore[arg-type]
    assert found.is_same(hubs) is same and hubs.is_same(found) is same
    # and one that is whole is compared without all of it being read
    assert file_of(checkpoint, Holding(manifest, TINY), contents, whole=True).is_same(own) is same


# rings whose nodes hold different files under one name


def test_line_5_a_folder_of_other_weights_is_left_out_and_never_mixed_in(tmp_path: Path) -> None:
  shelves = [tmp_path / f"shelf{i}" for i in range(3)]
  shutil.copytree(TINY, shelves[0] / "mine")
  shutil.copytree(TINY, shelves[1] / "mine")
  other_weights(shelves[2] / "mine", 1)

  async def scenario() -> None:
    expected, others = await alone(tmp_path, TINY), await alone(tmp_path, shelves[2] / "mine")
    assert not np.allclose(expected, others, atol=0.1)
    async with ring(tmp_path, *shelves) as nodes:
      for entry in (0, 2, 1):
        found = await scores(nodes[entry], "mine", IDS)
        assert np.allclose(found, others if entry == 2 else expected, atol=0.02)
        assert by(nodes[entry], "mine") >= ({"n2"} if entry == 2 else {"n0", "n1"})
      assert "other files under the name mine" in left_out(nodes[0])["n2"]
      files = {node: {plan.file.key for plan in node.plans.plans} for node in nodes}
      assert not files[nodes[0]] & files[nodes[2]]

  run(scenario)


async def tokens_of(node: Node, model: str, count: int, lose: Node | None = None) -> list[int]:
  """Greedy ones; `lose` ends after the third."""
  spec = GenerationSpec(uuid.uuid4().hex, tuple(IDS), count, frozenset(), SamplingParams(temperature=0))
  found: list[int] = []
  async with node.generation(spec, await node.model(model)) as generation:
    async for delivery in generation:
      found += [token.token_id for token in delivery.tokens]
      if lose is not None and len(found) >= 3:
        gone, lose = lose, None
        await gone.stop()
  return found


def test_line_5_a_request_that_loses_a_node_goes_on_with_the_same_file(tmp_path: Path) -> None:
  shelves = [tmp_path / f"shelf{i}" for i in range(4)]
  for shelf in shelves[:3]:
    shutil.copytree(TINY, shelf / "mine")
  other_weights(shelves[3] / "mine", 1)

  async def scenario() -> None:
    async with ring(tmp_path / "one", shelves[0]) as (node, ):
      expected = await tokens_of(node, "mine", 24)
    async with ring(tmp_path, *shelves) as nodes:
      assert await tokens_of(nodes[0], "mine", 24, lose=nodes[2]) == expected
      assert by(nodes[0], "mine") >= {"n0", "n1"} and "n3" not in by(nodes[0], "mine")
      assert len({plan.file.key for plan in nodes[0].plans.plans}) == 1

  run(scenario)


@pytest.mark.parametrize("entry", [0, 1, 2])
def test_line_5_of_a_repository_that_has_moved_all_stages_run_one_revision(tmp_path: Path, entry: int) -> None:
  """n0 has the old one and n1 the new one; n2 holds nothing. Whoever is asked, the others fetch what the plan runs."""
  old = other_weights(tmp_path / "old", 1)
  versions = {0: old, 1: TINY}

  async def scenario() -> None:
    expected = {version: await alone(tmp_path, folder) for version, folder in versions.items()}
    with hub_here({REPO: TINY}, tmp_path) as server:
      server.versions[REPO] = {OLD: old}
      held_by(tmp_path / "home0", REPO, old, revision=OLD)
      held_by(tmp_path / "home1", REPO, TINY)
      async with ring(tmp_path, None, None, None) as nodes:
        found = await scores(nodes[entry], REPO, IDS)
        assert by(nodes[entry], REPO) == {"n0", "n1", "n2"} and not left_out(nodes[entry])
        runs = next(v for v, of in expected.items() if np.allclose(found, of, atol=0.02))
        assert entry == 2 or runs == entry
        assert (tmp_path / f"home{entry}" / "org--tiny").is_dir()
        if entry < 2:  # and what the others had stays what it was
          assert (tmp_path / f"home{1 - entry}" / f"org--tiny@{(OLD, COMMIT)[entry]}").is_dir()
          assert np.allclose(await scores(nodes[1 - entry], REPO, IDS), expected[1 - entry], atol=0.02)

  run(scenario)


def test_line_5_what_a_neighbour_has_of_an_older_version_is_fetched_anew(tmp_path: Path) -> None:
  """n1 has a copy of n0's folder, which has changed since; no hub knows either."""
  shelf = tmp_path / "shelf"
  shutil.copytree(TINY, shelf / "mine")

  async def scenario() -> None:
    with hub_here({}, tmp_path):
      async with ring(tmp_path, shelf, None) as nodes:
        await scores(nodes[0], "mine", IDS)
        assert by(nodes[0], "mine") == {"n0", "n1"}
        shutil.rmtree(shelf / "mine")
        other_weights(shelf / "mine", 1)
        expected = await alone(tmp_path, shelf / "mine")
        await asyncio.sleep(2.1)  # as long as a node believes what it found
        assert np.allclose(await scores(nodes[0], "mine", IDS), expected, atol=0.02)
        assert by(nodes[0], "mine") == {"n0", "n1"} and not left_out(nodes[0])

  run(scenario)


def test_line_5_a_version_that_nobody_gives_is_refused_in_words(tmp_path: Path) -> None:
  async def scenario() -> None:
    with hub_here({REPO: TINY}, tmp_path) as server:
      catalog = ModelCatalog(store(tmp_path / "home"))
      own = (await catalog.info(REPO)).file
      assert await catalog.checkpoint(REPO, replace(own, revision=OLD, name="x")) is await catalog.checkpoint(REPO)
      for wanted in (
          replace(own, hashes="1" * 64,
                  revision=OLD), replace(own, hashes="1" * 64, source="",
                                         revision="abc"), replace(own, hashes="1" * 64, source="", revision="../..")
      ):
        with pytest.raises(OtherFilesError, match="other files"):
          await catalog.checkpoint(REPO, wanted)
      server.forget()
      assert not await catalog.is_replaced(REPO, own)
      assert await catalog.is_replaced(REPO, replace(own, hashes="1" * 64, revision="77" * 20)) and not server.requests
      await catalog.store.close()

  run(scenario)


# rings whose engines read different files

needs_families = pytest.mark.skipif(
    families_folder() is None or not MLX.available, reason="the checkpoints of families, or MLX, are not here"
)


def form(folder: Path, family: str, kind: str) -> Path:
  """A family's weights in one form as a model of that folder."""
  return Form(family, kind).lay_out(folder.parent / "forms").rename(folder)


@needs_families
def test_line_5_a_mixed_ring_takes_the_file_that_all_of_its_workers_can_read(tmp_path: Path) -> None:
  """n0 has safetensors, which n1's engine does not read; n1 has a GGUF file, which both do; n2 has nothing."""
  shelves = [tmp_path / f"shelf{i}" for i in range(2)]
  for shelf, kind in zip(shelves, ("hub", "gguf"), strict=True):
    form(shelf / "mine", "phi4", kind)
  ggufs = replace(MLX, repertoire=replace(MLX.repertoire, containers=("gguf", )))

  async def scenario() -> None:
    async with ring(tmp_path, *shelves, None, engines=(MLX, ggufs, ggufs)) as nodes:
      (ids, reference), *_ = Form("phi4", "gguf").references()
      for node in nodes:
        found = await scores(node, "mine", ids)
        assert np.abs(found - reference).max() <= TOLERANCE
        assert by(node, "mine") == {"n0", "n1", "n2"} and not left_out(node)
      assert len({plan.plan_id for node in nodes for plan in node.plans.plans}) == 1
      (shown, ) = file_views(nodes[0])
      assert shown.file.name == "model.gguf" and "3 of 3 workers can read it, and it is on n1" in shown.why
      (told, ) = ring_json(nodes[0])["files"]
      assert (told["model"], told["name"], told["why"]) == ("mine", "model.gguf", shown.why)
      assert "of model.safetensors" in shown.why and "1 of 3 workers can read it, and it is on n0" in shown.why

  run(scenario)


@needs_families
def test_line_5_a_file_that_no_engine_reads_gives_way_to_another_nodes(tmp_path: Path) -> None:
  """This engine reads the family's safetensors and not its GGUF file."""
  shelves = [tmp_path / f"shelf{i}" for i in range(2)]
  for shelf, kind in zip(shelves, ("gguf", "hub"), strict=True):
    form(shelf / "mine", "granite", kind)

  async def scenario() -> None:
    async with ring(tmp_path / "alone", shelves[0], engines=(MLX, )) as (node, ):
      with pytest.raises(UnsupportedModelError, match="safetensors"):
        await scores(node, "mine", [5, 6, 7])
    async with ring(tmp_path, *shelves, engines=(MLX, MLX)) as nodes:
      (ids, reference), *_ = Form("granite", "hub").references()
      for node in nodes:
        assert np.abs(await scores(node, "mine", ids) - reference).max() <= TOLERANCE
        assert by(node, "mine") == {"n0", "n1"}

  run(scenario)


@needs_families
def test_line_5_a_registered_model_is_run_in_a_format_that_is_here_and_that_all_can_read(tmp_path: Path) -> None:
  """n0 has the GGUF file of a model whose safetensors n1's engine does not read."""
  card = CARDS["phi-4-mini"]
  repos = {
      source.repo: form(tmp_path / kind, "phi4", hub)
      for kind, hub in (("safetensors", "hub"), ("gguf", "gguf"))
      for source in (card.repos[kind], )
  }
  ggufs = replace(MLX, repertoire=replace(MLX.repertoire, containers=("gguf", )))

  async def scenario() -> None:
    with hub_here(repos, tmp_path) as server:
      async with ring(tmp_path, None, None, engines=(MLX, ggufs)) as nodes:
        holder = nodes[0].catalog.store
        await holder.fetch(holder.find("phi-4-mini:gguf"))
        server.forget()
        (ids, reference), *_ = Form("phi4", "gguf").references()
        for node in nodes:
          assert np.abs(await scores(node, "phi-4-mini", ids) - reference).max() <= TOLERANCE
          assert by(node, "phi-4-mini") == {"n0", "n1"} and not left_out(node)
          assert {plan.file.source for plan in node.plans.plans} == {card.repos["gguf"].repo}
        assert not [path for path in (tmp_path / "home0").iterdir() if "@" in path.name]  # it is there already
        assert server.sent["model.safetensors"] < (repos[card.source.repo] / "model.safetensors").stat().st_size / 2

  run(scenario)


def candidate(name: str, container: str, holders: tuple[str, ...] = (), *, first: bool = False) -> Candidate:
  facts = ModelFacts("llama", "llama", container, frozenset({"F32"}), frozenset(), frozenset(), 0)
  return Candidate(ModelFile(name, "h", name=name), facts, holders, first)


def ring_worker(node_id: str, *containers: str) -> RingWorker:
  offer = EngineOffer("e", "d", "of a test", 1, repertoire=Repertoire(("llama", ), containers=containers))
  return RingWorker(WorkerState(node_id, "cpu", 1, 10, 10), (offer, ))


def test_line_5_which_file_is_chosen() -> None:
  both, ggufs = [ring_worker("a"), ring_worker("b")], [ring_worker("a"), ring_worker("b", "gguf")]
  own, other = candidate("own", "safetensors", first=True), candidate("other", "gguf", ("b", "c"))
  third = candidate("third", "gguf", ("b", ))
  assert choose("m", [own], both).file == own.file
  for order in ([own, other, third], [third, other, own]):
    assert choose("m", order, both).file == own.file  # what is here stays what is run, where all can
    assert choose("m", order, ggufs).file == other.file  # and else what most can, and have
  assert choose(
      "m", [own, other], both, other.file
  ).file == other.file  # nor does a node that leaves change what is run
  assert choose("m", [own, other], ggufs, own.file).file == other.file
  assert choose("m", [third, other], ggufs).why == choose("m", [other, third], ggufs).why


def test_line_5_other_nodes_do_not_say_what_a_repositorys_name_means(tmp_path: Path) -> None:
  """Three nodes have folders of the name of a hub's model, of which one is a copy of it; a fourth fetches it: from the hub."""
  shelves = [tmp_path / f"shelf{i}" for i in range(3)]
  for shelf in shelves[:2]:
    other_weights(shelf / "smollm3-3b", 1)
  shutil.copytree(TINY, shelves[2] / "smollm3-3b")

  async def scenario() -> None:
    with hub_here({"HuggingFaceTB/SmolLM3-3B": TINY}, tmp_path):
      async with ring(tmp_path, *shelves, None) as nodes:
        model = await nodes[3].model("smollm3-3b")
        assert model.file.source == "HuggingFaceTB/SmolLM3-3B" and not model.file.is_same(
            identity(shelves[0] / "smollm3-3b")
        )
        await scores(nodes[3], "smollm3-3b", IDS)
        assert by(nodes[3], "smollm3-3b") == {"n2", "n3"} and left_out(nodes[3]).keys() == {"n0", "n1"}

  run(scenario)
