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
from exo.inference.llama_cpp.library_file import library_files
from exo.inference.llama_cpp.llama_model import LlamaContext
from exo.inference.llama_cpp.sequence_state import read_state
from exo.inference.llama_cpp.stage import LlamaCppStage
from exo.inference.shard import Shard
from exo.inference.weights.checkpoint import Checkpoint, open_checkpoint
from test.support.families import Form, all_forms, few_forms
from test.support.llama_device import HereDevice

pytestmark = pytest.mark.skipif(next(library_files(), None) is None, reason="xllamacpp is not installed")

FORMS = [
    pytest.param(form, marks=() if form in few_forms() else pytest.mark.slow, id=form.family) for form in all_forms()
    if form.form == "gguf"
]


@pytest.fixture(scope="module")
def device() -> Iterator[HereDevice]:
  found = HereDevice()
  yield found
  found.close()


def spoken(device: Any, checkpoint: Checkpoint, kv_type: str | None, shard: Shard | None = None) -> list[np.ndarray]:
  """What comes out for four sequences that grow by turns, and for a copy of the longest."""
  n = checkpoint.config.n_layers
  shard = shard or Shard("m", 0, n - 1, n)
  options = LoadOptions(2**33, 1, max_sequences=8, max_context=2048, kv_type=kv_type)
  stage = LlamaCppStage(device, shard, checkpoint, options, lambda _: None)
  hidden = np.random.default_rng(4).standard_normal((1000, checkpoint.config.hidden_size)).astype(np.float32)
  ids = np.random.default_rng(3).integers(5, min(250, checkpoint.config.vocab_size), 1000).astype(np.int32)
  lengths: dict[int, int] = {}
  rows: list[np.ndarray] = []

  def feed(sequence: int, count: int) -> None:
    at = lengths.get(sequence, 0)
    given = None if shard.is_first else hidden[at:at + count]
    batch = Batch((BatchEntry(sequence, at, count, LogitsOf.ALL), ), ids[at:at + count], given)
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
def test_issue_19_a_sequence_moves_in_any_stage(
    form: Form, device: HereDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """Some of which have no layer that attends to everything, or none with windows, or none that keeps a state."""
  checkpoint = open_checkpoint(form.lay_out(tmp_path))
  object.__setattr__(checkpoint.config, "max_context", 2048)
  n = checkpoint.config.n_layers
  cuts = () if checkpoint.facts.whole_only else range(1, n)
  for shard in (shard for cut in cuts for shard in (Shard("m", 0, cut - 1, n), Shard("m", cut, n - 1, n))):
    found = []
    for shortest in (256, 1024):
      monkeypatch.setattr(cache_plan, "SHORTEST", shortest)
      found.append(spoken(device, checkpoint, None, shard))
    for moved, stayed in zip(*found, strict=True):
      assert np.array_equal(moved, stayed), shard
  checkpoint.close()


def mixed(device: Any, checkpoint: Checkpoint, cuts: tuple[int, ...]) -> list[np.ndarray]:
  """What comes of steps for two to five sequences at once, whose places have gaps, from stages that begin with these layers."""
  n = checkpoint.config.n_layers
  options = LoadOptions(2**33, 1, max_sequences=8, max_context=512, kv_type="f32")
  stages = [
      LlamaCppStage(device, Shard("m", first, end - 1, n), checkpoint, options, lambda _: None)
      for first, end in itertools.pairwise((0, *cuts, n))
  ]
  ids = np.random.default_rng(5).integers(5, min(250, checkpoint.config.vocab_size), (7, 60)).astype(np.int32)
  lengths = dict.fromkeys(range(7), 0)
  prompts = [[(sequence, 6 + 5 * sequence)] for sequence in (1, 6, 2, 3, 4, 5)]
  names = ((1, 2), (2, 3, 5), (1, 3, 4, 5), (1, 2, 3, 4, 5), (1, 5))
  found = []
  for step in (*prompts, *([(sequence, 1) for sequence in those] for those in names), [(3, 7), (1, 1), (5, 9), (2, 1)]):
    if step == [(1, 1), (2, 1)]:  # what follows has a gap in its places
      for stage in stages:
        stage.drop(6)
    entries = tuple(BatchEntry(s, lengths[s], count, LogitsOf.ALL) for s, count in step)
    token_ids = np.concatenate([ids[s, lengths[s]:lengths[s] + count] for s, count in step])
    lengths |= {s: lengths[s] + count for s, count in step}
    hidden = None
    for stage in stages:
      hidden = stage.step(Batch(entries, token_ids, hidden)).copy()
    assert hidden is not None
    found.append(hidden)
  for stage in stages:
    stage.close()
  return found


@pytest.mark.parametrize("form", FORMS)
def test_line_5_stages_equal_the_whole_in_steps_of_several_sequences_with_gaps(
    form: Form, device: HereDevice, tmp_path: Path
) -> None:
  checkpoint = open_checkpoint(form.lay_out(tmp_path))
  n = checkpoint.config.n_layers
  expected = mixed(device, checkpoint, ())
  for cut in () if checkpoint.facts.whole_only else ((1, ), tuple(sorted({n // 2, n - 1}))):
    for got, wanted in zip(mixed(device, checkpoint, cut), expected, strict=True):
      assert np.array_equal(got, wanted), cut
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
