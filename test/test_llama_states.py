"""What llama.cpp keeps of a sequence moves between contexts of other lengths and widths, to the bit, whatever kinds of layers there are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exo.errors import CacheReuseError, ConfigError
from exo.inference.engine import Batch, BatchEntry, LoadOptions, LogitsOf
from exo.inference.kv_type import KvType
from exo.inference.llama_cpp import cache_plan
from exo.inference.llama_cpp.child import Child
from exo.inference.llama_cpp.library_file import library_files
from exo.inference.llama_cpp.llama_model import LlamaContext
from exo.inference.llama_cpp.sequence_state import read_state
from exo.inference.llama_cpp.shared_calls import SharedCalls
from exo.inference.llama_cpp.stage import LlamaCppStage
from exo.inference.shard import Shard
from exo.inference.weights.checkpoint import Checkpoint, open_checkpoint
from exo.shared_memory import SharedMemory
from test.support.families import Form, all_forms, few_forms
from test.support.shaped_models import Shape, write_shaped

pytestmark = pytest.mark.skipif(next(library_files(), None) is None, reason="xllamacpp is not installed")

FORMS = [
    pytest.param(form, marks=() if form in few_forms() else pytest.mark.slow, id=form.family) for form in all_forms()
    if form.form == "gguf"
]


class HereDevice:
  """What computes is this process, so that a test can look at it."""
  def __init__(self) -> None:
    self.memory = SharedMemory()
    file = next(library_files())
    self._child, self.numbers, self.generation = Child(file.path, self.memory), itertools.count(1), 1

  def call(self, name: str, *arguments: Any, timeout_s: float = 0, generation: int | None = None) -> Any:
    return getattr(self._child, name)(*arguments)

  def widest(self, stage: LlamaCppStage) -> int:
    """How many rows of it share a call."""
    return self._child._stages[stage._number]._shared.widest

  def close(self) -> None:
    self.memory.close()


@pytest.fixture(scope="module")
def device() -> Iterator[HereDevice]:
  found = HereDevice()
  yield found
  found.close()


def spoken(device: Any, checkpoint: Checkpoint, kv_type: str | None) -> list[np.ndarray]:
  """Logits of four sequences that grow by turns, and of a copy of the longest."""
  n = checkpoint.config.n_layers
  options = LoadOptions(2**33, 1, max_sequences=8, max_context=2048, kv_type=kv_type)
  stage = LlamaCppStage(device, Shard("m", 0, n - 1, n), checkpoint, options, lambda _: None)
  ids = np.random.default_rng(3).integers(5, min(250, checkpoint.config.vocab_size), 1000).astype(np.int32)
  lengths: dict[int, int] = {}
  rows: list[np.ndarray] = []

  def feed(sequence: int, count: int) -> None:
    at = lengths.get(sequence, 0)
    batch = Batch((BatchEntry(sequence, at, count, LogitsOf.ALL), ), ids[at:at + count])
    rows.append(stage.step(batch).copy())
    lengths[sequence] = at + count

  for sequence, count in ((1, 200), (2, 30), (1, 100), (3, 20), (2, 10), (1, 300), (2, 1), (3, 1), (1, 1), (2, 1)):
    feed(sequence, count)
  stage.copy(1, 4, lengths[1])
  lengths[4] = lengths[1]
  feed(4, 1)
  feed(1, 1)
  stage.close()
  return rows


@pytest.mark.parametrize("form", FORMS)
def test_issue_19_a_sequence_that_moves_is_the_one_that_never_did(
    form: Form, device: HereDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  checkpoint = open_checkpoint(form.lay_out(tmp_path))
  object.__setattr__(checkpoint.config, "max_context", 2048)  # tiny ones say less than they can
  for kv_type in (None, "f16"):
    found = []
    for shortest in (256, 1024):  # three moves, or none
      monkeypatch.setattr(cache_plan, "SHORTEST", shortest)
      found.append(spoken(device, checkpoint, kv_type))
    for moved, stayed in zip(*found, strict=True):
      assert np.array_equal(moved, stayed)
    assert np.array_equal(found[0][-1], found[0][-2])
  checkpoint.close()


@pytest.mark.parametrize("form", FORMS)
def test_issue_19_a_text_that_moved_is_cut_back_rightly_or_not_at_all(
    form: Form, device: HereDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """Of layers with windows only what a window still holds moves along."""
  monkeypatch.setattr(cache_plan, "SHORTEST", 256)
  checkpoint = open_checkpoint(form.lay_out(tmp_path))
  object.__setattr__(checkpoint.config, "max_context", 2048)
  n = checkpoint.config.n_layers
  options = LoadOptions(2**33, 1, max_sequences=8, max_context=2048, kv_type="f32")
  stage = LlamaCppStage(device, Shard("m", 0, n - 1, n), checkpoint, options, lambda _: None)
  ids = np.random.default_rng(3).integers(5, min(250, checkpoint.config.vocab_size), 400).astype(np.int32)

  def fed(sequence: int, start: int, end: int) -> np.ndarray:
    batch = Batch((BatchEntry(sequence, start, end - start, LogitsOf.LAST), ), ids[start:end])
    return stage.step(batch).copy()

  fed(1, 0, 200)
  fed(1, 200, 300)  # moves
  fed(2, 0, 10)  # makes its old class anew
  fed(3, 0, 100)
  expected = fed(3, 100, 101)
  for cut in (lambda: stage.copy(1, 4, 100), lambda: stage.truncate(1, 100)):
    sequence = 4 if stage.length(4) == 0 else 1
    try:
      cut()
    except CacheReuseError:
      sequence = 0
    if sequence:
      assert stage.length(sequence) == 100
      assert np.abs(fed(sequence, 100, 101) - expected).max() < 0.01
  stage.close()
  checkpoint.close()


def test_issue_19_whoever_cannot_move_keeps_what_was_there(
    device: HereDevice, smollm2: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
  """A class that should become wider stays as it was, with everybody in it, where one of them cannot move."""
  stage = LlamaCppStage(
      device, Shard("m", 0, 3, 30), smollm2, LoadOptions(2**33, 1, max_sequences=8, max_context=512), lambda _: None
  )
  ids = np.arange(5, 105, dtype=np.int32)

  def fed(sequence: int, start: int, end: int) -> np.ndarray:
    return stage.step(Batch((BatchEntry(sequence, start, end - start, LogitsOf.ALL), ), ids[start:end])).copy()

  fed(1, 0, 50)
  with monkeypatch.context() as broken:
    broken.setattr(LlamaContext, "state", lambda *_: (_ for _ in ()).throw(CacheReuseError("in no known form")))
    with pytest.raises(CacheReuseError, match="in no known form"):
      fed(2, 0, 10)
  stage.drop(2)
  fed(3, 0, 50)
  assert np.array_equal(fed(1, 50, 51), fed(3, 50, 51))
  stage.close()


def test_issue_19_what_is_kept_in_a_form_that_nobody_knows_is_not_moved() -> None:
  for data in (np.zeros(0, np.uint8), np.zeros(64, np.uint8), np.full(4096, 255, np.uint8)):
    with pytest.raises(CacheReuseError, match="in a way that exo cannot move"):
      read_state(data, 1, 0, 5)


def test_issue_19_kinds_of_keys_and_values_are_read_chosen_and_refused() -> None:
  assert KvType.parse("f16") == KvType("f16", "f16", False)
  assert KvType.parse("q8_0:f16") == KvType("q8_0", "f16", True)
  assert KvType.choose(None, [64, 128]) == KvType("q8_0", "f16", True) and KvType.choose(None, [64, 80]) == KvType()
  assert KvType.choose("f32", [80]).element_bytes == 4 and KvType("q8_0", "f16", True).element_bytes == 1.53125
  for wrong in ("q5", ":f16", "q8_0:f16:f16"):
    with pytest.raises(ConfigError, match="each one of f32, f16, q8_0, q4_0"):
      KvType.parse(wrong)
  with pytest.raises(ConfigError, match="heads of 80 numbers"):
    KvType.choose("q8_0", [80])


def decoded(stage: LlamaCppStage, ids: np.ndarray, steps: Iterator[list[int]]) -> dict[int, list[np.ndarray]]:
  """Of sequences with prompts of several lengths, those of each step together: their logits by sequence."""
  lengths: dict[int, int] = {}
  rows: dict[int, list[np.ndarray]] = {}
  for together in steps:
    for sequence in together:
      if sequence not in lengths:
        lengths[sequence] = 10 + 37 * sequence
        entry = BatchEntry(sequence, 0, lengths[sequence], LogitsOf.NONE)
        stage.step(Batch((entry, ), ids[:lengths[sequence]]))
    entries = tuple(BatchEntry(sequence, lengths[sequence], 1, LogitsOf.ALL) for sequence in together)
    out = stage.step(Batch(entries, ids[[lengths[sequence] for sequence in together]]))
    for sequence, row in zip(together, out, strict=True):
      lengths[sequence] += 1
      rows.setdefault(sequence, []).append(row.copy())
  return rows


@pytest.mark.parametrize("encoding", ["Q4_K_M", "Q8_0", "Q4_0"])
def test_issue_19_a_token_is_alone_what_it_is_among_others(encoding: str, device: HereDevice, tmp_path: Path) -> None:
  """However many share a call, and wherever in it they stand; some leave and come, so that numbers have gaps."""
  shape = Shape(3, 512, 1024, 8, 4, 600)
  checkpoint = open_checkpoint(write_shaped(tmp_path / "m.gguf", shape, encoding))
  options = LoadOptions(2**33, 1, max_sequences=16, max_context=1024)
  ids = np.random.default_rng(4).integers(5, 500, 1000).astype(np.int32)
  random = np.random.default_rng(5)
  steps = [[int(i) for i in random.permutation(9)[:random.integers(1, 10)]] for _ in range(60)]
  asked = {sequence: sum(sequence in step for step in steps) for sequence in range(9)}
  stages = [LlamaCppStage(device, Shard("m", 0, 2, 3), checkpoint, options, lambda _: None) for _ in range(2)]
  together = decoded(stages[0], ids, iter(steps))
  alone = decoded(stages[1], ids, ([sequence] for sequence in range(9) for _ in range(asked[sequence])))
  for sequence, rows in together.items():
    for one, other in zip(rows, alone[sequence], strict=True):
      assert np.array_equal(one, other)
  shared = [device.widest(stage) for stage in stages]
  print(f"{encoding}: {shared[0]} rows share a call")
  assert shared[0] >= shared[1] == 1
  for stage in stages:
    stage.close()


def test_issue_19_a_width_is_admitted_by_results_alone() -> None:
  calls = SharedCalls(True)
  assert calls.to_try(1) == 0 and calls.to_try(5) == 2
  calls.tried(2, True)
  assert (calls.widest, calls.to_try(2)) == (1, 2)
  calls.tried(2, True)
  assert (calls.widest, calls.to_try(2), calls.to_try(3)) == (2, 0, 3)
  calls.tried(3, False)
  assert (calls.widest, calls.to_try(64)) == (2, 0)
  assert SharedCalls(False).to_try(8) == 0
