"""Which tensors a stage needs: one answer for what is fetched, what is planned for and what is read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from exo.download.model_store import ModelStore
from exo.errors import ModelFilesError
from exo.inference.engine import Batch, BatchEntry, LogitsOf
from exo.inference.engines import probe_engine
from exo.inference.shard import Shard
from exo.inference.weights.checkpoint import EMBEDDING, HEAD, Checkpoint, open_checkpoint
from exo.inference.weights.parts import Part, file_spans, needed_names, part_of, shard_tensors
from exo.inference.weights.stage_tensors import StageTensors
from exo.orchestration.model_catalog import ModelCatalog
from exo.topology.model_size import ModelSize
from test.support.stages import Stages
from test.support.stores import hub_here, store

REPO = "org/tiny"
FAMILIES = ["llama", "gemma3_text", "tied with a head", "with towers"]
IDS = np.array([7, 30, 11, 4, 55], np.int32)


def shards(n_layers: int) -> list[Shard]:
  """A first stage, one of the middle and a last one."""
  return [Shard(REPO, 0, 1, n_layers), Shard(REPO, 2, 3, n_layers), Shard(REPO, 4, n_layers - 1, n_layers)]


def write_repository(goldens: Path, family: str, folder: Path) -> Path:
  """A golden, or llama's with what other repositories have besides."""
  source = goldens / (family if (goldens / family).is_dir() else "llama")
  config = json.loads((source / "config.json").read_text())
  tensors = {name: value for file in source.glob("*.safetensors") for name, value in load_file(file).items()}
  if family == "tied with a head":
    config["tie_word_embeddings"] = True
    tensors[HEAD] = tensors[EMBEDDING].copy()
  if family == "with towers":
    rng = np.random.default_rng(1)
    for name in ("vision_tower.encoder.layers.{}.mlp.fc1.weight", "model.visual.blocks.{}.attn.qkv.weight",
                 "mtp.layers.{}.mlp.up_proj.weight"):  # yapf: disable
      tensors |= {name.format(i): rng.normal(size=(96, 96)).astype(np.float32) for i in range(6)}
  return write_files(folder, config, tensors)


def write_files(folder: Path, config: dict[str, Any], tensors: dict[str, Any]) -> Path:
  folder.mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps(config))
  # as large ones lie, in several files
  names = sorted(tensors)
  parts = [names[::3], names[1::3], names[2::3]]
  index = {}
  for i, part in enumerate(parts):
    file = f"model-{i + 1:05}-of-{len(parts):05}.safetensors"
    save_file({name: tensors[name] for name in part}, folder / file)
    index |= dict.fromkeys(part, file)
  (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
  return folder


def fetched(repository: Path, home: Path, shard: Shard) -> Checkpoint:
  """What is on a machine after a node there was given the stage, and nothing else."""
  async def fetch() -> Checkpoint:
    one = store(home)
    entry = await one.find_anywhere(REPO)
    checkpoint = open_checkpoint(await one.head(entry))
    spans = file_spans(checkpoint, shard_tensors(checkpoint, shard))
    await one.bring(entry, {path.name: found for path, found in spans.items()})
    await one.close()
    return checkpoint

  with hub_here({REPO: repository}, home):
    return asyncio.run(fetch())


@pytest.fixture(scope="module", params=FAMILIES)
def repository(request: pytest.FixtureRequest, goldens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
  return write_repository(goldens, request.param, tmp_path_factory.mktemp("repository") / "model")


@pytest.fixture(scope="module")
def stages(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[tuple[Shard, Checkpoint]]]:
  """Each stage with its own machine's files."""
  n_layers = json.loads((repository / "config.json").read_text())["num_hidden_layers"]
  found = [(shard, fetched(repository, tmp_path_factory.mktemp("home"), shard)) for shard in shards(n_layers)]
  yield found
  for _, checkpoint in found:
    checkpoint.close()


def run(engine: str, checkpoint: Checkpoint, shard: Shard, quantize: str | None = None) -> Any:
  """What the stage makes of a few tokens."""
  (model, ) = Stages(engine, checkpoint, shard=shard, quantize=quantize).models
  hidden = None
  if not shard.is_first:
    shape = (len(IDS), checkpoint.config.hidden_size)
    hidden = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  out = model.step(Batch((BatchEntry(1, 0, len(IDS), LogitsOf.ALL), ), IDS, hidden)).copy()
  model.close()
  return out


@pytest.mark.parametrize("engine", ["mlx", "onnx", "tinygrad"])
def test_line_6_a_stage_is_loaded_from_what_was_fetched_for_it(
    engine: str, repository: Path, stages: list[tuple[Shard, Checkpoint]]
) -> None:
  if missing := probe_engine(engine).missing:
    pytest.skip(missing)
  whole = open_checkpoint(repository)
  for shard, own in stages:
    np.testing.assert_array_equal(run(engine, own, shard), run(engine, whole, shard))
  whole.close()


@pytest.mark.parametrize("architecture", ["talkie", "gpt2", "internlm2"])
def test_line_6_so_is_one_of_another_architecture(architecture: str, tmp_path: Path) -> None:
  """Its own names for the ends of a model; talkie's layers all see the embedding, so every stage fetches it."""
  if missing := probe_engine("mlx").missing:
    pytest.skip(missing)
  from exo.inference.mlx import library
  library.load_blas()  # before MLX
  from test.support.architectures import SmallCheckpoint
  made = SmallCheckpoint(architecture)
  repository = write_files(
      tmp_path / "model", made.hf_config, {name: made.tensor(name).to_float32()
                                           for name in made.names()}
  )
  whole = open_checkpoint(repository)
  for shard in (Shard(REPO, 0, 0, 4), Shard(REPO, 1, 2, 4), Shard(REPO, 3, 3, 4)):
    own = fetched(repository, tmp_path / str(shard.start_layer), shard)
    np.testing.assert_array_equal(run("mlx", own, shard), run("mlx", whole, shard))
    own.close()
  whole.close()


def test_line_6_matrices_that_are_rounded_are_those_of_the_stage(stages: list[tuple[Shard, Checkpoint]]) -> None:
  """Whether a file is quantized already is looked at in the stage's own layers."""
  if missing := probe_engine("mlx").missing:
    pytest.skip(missing)
  for shard, own in stages:
    assert np.isfinite(run("mlx", own, shard, "8")).all()


def test_line_6_what_is_fetched_is_no_more_than_is_needed(stages: list[tuple[Shard, Checkpoint]]) -> None:
  for shard, own in stages:
    needed, lacking = set(shard_tensors(own, shard)), set()
    for name in own.names():
      try:
        own.tensor(name)
      except ModelFilesError:
        lacking.add(name)
    large = {name for name in own.names() if own.tensor_bytes(name) > 3 * 1024}  # smaller ones may come with a block
    assert not lacking & needed and lacking >= large - needed


def test_line_6_plans_count_what_is_fetched(repository: Path) -> None:
  checkpoint = open_checkpoint(repository)
  size, n = checkpoint.size, checkpoint.config.n_layers
  both = Part.HEAD in map(part_of, checkpoint.names()) and checkpoint.config.tied
  for first in range(n):
    for last in range(first, n):
      needed = shard_tensors(checkpoint, Shard("m", first, last, n))
      held = sum(map(checkpoint.tensor_bytes, needed))
      if both and last == n - 1 and first > 0:
        held -= checkpoint.tensor_bytes(EMBEDDING)  # an engine holds one of the two
      assert size.stage_bytes(first, last + 1) == held
  assert size.n_weights == sum(map(checkpoint.tensor_weights, shard_tensors(checkpoint, Shard("m", 0, n - 1, n))))
  checkpoint.close()


def test_plans_are_made_without_looking_at_every_tensor_on_the_event_loop(goldens: Path, tmp_path: Path) -> None:
  async def opened() -> Checkpoint:
    return await ModelCatalog(ModelStore(tmp_path, [goldens])).checkpoint("llama")

  assert {"facts", "size", "fingerprint"} <= vars(asyncio.run(opened())).keys()


def test_line_6_what_every_stage_holds_is_in_every_stages_plan() -> None:
  """A table for each layer's own embeddings, say, which every layer reads."""
  size = ModelSize((10, 20, 40), 100, 100, 0, tied=True, shared_bytes=1000)
  assert [size.stage_bytes(a, b) for a, b in ((0, 1), (1, 2), (2, 3), (0, 3))] == [1110, 1020, 1140, 1170]


def test_line_6_a_stage_that_asks_for_anothers_tensor_is_told_so(goldens: Path) -> None:
  opened = open_checkpoint(goldens / "llama")
  middle = StageTensors(opened, Shard("m", 2, 3, 6))
  assert middle.tensor("model.layers.3.mlp.down_proj.weight").shape
  for name in (EMBEDDING, HEAD, "model.norm.weight", "model.layers.4.mlp.down_proj.weight"):
    with pytest.raises(ModelFilesError, match="is none of the stage"):
      middle.tensor(name)
  opened.close()


@pytest.mark.parametrize(("names", "tied", "ends"), [
    (["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"], False, ({0}, set(), {1, 2})),
    (["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"], True, ({0}, set(), {0, 1, 2})),
    (["model.embed_tokens.weight", "model.norm.weight"], False, ({0}, set(), {0, 1})),
    (["wte.weight", "wpe.weight", "ln_f.weight"], False, ({0, 1}, set(), {0, 1, 2})),
    (["model.tok_embeddings.weight", "model.norm.weight", "output.weight"], False, ({0}, set(), {1, 2})),
    (["gpt_neox.embed_in.weight", "gpt_neox.final_layer_norm.bias", "embed_out.weight"], False, ({0}, set(), {1, 2})),
    (["model.embed_tokens.weight", "model.embedding_norm.weight"], False, ({0, 1}, {1}, {0, 1})),
    (["m.embed_tokens.weight", "m.embed_tokens_per_layer.weight", "m.norm.weight"], False, ({0, 1}, {1}, {0, 1, 2})),
])
def test_line_6_ends_of_a_model(names: list[str], tied: bool, ends: tuple[set[int], ...]) -> None:
  layers = [f"h.{i}.mlp.weight" for i in range(3)]
  for layer, wanted in enumerate(ends):
    found = needed_names([*names, *layers], Shard("m", layer, layer, 3), tied)
    assert found == [*(names[i] for i in sorted(wanted)), layers[layer]]


@pytest.mark.parametrize(("name", "part"), [("model.embed_vision.embedding_projection.weight", Part.UNUSED),
                                            ("model.visual.blocks.3.attn.qkv.weight", Part.UNUSED),
                                            ("mtp.layers.0.input_layernorm.weight", Part.UNUSED),
                                            ("model.mtp_layers.0.mlp.up_proj.weight", Part.UNUSED),
                                            ("transformer.h.11.attn.c_attn.weight", 11),
                                            ("model.layers.2.self_attn.embed_q.weight", 2),
                                            ("model.layers.2.mlp.output.dense.weight", 2)])
def test_line_6_parts_of_other_architectures(name: str, part: int | Part) -> None:
  assert part_of(name) == part
