"""GGUF models in several files, as large ones are published, and what else lies in their folders."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from exo.download.local_folders import model_files, models_in
from exo.errors import ModelFilesError
from exo.gguf_names import PartName, model_stem, part_name, parts_of
from exo.inference.engine import Batch, BatchEntry, LoadOptions, LogitsOf
from exo.inference.llama_cpp.stage import LlamaCppStage
from exo.inference.shard import Shard
from exo.inference.weights.checkpoint import Checkpoint, open_checkpoint
from exo.inference.weights.gguf_header import parse_gguf_header
from test.support.hub import hub
from test.support.llama_device import HereDevice
from test.support.nodes import NodeProcess, exo, ring
from test.support.shaped_models import TINY, Shape, write_shaped
from test.support.stages import Stages
from test.test_model_rings import model_ring

SHAPE = Shape(4, 256, 512, 4, 2, 600, 1024)
N_PARTS = 4


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
  return write_shaped(tmp_path_factory.mktemp("whole") / "big.gguf", SHAPE, "Q8_0")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
  folder = tmp_path_factory.mktemp("parts")
  write_shaped(folder / "big.gguf", SHAPE, "Q8_0", per_part=10)
  found = sorted(folder.iterdir())
  assert [path.name for path in found] == [f"big-{i:05d}-of-{N_PARTS:05d}.gguf" for i in range(1, N_PARTS + 1)]
  return found


def copied(parts: list[Path], folder: Path) -> list[Path]:
  folder.mkdir(parents=True, exist_ok=True)
  return [Path(shutil.copy(path, folder)) for path in parts]


def test_issue_20_line_5_names_of_parts() -> None:
  part = part_name("a/b-x-00002-of-00010.GGUF")
  assert part == PartName("a/b-x", 2, 10, ".GGUF") and part.all()[9] == "a/b-x-00010-of-00010.GGUF"
  for name in (
      "x.gguf", "x-0001-of-0002.gguf", "x-00003-of-00002.gguf", "x-00000-of-00002.gguf", "-00001-of-00001.txt"
  ):
    assert part_name(name) is None
  assert model_stem("b-00001-of-00002.gguf") == "b" and model_stem("Ünï.GGUF") == "Ünï"


def test_issue_20_line_5_any_part_is_the_whole_model(whole: Path, parts: list[Path]) -> None:
  one = open_checkpoint(whole)
  for path in (*parts, parts[0].parent):
    several = open_checkpoint(path)
    assert several.path == parts[0] and several.fingerprint == one.fingerprint and several.size == one.size
    assert {where for name in several.names() for where, _, _ in several.spans(name)} == set(parts)
    for name in one.names():
      assert np.array_equal(several.tensor(name).to_float32(), one.tensor(name).to_float32()), name
    assert several.tokenizer().encode("w1 w2") == one.tokenizer().encode("w1 w2")
    several.close()
  one.close()


@pytest.mark.parametrize("engine", ["llama_cpp", "onnx"])
def test_issue_20_line_5_engines_read_parts_as_they_read_one_file(engine: str, whole: Path, parts: list[Path]) -> None:
  ids = list(range(300, 340))
  one, several = open_checkpoint(whole), open_checkpoint(parts[2])

  def rows(checkpoint: Checkpoint, cuts: tuple[int, ...]) -> np.ndarray:
    stages = Stages(engine, checkpoint, cuts)
    found = stages.step([(1, 0, ids)], LogitsOf.ALL)
    stages.close()
    return found

  for cuts in ((), (2, ), (1, 3)):
    assert np.array_equal(rows(several, cuts), rows(one, cuts)), cuts


@pytest.mark.parametrize("virtual", [True, False])
@pytest.mark.parametrize("weights", ["private", "mapped"])
def test_issue_20_line_5_parts_are_mapped_or_read_with_or_without_virtual_files(
    weights: str, virtual: bool, whole: Path, parts: list[Path], tmp_path: Path
) -> None:
  device, ids = HereDevice(), np.arange(300, 340, dtype=np.int32)
  options = LoadOptions(2**33, 1, max_context=512, weights=weights, made_files=tmp_path / "made")

  def row(path: Path, shard: Shard) -> np.ndarray:
    checkpoint = open_checkpoint(path)
    stage = LlamaCppStage(device, shard, checkpoint, options, lambda _: None, virtual=virtual)
    found = stage.step(Batch((BatchEntry(1, 0, len(ids), LogitsOf.LAST), ), ids)).copy()
    stage.close()
    checkpoint.close()
    return found

  for shard in (Shard("m", 0, 3, 4), Shard("m", 0, 1, 4)):
    assert np.array_equal(row(parts[1], shard), row(whole, shard))
  device.close()


def test_issue_20_line_5_parts_that_do_not_belong_together_are_told(parts: list[Path], tmp_path: Path) -> None:
  first, second, third, last = copied(parts, tmp_path)
  third.rename(tmp_path / "aside")
  with pytest.raises(ModelFilesError, match=r"one of 4 parts, of which these are missing: big-00003-of-00004\.gguf"):
    open_checkpoint(last)
  shutil.copy(second, third)
  with pytest.raises(ModelFilesError, match=r"big-00003-of-00004\.gguf says that it is part 1, counted from 0"):
    open_checkpoint(tmp_path)
  (tmp_path / "aside").replace(third)
  open_checkpoint(tmp_path).close()
  alone = Path(shutil.copy(first, tmp_path / "renamed.gguf"))
  with pytest.raises(ModelFilesError, match=r"says that it is one of 4 parts, its name that it is one of 1"):
    open_checkpoint(alone)


@pytest.mark.parametrize(("version", "words"), [(1, "version 1, which was written in 2023"), (3 << 24, "big-endian"),
                                                (77, "version 77 is not")])
def test_issue_20_line_5_old_and_big_endian_files_are_told_as_what_they_are(version: int, words: str) -> None:
  data = b"GGUF" + version.to_bytes(4, "little") + bytes(64)
  with pytest.raises(ModelFilesError, match=words):
    parse_gguf_header(memoryview(data), len(data))


def test_issue_20_line_5_a_folder_of_models_lists_each_once(whole: Path, parts: list[Path], tmp_path: Path) -> None:
  copied(parts, tmp_path)
  shutil.copy(whole, tmp_path / "Größe-Q8_0.GGUF")
  for beside in ("mmproj-F16.gguf", "._big-00001-of-00004.gguf", "._x.gguf"):
    (tmp_path / beside).write_bytes(b"no language model")
  inside = tmp_path / "folder"
  copied(parts, inside)
  (inside / "mmproj-model-f16.gguf").write_bytes(b"a picture's encoder")
  (inside / "._big-00002-of-00004.gguf").write_bytes(b"what macOS leaves")
  assert set(models_in([tmp_path])) == {"big", "Größe-Q8_0", "folder"}
  assert set(models_in([], [tmp_path / parts[2].name])) == {"big"}
  assert [path.name for path in model_files(tmp_path / parts[1].name)] == [path.name for path in parts]
  assert [path.name for path in model_files(inside)] == [path.name for path in parts]
  open_checkpoint(inside).close()
  open_checkpoint(tmp_path / "Größe-Q8_0.GGUF").close()
  assert parts_of(inside / parts[3].name)[0] == inside / parts[0].name


@pytest.fixture(scope="module")
def tiny_parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
  """With a picture's encoder beside it, and another quantization."""
  folder = tmp_path_factory.mktemp("tiny") / "repo"
  write_shaped(folder / "Q4_K_M" / "tiny-Q4_K_M.gguf", TINY, "Q4_K", per_part=7)
  write_shaped(folder / "tiny-Q8_0.gguf", TINY, "Q8_0")
  (folder / "mmproj-F16.gguf").write_bytes(gguf.GGUF_MAGIC.to_bytes(4, "little") + bytes(100))
  yield folder


def text_of(node: NodeProcess, model: str) -> str:
  body = {"model": model, "prompt": [300, 301, 302], "max_tokens": 8, "temperature": 0}
  status, answer = node.post("/v1/completions", body)
  assert status == 200, answer
  return str(answer["choices"][0]["text"])


def test_issue_20_line_5_a_split_file_is_fetched_by_layer_and_runs_on_a_ring(tiny_parts: Path, tmp_path: Path) -> None:
  with ring(tmp_path / "alone", 1, "--model-dir", str(tiny_parts / "Q4_K_M")) as (node, ):
    expected = text_of(node, "tiny-Q4_K_M")
  with hub({"org/tiny": tiny_parts}) as server, model_ring(tmp_path, server) as nodes:
    nodes.start("n0", "n1")
    node = nodes.nodes["n0"]
    assert text_of(node, "org/tiny:Q4_K_M") == expected
    assert set(nodes.shards(node, "org/tiny:Q4_K_M")) == {"n0", "n1"}
    names = {name.rpartition("/")[2] for name in server.sent}
    assert names == {path.name for path in (tiny_parts / "Q4_K_M").iterdir()}
    size = sum(path.stat().st_size for path in (tiny_parts / "Q4_K_M").iterdir())
    assert server.bytes_sent < 1.9 * size  # each has its own layers, and both the headers


def test_issue_20_line_5_run_takes_any_part(tiny_parts: Path, tmp_path: Path) -> None:
  part = sorted((tiny_parts / "Q4_K_M").iterdir())[1]
  done = exo(tmp_path, "run", str(part), "--prompt", "w1", "--max-tokens", "3")
  assert done.returncode == 0 and done.stdout.strip(), done.stderr
