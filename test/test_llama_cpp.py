"""llama.cpp as an engine: any stage of a GGUF file equals that part of the whole, and what ends its process is an error of its own."""

from __future__ import annotations

import gc
import itertools
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exo.errors import EngineError, EngineUnavailableError, ModelFilesError, UnsupportedModelError
from exo.inference.engine import Batch, BatchEntry, LoadOptions, LogitsOf
from exo.inference.engines import load_engine
from exo.inference.families.catalogue import family_of, why_uncut
from exo.inference.kv_type import KvType
from exo.inference.llama_cpp import stage as llama_cpp_stage
from exo.inference.llama_cpp.binding import load_library
from exo.inference.llama_cpp.library_choice import chosen_library
from exo.inference.llama_cpp.library_file import library_files
from exo.inference.llama_cpp.llama_model import LastWords, LlamaContext, LlamaModel, Row
from exo.inference.llama_cpp.stage_cut import cut_of
from exo.inference.llama_cpp.stage_file import SourceTensor, StageFile
from exo.inference.shard import Shard
from exo.inference.weights.checkpoint import Checkpoint, open_checkpoint
from exo.inference.weights.file_bytes import FileBytes
from exo.inference.weights.gguf_header import GgufHeader, parse_gguf_header
from exo.inference.weights.tensor import Floats, StoredTensor
from test.support.families import all_forms
from test.support.nodes import wait_until
from test.support.shaped_models import Shape, write_shaped
from test.support.stages import Stages

pytestmark = pytest.mark.skipif(next(library_files(), None) is None, reason="xllamacpp is not installed")

SHAPE = Shape(6, 256, 512, 8, 4, 320)


@pytest.fixture(scope="module")
def library() -> Any:
  found = chosen_library().file
  loaded = load_library(found.path)
  loaded.llama_backend_init()
  return loaded


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
  return open_checkpoint(write_shaped(tmp_path_factory.mktemp("gguf") / "model.gguf", SHAPE, "Q8_0"))


class Whole:
  """A GGUF file and its embedding."""
  def __init__(self, path: Path) -> None:
    self.path, data = path, FileBytes(path)
    self.header: GgufHeader = parse_gguf_header(data.head(), data.size)
    self.architecture = str(self.header.metadata["general.architecture"])
    own = self.header.metadata
    self.n_layers = own[f"{self.architecture}.block_count"] - own.get(f"{self.architecture}.nextn_predict_layers", 0)
    info = self.header.tensors["token_embd.weight"]
    rows = data.span(info.start, info.start + info.n_bytes).reshape(info.shape[0], -1)
    self.embedding: Floats = StoredTensor(info.name, info.shape, info.encoding, rows).to_float32()
    self.sources = {name: SourceTensor(tensor, path) for name, tensor in self.header.tensors.items()}

  def file(self, shard: Shard) -> StageFile:
    return StageFile(self.cut(shard), self.sources, self.header.kinds, self.architecture)

  def cut(self, shard: Shard) -> Any:
    return cut_of(self.header.metadata, self.header.tensors, shard, len(self.embedding))

  def logits(self, library: Any, words: LastWords, cuts: tuple[int, ...], token_ids: list[int]) -> Floats:
    """Of all tokens, from stages that begin with these layers, with keys and values as float32."""
    x: Any = self.embedding[token_ids]
    for first, end in itertools.pairwise((0, *cuts, self.n_layers)):
      shard = Shard("m", first, end - 1, self.n_layers)
      cut, file = self.cut(shard), self.file(shard)
      model = LlamaModel(library, words, file, lambda _: None)
      file.close()
      context = LlamaContext(model, 512, 1, 128, 1, KvType("f32", "f32"), cut.out, cut.feed)
      rows = [Row(0, i) for i in range(len(token_ids))]
      # the first part and the rest in calls of their own, as chunks of a prompt are
      given = x * np.float32(cut.scale) if first == 0 else x
      if cut.takes_tokens:
        given = np.array(token_ids, np.int32)
      parts = [context.compute(rows[a:b], given[a:b], cut.positions).copy() for a, b in ((0, 8), (8, len(rows)))]
      x = np.concatenate(parts)
      context.close()
      model.close()
    return x


def ggufs() -> list[Path]:
  return [form.source / "model.gguf" for form in all_forms() if form.form == "gguf"]


# what llama.cpp itself computes otherwise than the reference: YaRN's bounds are rounded
OFF = {"gpt_oss": 1.0, "gpt_oss_mxfp4": 1.0, "starcoder2": 2.0}


@pytest.mark.parametrize("path", ggufs(), ids=lambda path: path.parent.name)
def test_issue_19_every_cut_of_a_family_equals_the_whole_which_is_right(path: Path, library: Any) -> None:
  """Bit for bit, at every cut in two and three that the family allows, and the whole as its reference."""
  whole, words = Whole(path), LastWords(library)
  reference = json.loads((path.parent / "ref.json").read_text())
  token_ids = max(reference["tokens"], key=len)
  expected = reference["logprobs"][reference["tokens"].index(token_ids)]
  got = whole.logits(library, words, (), token_ids)
  scores = got.astype(np.float64) - got.max(axis=1, keepdims=True)
  scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
  off = np.abs(scores[np.arange(len(token_ids) - 1), token_ids[1:]] - expected).max()
  assert off < OFF.get(path.parent.name, 0.03)
  if why_uncut(whole.header.metadata):
    with pytest.raises(UnsupportedModelError):
      whole.cut(Shard("m", 0, 0, whole.n_layers))
    return
  cuts = [cut for n in (1, 2) for cut in itertools.combinations(range(1, whole.n_layers), n)]
  for cut in cuts:
    assert np.array_equal(whole.logits(library, words, cut, token_ids), got), cut


def test_issue_19_what_no_test_has_compared_is_not_cut() -> None:
  metadata = {"general.architecture": "brandnew", "brandnew.block_count": 4}
  assert "nobody has compared" in why_uncut(metadata) and family_of("brandnew") is None
  with pytest.raises(UnsupportedModelError, match="nobody has compared"):
    cut_of(metadata, (), Shard("m", 0, 1, 4), 320)
  with pytest.raises(UnsupportedModelError, match="the file has 4"):
    cut_of(metadata, (), Shard("m", 0, 1, 5), 320)
  assert "streams" in why_uncut({"general.architecture": "gemma3n", "gemma3n.block_count": 4})


def test_issue_19_a_virtual_file_is_one_gguf_file_wherever_it_is_read(small: Checkpoint) -> None:
  whole = Whole(small.path)
  file = whole.file(Shard("m", 2, 4, 6))
  read = memoryview(bytearray(file.size))
  assert file.read_into(read, 0) == file.size < small.path.stat().st_size
  written = bytes(read)
  header = parse_gguf_header(memoryview(written), len(written))
  assert header.metadata["llama.block_count"] == 3 and header.metadata["tokenizer.ggml.model"] == "none"
  name, of = "blk.0.ffn_up.weight", whole.header.tensors["blk.2.ffn_up.weight"]
  mine, source = header.tensors[name], small.path.read_bytes()
  assert written[mine.start:mine.start + mine.n_bytes] == source[of.start:of.start + of.n_bytes]
  buffer = memoryview(bytearray(1000))
  for position in (0, 17, len(written) // 2, len(written) - 500, len(written) + 5):
    count = file.read_into(buffer, position)
    assert bytes(buffer[:count]) == written[position:position + 1000]
  file.close()


def test_issue_19_a_file_that_cannot_be_read_is_an_error_with_the_reason(
    small: Checkpoint, library: Any, tmp_path: Path
) -> None:
  whole = Whole(small.path)
  (tmp_path / "short.gguf").write_bytes(small.path.read_bytes()[:whole.header.header_bytes + 1000])
  sources = {name: SourceTensor(of.info, tmp_path / "short.gguf") for name, of in whole.sources.items()}
  file = StageFile(whole.cut(Shard("m", 0, 2, 6)), sources, whole.header.kinds, "llama")
  with pytest.raises(ModelFilesError, match="cut off"):
    LlamaModel(library, LastWords(library), file, lambda _: None)
  file.close()


def test_issue_19_a_library_that_is_none_is_refused_in_words(tmp_path: Path) -> None:
  (tmp_path / "libllama.so").write_bytes(b"no library")
  (named, ) = library_files(tmp_path)
  assert named.path == tmp_path / "libllama.so"
  with pytest.raises(EngineUnavailableError, match="is no shared library"):
    load_library(named.path)
  with pytest.raises(EngineUnavailableError, match="has no llama_"):
    load_library(Path("libc.so.6"))


def test_issue_19_stages_of_another_process_equal_the_whole(small: Checkpoint) -> None:
  """Prompts in parts, steps of several sequences, caches that are cut and copied, and moves to longer ones."""
  random = np.random.default_rng(1)
  tokens = [int(t) for t in random.integers(5, 300, 700)]
  whole, split = Stages("llama_cpp", small, (), max_context=2048), Stages("llama_cpp", small, (1, 4), max_context=2048)
  for stages in (whole, split):
    stages.step([(1, 0, tokens[:500])], LogitsOf.NONE)
    stages.step([(2, 0, tokens[:30])], LogitsOf.NONE)
    stages.step([(1, 500, tokens[500:])], LogitsOf.NONE)  # into a longer class
    stages.each("copy", 1, 3, 600)
    stages.each("truncate", 2, 20)
  entries = [(1, 700, [5]), (2, 20, [6, 7]), (3, 600, [8])]
  expected = whole.step(entries)
  assert np.array_equal(split.step(entries), expected)
  alone = Stages("llama_cpp", small, (), max_context=2048)
  alone.step([(9, 0, tokens[:500])], LogitsOf.NONE)
  alone.step([(9, 500, tokens[500:])], LogitsOf.NONE)
  assert np.array_equal(alone.step([(9, 700, [5])]), expected[:1])
  for stages in (whole, split, alone):
    stages.close()


def test_issue_19_a_process_that_ends_is_the_error_of_its_steps_and_another_takes_its_place(small: Checkpoint) -> None:
  engine = load_engine("llama_cpp")
  options = LoadOptions(2**33, 1, max_sequences=4, max_context=512)
  shard = Shard("m", 0, 5, 6)
  stage = engine.load(shard, small, options, lambda _: None)
  batch = Batch((BatchEntry(1, 0, 3, LogitsOf.ALL), ), np.array([5, 6, 7], np.int32))
  expected = stage.step(batch)
  device = stage._device  # type: ignore[attr-defined]
  os.kill(device._process.pid, signal.SIGSEGV)
  with pytest.raises(EngineError, match="ended"):
    for i in range(3, 1000):
      stage.step(Batch((BatchEntry(1, i, 1, LogitsOf.ALL), ), np.array([5], np.int32)))
  with pytest.raises(EngineError, match="has ended, and with it what it had loaded"):
    stage.step(Batch((BatchEntry(2, 0, 3, LogitsOf.ALL), ), np.array([5, 6, 7], np.int32)))
  again = engine.load(shard, small, options, lambda _: None)
  assert np.array_equal(again.step(batch), expected)
  stage.close()
  again.close()
  number = device._process.pid
  del engine, stage, again, device
  gc.collect()
  wait_until(lambda: not Path(f"/proc/{number}").exists(), 10, "the process of an engine that nobody has")


def test_issue_19_a_process_that_does_not_answer_is_ended_and_the_step_told(
    small: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
  engine, shard, options = load_engine("llama_cpp"), Shard("m", 0, 5, 6), LoadOptions(2**33, 1, max_context=512)
  held = engine.load(shard, small, options, lambda _: None)
  batch = Batch((BatchEntry(1, 0, 3, LogitsOf.ALL), ), np.array([5, 6, 7], np.int32))
  expected = held.step(batch)
  device = held._device  # type: ignore[attr-defined]
  os.kill(device._process.pid, signal.SIGSTOP)
  monkeypatch.setattr(llama_cpp_stage, "_SOON_S", 0.5)
  monkeypatch.setattr(llama_cpp_stage, "_TOKEN_S", 0.1)
  with pytest.raises(EngineError, match=r"has not ended a step within 1 s, and was ended itself"):
    held.step(Batch((BatchEntry(2, 0, 3, LogitsOf.ALL), ), np.array([5, 6, 7], np.int32)))
  monkeypatch.undo()
  wait_until(lambda: device._process.pid is None, 10, "the end of the process")
  again = engine.load(shard, small, options, lambda _: None)
  assert np.array_equal(again.step(batch), expected)
  again.close()


@pytest.mark.parametrize(
    "encoding", [
        "Q2_K", "Q3_K", "Q4_0", "Q4_1", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL",
        "IQ4_XS", "TQ2_0"
    ]
)  # yapf: disable
def test_issue_19_weights_of_every_encoding_are_read_as_what_they_are(encoding: str, tmp_path: Path) -> None:
  """As the same model unpacked into floats, but for activations that are rounded to 8 bits; a stage as the whole."""
  shape = Shape(2, 512, 768, 8, 4, 600)
  packed, floats = (
      open_checkpoint(write_shaped(tmp_path / name / "m.gguf", shape, encoding, unpacked=unpacked))
      for name, unpacked in (("packed", False), ("floats", True))
  )
  prompt = (1, 0, [int(i) for i in np.random.default_rng(1).integers(5, 500, 40)])
  rows = []
  for checkpoint, cuts in ((packed, ()), (packed, (1, )), (floats, ())):
    stages = Stages("llama_cpp", checkpoint, cuts, kv_type="f32")
    rows.append(stages.step([prompt]).astype(np.float64))
    stages.close()
  assert np.array_equal(rows[0], rows[1])
  cosines = (rows[0] * rows[2]).sum(1) / np.linalg.norm(rows[0], axis=1) / np.linalg.norm(rows[2], axis=1)
  assert cosines.min() > 0.9  # read otherwise, they would have nothing in common


def test_issue_19_a_default_model_is_likely_under_it(smollm2: Checkpoint) -> None:
  """As it is under the engine that stands beside it, on a text that somebody wrote."""
  text = "The capital of France is Paris, and the capital of Italy is Rome. Both cities lie on rivers."
  token_ids = smollm2.tokenizer().encode(text)
  own, other = Stages("llama_cpp", smollm2, (13, )), Stages("onnx", smollm2)
  assert own.mean_nll(token_ids) == pytest.approx(other.mean_nll(token_ids), rel=0.03)
  own.close()
  other.close()


def test_issue_19_numbers_that_are_not_finite_stay_with_their_sequence_when_it_moves(small: Checkpoint) -> None:
  """To a longer class: the cells that it leaves are not used by others."""
  stage = load_engine("llama_cpp").load(
      Shard("m", 3, 5, 6), small, LoadOptions(2**33, 1, max_sequences=4, max_context=2048), lambda _: None
  )
  random = np.random.default_rng(2).standard_normal((520, 256)).astype(np.float32)

  def run(sequence: int, position: int, rows: np.ndarray) -> np.ndarray:
    entry = BatchEntry(sequence, position, len(rows), LogitsOf.ALL)
    return stage.step(Batch((entry, ), np.zeros(len(rows), np.int32), rows))

  expected = run(1, 0, random[:40])
  stage.drop(1)
  run(2, 0, random[:10])  # keeps the shorter context alive
  assert not np.isfinite(run(3, 0, np.full((500, 256), np.nan, np.float32))).any()
  run(3, 500, random[500:])
  assert np.array_equal(run(4, 0, random[:40]), expected)
  stage.close()
