"""What `--exact` promises: a token's bits depend on its own sequence alone, however prompts are cut and whoever is computed beside."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exo.inference.engine import Batch, BatchEntry, LoadOptions, LogitsOf
from exo.inference.exactness import CAREFUL, Exactness
from exo.inference.llama_cpp import child_stage
from exo.inference.llama_cpp.library_choice import chosen_library
from exo.inference.llama_cpp.library_file import library_files
from exo.inference.llama_cpp.llama_model import LlamaContext, Row
from exo.inference.llama_cpp.stage import LlamaCppStage
from exo.inference.llama_cpp.study_plan import parts_to_study, study_key
from exo.inference.sampling import SamplingParams
from exo.inference.shard import Shard
from exo.inference.weights.checkpoint import Checkpoint, open_checkpoint
from exo.networking.messages import Request, SequenceToken
from exo.orchestration.kv_room import Limits
from exo.orchestration.scheduler import Scheduler
from exo.orchestration.step import Step
from test.support.families import all_forms
from test.support.llama_device import HereDevice
from test.support.shaped_models import Shape, write_shaped

needs_library = pytest.mark.skipif(next(library_files(), None) is None, reason="xllamacpp is not installed")
PLAIN, EIGHTS = Exactness(), Exactness(3, 8, True, 3, False)
SHAPE = Shape(3, 512, 1024, 8, 4, 600, 4096)

# where prompts are cut


@pytest.mark.parametrize("exactness", [PLAIN, EIGHTS, CAREFUL, Exactness(7, 64, True, 1, False)], ids=str)
def test_issue_19_pieces_of_prompts_end_where_they_may(exactness: Exactness) -> None:
  random = np.random.default_rng(1)
  multiple, least = exactness.prompt_multiple, exactness.least_piece
  for _ in range(2000):
    at, length = 0, int(random.integers(1, 1500))
    if random.random() < 0.2:  # of a request that began with whatever there was
      at = int(random.integers(0, length))
    while at < length:
      left, budget = length - at, int(random.integers(1, 700))
      taken = exactness.piece(at, left, budget)
      smallest = exactness.smallest(at, left)
      assert taken == 0 or smallest <= taken <= min(left, budget)
      assert (taken == 0) == (smallest > budget) and smallest <= exactness.most_piece
      taken = taken or smallest
      end = at + taken
      assert end == length or (end % multiple == 0 and length - end >= least)
      if at % multiple == 0:
        assert taken >= min(left, least) and (exactness.joined or taken < 2 * multiple)
      at = end


def test_issue_19_of_several_stages_the_least_and_the_greatest_count() -> None:
  assert Exactness.of_all([PLAIN, PLAIN]) == PLAIN
  assert Exactness.of_all([PLAIN, EIGHTS, Exactness(7, 16, True, 7, True)]) == Exactness(3, 16, True, 3, False)
  assert Exactness.of_all([EIGHTS, CAREFUL]) == CAREFUL


# the scheduler


def asked(name: str, prompt: range | list[int], exact: bool = True, max_tokens: int = 8) -> Request:
  return Request(name, "n", tuple(prompt), max_tokens, frozenset(), SamplingParams(), exact=exact)


def steps_of(scheduler: Scheduler, n_tokens: int = 8) -> Iterator[Step]:
  """All that it lets out, each step answered at once with a token for every sequence that wants one."""
  given: dict[int, int] = {}
  while (step := scheduler.next_step()) is not None:
    yield step
    tokens = []
    for entry in step.entries:
      if entry.logits:
        given[entry.sequence] = given.get(entry.sequence, 0) + 1
        is_over = given[entry.sequence] >= n_tokens
        tokens.append(SequenceToken(entry.sequence, 7, "length" if is_over else ""))
        if is_over:
          del given[entry.sequence]
    scheduler.on_result(step.number, tuple(tokens))


@pytest.mark.parametrize("exactness", [EIGHTS, CAREFUL], ids=["eights", "careful"])
@pytest.mark.parametrize("stages", [1, 3])
def test_issue_19_prompts_are_cut_at_multiples_whoever_runs_beside(exactness: Exactness, stages: int) -> None:
  """Those of random requests, too, since exact ones may begin with them later."""
  limits = Limits(8, 40_000, 4096, stages=stages, step_tokens=256, exactness=(exactness, ) * stages)
  scheduler = Scheduler(limits)
  random = np.random.default_rng(2)
  lengths = {}
  for i in range(12):
    lengths[f"r{i}"] = int(random.integers(1, 1400))
    start = int(random.integers(1000, 9000))
    scheduler.add(asked(f"r{i}", range(start, start + lengths[f"r{i}"]), exact=bool(i % 3)))
  name_of: dict[int, str] = {}
  ended = dict.fromkeys(lengths, 0)
  for step in steps_of(scheduler):
    name_of |= {opened.sequence: opened.request.request_id for opened in step.opens}
    for entry in step.entries:
      length = lengths[name_of[entry.sequence]]
      assert entry.exact == (int(name_of[entry.sequence][1:]) % 3 > 0)
      if entry.position < length:
        end = entry.position + entry.n_tokens
        assert end == length or (end % exactness.prompt_multiple == 0 and length - end >= exactness.least_piece)
        assert exactness.joined or entry.n_tokens < 2 * exactness.prompt_multiple
        ended[name_of[entry.sequence]] = end
  assert ended == lengths


def begun(scheduler: Scheduler, request: Request) -> int:
  """How many tokens of its prompt a request found in a cache; it runs to its end."""
  scheduler.add(request)
  opens = [opened for step in steps_of(scheduler) for opened in step.opens]
  return opens[0].reused


def test_issue_19_exact_requests_begin_with_rows_that_prompts_made() -> None:
  scheduler = Scheduler(Limits(8, 40_000, 4096, exactness=(EIGHTS, )))
  prompt = list(range(100, 203))
  assert begun(scheduler, asked("first", prompt)) == 0
  turn = [*prompt, *[7] * 8, *range(300, 350)]  # with its answer
  assert begun(scheduler, asked("second", turn)) == 96  # 103 down to a multiple, and nothing that was decoded
  third = [*turn, *[9] * 10]
  assert begun(scheduler, asked("third", third)) == 160  # of 161, which a prompt has made now
  longer = [*third, *[7] * 7]
  assert begun(scheduler, asked("random", [*longer, *range(900, 920)], exact=False)) == 178, "with what was decoded"
  assert begun(scheduler, asked("fourth", [*longer, *range(900, 930)])) == 168, "not with what began with that"
  # a piece of eight, at least, is left to compute
  assert begun(scheduler, asked("same", turn)) == 152


def test_issue_19_where_decoding_makes_the_same_rows_all_are_used() -> None:
  scheduler = Scheduler(Limits(8, 40_000, 4096, exactness=(PLAIN, )))
  prompt = list(range(100, 203))
  begun(scheduler, asked("first", prompt))
  assert begun(scheduler, asked("second", [*prompt, *[7] * 8, *range(300, 350)])) == 110


def test_issue_19_groups_of_a_ring_fill_the_calls() -> None:
  """Eight streams on two stages: three calls of three rows or fewer take less than four."""
  for exact, sizes in ((True, {3}), (False, {4})):
    scheduler = Scheduler(Limits(8, 40_000, 4096, stages=2, exactness=(EIGHTS, ) * 2))
    for i in range(8):
      scheduler.add(asked(f"r{i}", range(100 * i, 100 * i + 20), exact, max_tokens=40))
    decodes = []
    had: Counter[int] = Counter()
    flying: list[Step] = []
    for _ in range(60):
      while (step := scheduler.next_step()) is not None:
        flying.append(step)
      step = flying.pop(0)
      if all(entry.n_tokens == 1 for entry in step.entries):
        decodes.append(len(step.entries))
        if len(decodes) > 20:
          had.update(entry.sequence for entry in step.entries)
      tokens = tuple(SequenceToken(e.sequence, 7) for e in step.entries if e.logits)
      scheduler.on_result(step.number, tokens)
      if not scheduler.requests():
        break
    assert set(decodes[20:40]) == sizes
    assert len(had) == 8 and max(had.values()) - min(had.values()) <= 2, "and nobody waits for the others' ends"


def test_issue_19_what_is_found_out_holds_from_then_on() -> None:
  scheduler = Scheduler(Limits(8, 40_000, 4096, stages=2, exactness=(CAREFUL, EIGHTS)))
  scheduler.add(asked("first", range(600)))
  step = scheduler.next_step()
  assert step is not None and step.token_ids.size == 256
  scheduler.on_result(step.number, ())
  scheduler.learn(0, EIGHTS)
  assert scheduler.exactness == EIGHTS
  more = scheduler.next_step()
  assert more is not None and 0 < more.token_ids.size < 256 and more.token_ids.size % 8 == 0


# llama.cpp


@pytest.fixture(scope="module")
def device() -> Iterator[HereDevice]:
  found = HereDevice()
  yield found
  found.close()


class Streams:
  """Texts that grow on a stage, all the rows that came of each kept."""
  def __init__(self, stage: LlamaCppStage, ids: np.ndarray) -> None:
    self._stage, self._ids = stage, ids
    self._at: dict[int, int] = {}
    self.rows: dict[int, list[bytes]] = {}

  def feed(self, counts: dict[int, int], inexact: frozenset[int] = frozenset()) -> None:
    """So many tokens of each, in one step."""
    entries, ids = [], []
    for sequence, count in counts.items():
      at = self._at.get(sequence, 0)
      entries.append(BatchEntry(sequence, at, count, LogitsOf.LAST, exact=sequence not in inexact))
      ids.append(self._ids[sequence + at:sequence + at + count])
      self._at[sequence] = at + count
    for entry, row in zip(entries, self._stage.step(Batch(tuple(entries), np.concatenate(ids))), strict=True):
      self.rows.setdefault(entry.sequence, []).append(row.tobytes())


def stage_of(device: Any, checkpoint: Checkpoint, threads: int = 1, kv_type: str | None = None) -> LlamaCppStage:
  n = checkpoint.config.n_layers
  options = LoadOptions(2**34, threads, max_sequences=32, max_context=4608, kv_type=kv_type)
  return LlamaCppStage(device, Shard("m", 0, n - 1, n), checkpoint, options, lambda _: None)


def studied(stage: LlamaCppStage) -> Exactness:
  study = stage.to_study()
  assert study is not None
  return study.run(lambda: False)


ENCODINGS = [
    "Q4_K_M", "Q8_0", *(pytest.param(encoding, marks=pytest.mark.slow) for encoding in ("Q6_K", "Q4_0", "BF16", "moe"))
]


@needs_library
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_issue_19_a_token_is_alone_what_it_is_among_others(
    encoding: str, device: HereDevice, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
  """However many are in the step, wherever they stand, with whom whose numbers need not be exact; with prompts cut in any way that is
  allowed; before and after it was found out what is allowed; with one, two and three threads."""
  if encoding == "moe":
    form = next(form for form in all_forms() if (form.family, form.form) == ("qwen3_moe", "gguf"))
    checkpoint = open_checkpoint(form.lay_out(tmp_path))
    object.__setattr__(checkpoint.config, "max_context", 4608)
  else:
    checkpoint = open_checkpoint(write_shaped(tmp_path / "m.gguf", SHAPE, encoding))
  lengths = {1: 100, 2: 600, 3: 40, 4: 333, 5: 101, 6: 256, 7: 65, 8: 17, **{9 + i: 30 + 11 * i for i in range(9)}}
  if "slow" in request.keywords:
    lengths[2] = 4000
  ids = np.random.default_rng(4).integers(5, min(250, checkpoint.config.vocab_size), 5000).astype(np.int32)
  loose = frozenset((6, 12))
  expected: dict[int, list[bytes]] = {}
  found: Exactness | None = None
  for threads in (1, 2, 3):
    stage = stage_of(device, checkpoint, threads)
    alone = Streams(stage, ids)
    for sequence, length in lengths.items():
      alone.feed({sequence: length})
      for _ in range(6):
        alone.feed({sequence: 1})
      stage.drop(sequence)
    exact = {sequence: rows for sequence, rows in alone.rows.items() if sequence not in loose}
    assert exact == (expected or exact), "the number of threads matters"
    expected = exact
    found = found or studied(stage)
    stage.learn(found)
    random = np.random.default_rng(threads)
    together = Streams(stage, ids)
    for sequence, length in lengths.items():
      at = 0
      while at < length:
        taken = found.piece(at, length - at, int(random.integers(1, 700))) or found.smallest(at, length - at)
        together.feed({sequence: taken} | dict.fromkeys((), 0), loose)
        at += taken
    for others in (1, 3, 4, 8, 16, 17):
      names = [int(name) for name in random.permutation(list(lengths))[:others]]
      together.feed(dict.fromkeys(names, 1), loose)
    for sequence in exact:
      rows = together.rows[sequence]
      decoded = [row for row in rows if row in expected[sequence]]
      assert decoded, "its last row of the prompt is there"
      first = rows.index(expected[sequence][0])  # the prompt's last row, behind those of pieces before
      assert rows[first:] == expected[sequence][:len(rows) - first]
    stage.close()
  print(f"{encoding}: {found}")
  checkpoint.close()


@needs_library
def test_issue_19_streams_are_computed_together_whatever_is_kept_between_them(
    device: HereDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """Only neighbours share a call: those that run are brought together, now and then, with the same bits."""
  checkpoint = open_checkpoint(write_shaped(tmp_path / "m.gguf", SHAPE, "Q8_0"))
  stage = stage_of(device, checkpoint)
  stage.learn(studied(stage))
  assert not stage.exactness.decode_rows
  ids = np.random.default_rng(4).integers(5, 250, 500).astype(np.int32)
  names = range(1, 13)
  alone, together = Streams(stage, ids), Streams(stage, ids)
  for sequence in names:
    alone.feed({sequence: 10 * sequence})
    for _ in range(60):
      alone.feed({sequence: 1})
    stage.drop(sequence)
  calls = list[int]()
  compute = LlamaContext.compute

  def counted(self: LlamaContext, rows: Sequence[Row], *more: Any) -> Any:
    calls.append(len(rows))
    return compute(self, rows, *more)

  monkeypatch.setattr(LlamaContext, "compute", counted)
  for sequence in names:
    together.feed({sequence: 10 * sequence})

  def calls_of(running: Sequence[int]) -> list[int]:
    calls.clear()
    together.feed(dict.fromkeys(running, 1))
    return sorted(calls)

  assert [calls_of((1, 4, 5, 8, 12)) for _ in range(2)] == [[5], [5]]
  # another few, and these again, as on a ring: after some steps each has its place
  for _ in range(20):
    calls_of((2, 3, 9, 11))
    calls_of((1, 4, 5, 8, 12))
  assert calls_of((2, 3, 9, 11)) == [4] and calls_of((1, 4, 5, 8, 12)) == [5]
  for sequence in names:
    rows = together.rows[sequence]
    assert rows == alone.rows[sequence][:len(rows)], sequence
  stage.close()
  checkpoint.close()


@needs_library
def test_issue_19_a_prompt_in_pieces_takes_a_context_for_all_of_it_at_once(
    device: HereDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """Instead of one after the other for each class of lengths that it grows through; the bits are the same."""
  checkpoint = open_checkpoint(write_shaped(tmp_path / "m.gguf", SHAPE, "Q8_0"))
  ids = np.random.default_rng(4).integers(5, 250, 1300).astype(np.int32)
  made = list[int]()
  create = LlamaContext.__init__

  def counted(self: LlamaContext, model: Any, length: int, *more: Any) -> None:
    made.append(length)
    create(self, model, length, *more)

  rows = dict[bool, list[bytes]]()
  for is_expected in (False, True):
    stage = LlamaCppStage(device, Shard("m", 0, 2, 3), checkpoint, LoadOptions(2**31, 1), lambda _: None)
    stage.learn(Exactness(0, 8, True, 1, False))
    with monkeypatch.context() as patch:
      patch.setattr(LlamaContext, "__init__", counted)
      made.clear()
      streams = Streams(stage, ids)
      if is_expected:
        stage.expect(1, 1100)
      for _ in range(9):
        streams.feed({1: 120})
      for _ in range(3):
        streams.feed({1: 1})
      real = [length for length in made if length < 4096]  # others are made to see what they would take
      assert set(real) == ({2048} if is_expected else {512, 1024, 2048}), made
      stage.drop(1)
      streams.feed({2: 20})  # nothing is left of it
      assert made[-1] == 512
    rows[is_expected] = streams.rows[1]
    stage.close()
  assert rows[True] == rows[False]
  checkpoint.close()


@needs_library
def test_issue_19_scored_prompts_and_embeddings_do_not_depend_on_how_they_came(
    device: HereDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """Of a large vocabulary only some rows are computed at once: these, too, are the same ones each time."""
  monkeypatch.setattr(child_stage, "_SCORED_BYTES", 64 * 4 * SHAPE.words)
  checkpoint = open_checkpoint(write_shaped(tmp_path / "m.gguf", SHAPE, "Q4_K_M"))
  ids = np.random.default_rng(4).integers(5, 250, 700).astype(np.int32)
  for length, wanted in itertools.product((65, 66, 129, 300), (LogitsOf.ALL, LogitsOf.HIDDEN)):
    seen = set()
    for most in (32, 80, 256):
      stage = stage_of(device, checkpoint)
      stage.learn(EIGHTS)
      at, rows = 0, []
      while at < length:
        count = EIGHTS.piece(at, length - at, most)
        batch = Batch((BatchEntry(1, at, count, wanted), ), ids[at:at + count])
        rows.append((stage.step if wanted == LogitsOf.ALL else stage.hidden_states)(batch).copy())
        at += count
      seen.add(np.concatenate(rows).tobytes())
      stage.close()
    assert len(seen) == 1, (length, wanted)
  checkpoint.close()


@needs_library
def test_issue_19_a_study_does_not_take_decoding_for_a_prompt_where_it_is_not(
    device: HereDevice, tmp_path: Path
) -> None:
  """With floats of 16 bits and no flash attention single rows of Q8_0 differ from many, although most of that is rounded away."""
  checkpoint = open_checkpoint(write_shaped(tmp_path / "m.gguf", SHAPE, "Q8_0"))
  stage = stage_of(device, checkpoint, kv_type="f16")
  found = studied(stage)
  stage.learn(found)
  ids = np.random.default_rng(4).integers(5, 250, 700).astype(np.int32)
  alike = True
  for n in range(150, 220, 7):
    whole = stage.step(Batch((BatchEntry(1, 0, n, LogitsOf.LAST), ), ids[:n])).tobytes()
    stage.step(Batch((BatchEntry(2, 0, 64, LogitsOf.LAST), ), ids[:64]))
    for at in range(64, n):
      last = stage.step(Batch((BatchEntry(2, at, 1, LogitsOf.LAST), ), ids[at:at + 1]))
    alike = alike and last.tobytes() == whole
    stage.drop(1)
    stage.drop(2)
  assert alike or not found.as_prompt, found
  stage.close()
  checkpoint.close()


@needs_library
def test_issue_19_stages_are_exact_as_one_node_is(device: HereDevice, tmp_path: Path) -> None:
  checkpoint = open_checkpoint(write_shaped(tmp_path / "m.gguf", SHAPE, "Q4_K_M"))
  options = LoadOptions(2**33, 1, max_sequences=8, max_context=1024)
  whole = stage_of(device, checkpoint)
  cut = [LlamaCppStage(device, Shard("m", a, b, 3), checkpoint, options, lambda _: None) for a, b in ((0, 0), (1, 2))]
  for stage in cut:
    stage.learn(EIGHTS)
  ids = np.random.default_rng(4).integers(5, 250, 700).astype(np.int32)
  expected = whole.step(Batch((BatchEntry(1, 0, 600, LogitsOf.LAST), ), ids[:600])).copy()
  for a, b in itertools.pairwise((0, 8, 512, 520, 600)):
    entries = (BatchEntry(1, a, b - a, LogitsOf.LAST), )
    hidden = cut[0].step(Batch(entries, ids[a:b]))
    found = cut[1].step(Batch(entries, ids[a:b], hidden))
  assert np.array_equal(found, expected)
  for stage in (whole, *cut):
    stage.close()
  checkpoint.close()


@needs_library
def test_issue_19_a_study_takes_few_layers_and_is_known_by_what_decides(tmp_path: Path) -> None:
  path = write_shaped(tmp_path / "m.gguf", Shape(16, 256, 512, 8, 4, 600), "Q4_K_M")
  checkpoint = open_checkpoint(path)
  tensors = checkpoint.header.tensors
  library = chosen_library().file.path
  parts = parts_to_study(tensors, Shard("m", 0, 15, 16))
  assert [(part.start_layer, part.end_layer) for part in parts] == [(1, 2), (15, 15)]
  assert parts_to_study(tensors, Shard("m", 4, 9, 16)) == [Shard("m", 4, 5, 16)]
  key = study_key(checkpoint.header, Shard("m", 0, 15, 16), (1, ), library)
  assert key == study_key(checkpoint.header, Shard("other", 0, 15, 16), (1, ), library)
  assert key == study_key(
      checkpoint.header, Shard("m", 2, 15, 16), (1, ), library
  ), "the same kinds of layers, and the head"
  others = [
      study_key(checkpoint.header, Shard("m", 0, 14, 16), (1, ), library),
      study_key(checkpoint.header, Shard("m", 0, 15, 16), ("q8_0", 1), library),
      study_key(checkpoint.header, Shard("m", 0, 15, 16), (2, ), library),
      study_key(checkpoint.header, Shard("m", 0, 15, 16), (1, ), path)
  ]
  assert len({key, *others}) == 5
  checkpoint.close()


def test_issue_19_exactness_is_plain_numbers_on_the_way() -> None:
  assert Exactness(*astuple(EIGHTS)) == EIGHTS
