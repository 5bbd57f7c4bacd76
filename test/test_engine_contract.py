"""The contract that every engine keeps: any split, batch or chunking of a model gives what the whole gives."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from exo.errors import CacheReuseError, EngineError, OutOfMemoryError
from exo.inference.dummy.checkpoint import DummyCheckpoint
from exo.inference.engine import Batch, BatchEntry, LoadOptions, LogitsOf
from exo.inference.engines import load_engine, probe_engine
from exo.inference.shard import Shard
from exo.inference.weights.checkpoint import EMBEDDING, Checkpoint, open_checkpoint
from test.support.interruptions import InterruptedCallError, Interruptions
from test.support.shaped_models import Shape, write_shaped
from test.support.stages import Stages

# an engine, and after a colon how it holds the weights
ENGINES = ["dummy", "llama_cpp", "mlx", "mlx:8", "onnx", "onnx:4", "onnx:none", "tinygrad", "tinygrad:8", "tinygrad:4"]
ARCHITECTURES = ["llama", "llama3_rope", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"]
EXACT = {"dummy", "onnx", "onnx:4", "onnx:none", "tinygrad", "tinygrad:8", "tinygrad:4"}
# golden folders that an engine takes, and how far 8 bits may be off
REFERENCES = {"onnx": (ARCHITECTURES, 5e-2), "tinygrad": ([*ARCHITECTURES, "qwen3_moe"], 3e-2)}


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
  probe = probe_engine(request.param.partition(":")[0])
  if not probe.available:
    pytest.skip(probe.missing)
  return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(engine: str, goldens: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoint]:
  if engine == "llama_cpp":
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    opened: Checkpoint = open_checkpoint(write_shaped(path, Shape(6, 256, 512, 8, 4, 320), "Q8_0"))
  else:
    opened = DummyCheckpoint() if engine == "dummy" else open_checkpoint(goldens / "llama")
  yield opened
  opened.close()


@pytest.fixture
def tokens(checkpoint: Checkpoint) -> list[int]:
  return [
      int(t) for t in np.random.default_rng(0).integers(5, checkpoint.config.vocab_size, 40)
  ]  # those below make the dummy engine fail


def same(engine: str, a: npt.NDArray[Any], b: npt.NDArray[Any]) -> None:
  if engine in EXACT:
    np.testing.assert_array_equal(a, b)
  else:
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("cuts", [(1, ), (3, ), (5, ), (2, 4), (1, 2, 3, 4, 5)])
def test_any_split_equals_the_whole(
    engine: str, checkpoint: Checkpoint, tokens: list[int], cuts: tuple[int, ...]
) -> None:
  whole, split = Stages(engine, checkpoint), Stages(engine, checkpoint, cuts)
  same(engine, split.step([(1, 0, tokens)]), whole.step([(1, 0, tokens)]))
  same(engine, split.step([(1, 40, tokens[:1])]), whole.step([(1, 40, tokens[:1])]))


def test_chunks_equal_one_prefill(engine: str, checkpoint: Checkpoint, tokens: list[int]) -> None:
  stages = Stages(engine, checkpoint, (3, ))
  whole = stages.step([(1, 0, tokens)])
  parts = [stages.step([(2, a, tokens[a:b])]) for a, b in ((0, 7), (7, 9), (9, 31), (31, 40))]
  same(engine, np.concatenate(parts), whole)


@pytest.mark.parametrize("exact", [True, False])
def test_a_batch_of_unequal_lengths_equals_its_members_alone(
    engine: str, checkpoint: Checkpoint, tokens: list[int], exact: bool
) -> None:
  alone, together = Stages(engine, checkpoint, (3, )), Stages(engine, checkpoint, (3, ))
  lengths = {1: 5, 2: 33, 3: 17}
  for stages in (alone, together):
    for sequence, length in lengths.items():
      stages.step([(sequence, 0, tokens[:length])])
  for k in range(4):
    batch = together.step([(s, n + k, [tokens[k + s]]) for s, n in lengths.items()], exact=exact)
    for row, (s, n) in enumerate(lengths.items()):
      same(engine, batch[row:row + 1], alone.step([(s, n + k, [tokens[k + s]])]))


def test_prompts_and_decodes_mix_in_one_step(engine: str, checkpoint: Checkpoint, tokens: list[int]) -> None:
  alone, together = Stages(engine, checkpoint), Stages(engine, checkpoint)
  for stages in (alone, together):
    stages.step([(1, 0, tokens[:9])])
    stages.step([(3, 0, tokens[:12])])
  mixed = together.step([(1, 9, tokens[9:10]), (2, 0, tokens[:20]), (3, 12, tokens[12:13])])
  expected = [
      alone.step([(1, 9, tokens[9:10])]),
      alone.step([(2, 0, tokens[:20])]),
      alone.step([(3, 12, tokens[12:13])])
  ]
  same(engine, mixed, np.concatenate(expected))


def test_wanted_logits_alone_are_computed(engine: str, checkpoint: Checkpoint, tokens: list[int]) -> None:
  stages = Stages(engine, checkpoint)
  every = stages.step([(1, 0, tokens[:10])], LogitsOf.ALL)
  assert stages.step([(2, 0, tokens[:10])], LogitsOf.NONE).shape == (0, checkpoint.config.vocab_size)
  same(engine, stages.step([(3, 0, tokens[:10])], LogitsOf.LAST), every[-1:])


def test_truncated_copied_and_dropped_caches(engine: str, checkpoint: Checkpoint, tokens: list[int]) -> None:
  stages = Stages(engine, checkpoint, (2, ))
  expected = stages.step([(1, 0, tokens)])
  stages.each("truncate", 1, 25)
  same(engine, stages.step([(1, 25, tokens[25:])]), expected[25:])
  stages.each("copy", 1, 2, 30)
  same(engine, stages.step([(2, 30, tokens[30:])]), expected[30:])
  stages.step([(2, 40, tokens[:5])])  # what the copy does later is its own affair
  stages.each("truncate", 1, 30)
  same(engine, stages.step([(1, 30, tokens[30:])]), expected[30:])
  stages.each("drop", 1)
  stages.each("drop", 99)
  same(engine, stages.step([(1, 0, tokens)]), expected)


@pytest.mark.parametrize("wide", [(1, 3), (2, 3), (4, 4), (3, 16)])
def test_a_replayed_step_of_drafts_gives_the_cache_that_it_gave(
    engine: str, checkpoint: Checkpoint, tokens: list[int], wide: tuple[int, int]
) -> None:
  """A failover after speculation: what the wrong drafts were does not matter, only that there were as many."""
  stages, (stay, width) = Stages(engine, checkpoint, (2, )), wide
  for sequence, drafts in ((1, tokens[30:]), (2, tokens[19 + stay:20 + stay] * width)):
    stages.step([(sequence, 0, tokens[:19])])
    stages.step([(sequence, 19, tokens[19:20])])
    stages.step([(sequence, 20, [*tokens[20:20 + stay], *drafts][:width])])
    stages.each("truncate", sequence, 20 + stay)
  following = tokens[20 + stay:21 + stay]
  made, replayed = (stages.step([(sequence, 20 + stay, following)]) for sequence in (1, 2))
  np.testing.assert_array_equal(made, replayed)


def test_sequences_come_and_go_without_touching_each_other(
    engine: str, checkpoint: Checkpoint, tokens: list[int]
) -> None:
  """Rows are reused and moved; a decode batch must see each sequence's own cache."""
  stages, rng = Stages(engine, checkpoint), np.random.default_rng(1)
  lengths: dict[int, int] = {}
  fresh = 100
  for _ in range(40):
    if len(lengths) < 6 and rng.random() < 0.5:
      fresh += 1
      lengths[fresh] = int(rng.integers(2, 20))
      stages.step([(fresh, 0, tokens[:lengths[fresh]])])
    elif lengths and rng.random() < 0.3:
      gone = int(rng.choice(list(lengths)))
      stages.each("drop", gone)
      del lengths[gone]
    elif lengths:
      chosen = [int(s) for s in rng.permutation(list(lengths))[:int(rng.integers(1, len(lengths) + 1))]]
      chosen = [s for s in chosen if lengths[s] < 39]
      if chosen:
        out = stages.step([(s, lengths[s], [tokens[lengths[s]]]) for s in chosen])
        for row, s in enumerate(chosen):
          lengths[s] += 1
          check = Stages(engine, checkpoint) if engine == "dummy" else stages
          check.step([(1, 0, tokens[:lengths[s] - 1])])
          same_or_close = check.step([(1, lengths[s] - 1, [tokens[lengths[s] - 1]])])
          check.each("drop", 1)
          np.testing.assert_allclose(out[row:row + 1], same_or_close, rtol=0.05, atol=0.05 * np.abs(out).max())


def test_wrong_positions_and_overlong_sequences_are_refused(
    engine: str, checkpoint: Checkpoint, tokens: list[int]
) -> None:
  stages = Stages(engine, checkpoint)
  stages.step([(1, 0, tokens)])
  with pytest.raises(EngineError, match="position 39"):
    stages.step([(1, 39, tokens[:1])])
  with pytest.raises(EngineError, match="longer than 512"):
    stages.step([(2, 0, tokens * 13)])


# against reference logits


def relative_error(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
  """|a - b| / |b| in the Euclidean norm."""
  return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_planning_knows_what_weights_take(engine: str, goldens: Path) -> None:
  """The engine's word beforehand is near what a loaded stage occupies (matrices this narrow fill their blocks badly)."""
  name, _, quantize = engine.partition(":")
  if name == "llama_cpp":
    pytest.skip("it reads GGUF files alone: test_llama_cpp.py")
  opened = open_checkpoint(goldens / "llama")
  stages, size, weights = Stages(engine, opened), opened.size, probe_engine(name, quantize or None).weights
  expected = weights.stage(size, 0, size.n_layers, 0).held - weights.overhead(size)
  if name == "dummy":
    assert expected == 0
    return
  if weights.embedding_in_file:
    expected -= size.embedding_bytes
  assert 0.7 < stages.models[0].memory.weight_bytes / expected < 1.7


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_what_embeddings_are_made_of(engine: str, architecture: str, goldens: Path, tokens: list[int]) -> None:
  """Hidden states after the final norm, alike on all engines, also of the second half of a prompt and over two stages."""
  if engine == "dummy":
    pytest.skip("the dummy engine computes nothing that others do")
  if engine == "llama_cpp":
    pytest.skip("it reads GGUF files alone: test_llama_child.py")
  opened = open_checkpoint(goldens / architecture)

  def hidden_states(name: str, cuts: tuple[int, ...]) -> npt.NDArray[Any]:
    stages, found = Stages(name, opened, cuts, quantize="none"), []
    for start, end in ((0, 20), (20, 40)):
      entries, x = (BatchEntry(1, start, end - start, LogitsOf.NONE), ), None
      ids = np.asarray(tokens[start:end], np.int32)
      for model in stages.models[:-1]:
        x = model.step(Batch(entries, ids, x))
      found.append(stages.models[-1].hidden_states(Batch(entries, ids, x)))
    return np.concatenate(found)

  got, expected = hidden_states(engine.partition(":")[0], (3, )), hidden_states("onnx", ())
  assert got.dtype == np.float32 and got.shape == (40, opened.config.hidden_size)
  assert relative_error(got, expected) < 1e-4


def test_a_stage_reads_its_own_tensors_only(engine: str, goldens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
  if engine == "dummy":
    pytest.skip("the dummy engine has no weights")
  if engine == "llama_cpp":
    pytest.skip("it reads GGUF files alone: test_llama_cpp.py")
  opened, read = open_checkpoint(goldens / "gemma3_text"), []
  original = opened.tensor
  monkeypatch.setattr(opened, "tensor", lambda name: read.append(name) or original(name))
  for first, last in ((0, 1), (2, 3), (4, 5)):
    read.clear()
    load_engine(engine.partition(":")[0]
                ).load(Shard("m", first, last, 6), opened, LoadOptions(2**33, 1, max_context=512), lambda _: None)
    layers = {int(name.split(".")[2]) for name in read if ".layers." in name}
    others = {name for name in read if ".layers." not in name}
    assert layers == {first, last}
    # embedding and head are one tensor here
    assert others == {0: {EMBEDDING}, 2: set(), 4: {EMBEDDING, "model.norm.weight"}}[first]


@pytest.mark.parametrize("quantize", ["none", "8"])
@pytest.mark.parametrize(("name", "architecture"), [(e, a) for e, (names, _) in REFERENCES.items() for a in names])
def test_reference_logits(goldens: Path, name: str, architecture: str, quantize: str) -> None:
  if not (probe := probe_engine(name)).available:
    pytest.skip(probe.missing)
  if quantize == "8" and architecture == "qwen3_moe":
    pytest.skip("which expert comes second is nearly a tie in random weights: test_tinygrad.py looks at the median")
  tolerance = 1e-3 if quantize == "none" else REFERENCES[name][1]
  folder = goldens / architecture
  if not folder.is_dir():
    pytest.skip("the shared golden checkpoints are not here")
  opened = open_checkpoint(folder)
  prompts, expected = np.load(folder / "tokens.npy"), np.load(folder / "logits.npy")
  greedy = np.load(folder / "greedy.npy")
  for cuts in ((), (2, 4)):
    stages = Stages(name, opened, cuts, quantize)
    for row, prompt in enumerate(prompts):
      logits = stages.step([(row, 0, prompt.tolist())])
      assert relative_error(logits, expected[row]) < tolerance
      if quantize == "none":
        continued, position, last = [], len(prompt), logits[-1]
        for _ in range(greedy.shape[1]):
          continued.append(int(last.argmax()))
          last = stages.step([(row, position, continued[-1:])])[-1]
          position += 1
        assert continued == greedy[row].tolist()
    stages.close()


# steps that fail

# sequence: its part of `tokens`; 3 begins in the step that fails
PROMPTS = {1: (0, 12), 2: (20, 27), 4: (5, 15), 5: (3, 12)}


class FailingStage:
  """One stage of two with five sequences: 1, 2 and 5 go on in a step with the new 3, and 4 has no part in it."""
  def __init__(self, engine: str, checkpoint: Checkpoint, tokens: list[int], index: int) -> None:
    self.model = Stages(engine, checkpoint, (3, )).models[index]
    self._tokens, self._hidden_size = tokens, 8 if engine == "dummy" else checkpoint.config.hidden_size
    for sequence in PROMPTS:
      self.begin(sequence)

  def batch(self, *entries: tuple[int, int, int, int]) -> Batch:
    """Of (sequence, position, first token, end)."""
    ids = np.concatenate([np.asarray(self._tokens[a:b], np.int32) for _, _, a, b in entries])
    hidden = None
    if not self.model.shard.is_first:
      places = np.concatenate([np.arange(p, p + b - a) for _, p, a, b in entries])
      hidden = (np.add.outer(ids * 31 + places, np.arange(self._hidden_size)) % 17 - 8).astype(np.float32)
    return Batch(tuple(BatchEntry(s, p, b - a, LogitsOf.ALL) for s, p, a, b in entries), ids, hidden)

  def begin(self, sequence: int) -> None:
    first, end = PROMPTS[sequence]
    self.model.step(self.batch((sequence, 0, first, end)))

  def failing(self) -> Batch:
    return self.batch((1, 12, 30, 31), (3, 0, 0, 9), (2, 7, 31, 32), (5, 9, 22, 25))

  def following(self) -> Batch:
    return self.batch((3, 9, 32, 33), (2, 8, 33, 34), (4, 10, 34, 35), (1, 13, 35, 38), (5, 12, 4, 5))

  def undo(self) -> None:
    """What the one who drives the engine does after an error: cut back, or else compute anew."""
    for sequence, position in ((1, 12), (2, 7), (5, 9)):
      try:
        self.model.truncate(sequence, position)
      except CacheReuseError:
        self.model.drop(sequence)
        self.begin(sequence)
    self.model.drop(3)

  def results(self) -> list[npt.NDArray[Any]]:
    """Of both steps, which are then taken back."""
    found = [self.model.step(self.failing()).copy(), self.model.step(self.following()).copy()]
    self.model.truncate(4, 10)
    self.undo()
    return found


@pytest.mark.parametrize("index", [0, 1])
def test_line_5_a_step_that_raises_anywhere_can_be_undone(
    engine: str, checkpoint: Checkpoint, tokens: list[int], index: int
) -> None:
  """Every call that the engine's code makes in a step raises in its turn; afterwards nothing tells of it."""
  if ":" in engine:
    pytest.skip("weights of another kind are computed with by the same code")
  stage, calls = FailingStage(engine, checkpoint, tokens, index), Interruptions("exo/inference")
  expected = stage.results()
  with calls.at(None):
    stage.model.step(stage.failing())
  stage.undo()
  count = calls.calls
  assert count > 5
  for number in range(0, count, max(1, count // 40)):
    with pytest.raises((EngineError, InterruptedCallError)), calls.at(number):
      stage.model.step(stage.failing())
    stage.undo()
    for got, wanted in zip(stage.results(), expected, strict=True):
      same(engine, got, wanted)


# what of an engine is called in the middle of a step, to be followed by the error of a library that has no memory left
LIBRARY_CALLS = {
    "dummy": ("exo.inference.dummy.engine.DummyStage._layers", MemoryError()),
    "mlx": ("mlx.core.eval", RuntimeError("[malloc_or_wait] Unable to allocate 123 bytes.")),
    "onnx": ("exo.inference.onnx.engine._Binding.run", RuntimeError("Failed to allocate memory for requested buffer")),
    "llama_cpp": ("exo.inference.llama_cpp.stage.LlamaCppStage._call", MemoryError("no memory is left")),
    "tinygrad": ("exo.inference.tinygrad.engine.run", MemoryError("Allocation of 1.00 MB failed")),
}


@pytest.mark.parametrize("index", [0, 1])
def test_line_7_memory_that_ends_in_the_middle_of_a_step_is_that_steps_error(
    engine: str, checkpoint: Checkpoint, tokens: list[int], index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
  """Each call of the library in its turn has done its work, into the caches too, and fails all the same."""
  if ":" in engine:
    pytest.skip("weights of another kind are computed with by the same code")
  stage, (path, error) = FailingStage(engine, checkpoint, tokens, index), LIBRARY_CALLS[engine]
  expected, original, calls = stage.results(), pkgutil.resolve_name(path), 0

  def fail_at(number: int) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
      nonlocal calls
      result, calls = original(*args, **kwargs), calls + 1
      if calls - 1 == number:
        raise error
      return result

    return call

  for number in range(100):
    calls = 0
    with monkeypatch.context() as patch:
      patch.setattr(path, fail_at(number))
      try:
        stage.model.step(stage.failing())
      except OutOfMemoryError as caught:
        assert "memory" in str(caught)
      else:
        assert calls <= number
        break
    stage.undo()
    for got, wanted in zip(stage.results(), expected, strict=True):
      same(engine, got, wanted)
  assert number > 0


def test_line_4_a_step_of_no_numbers_leaves_none_behind(engine: str, checkpoint: Checkpoint, tokens: list[int]) -> None:
  """What another stage made of a step may be NaN; cut back, its sequences compute as if it had never come."""
  if engine == "dummy":
    pytest.skip("its numbers are whole")
  stage = FailingStage(engine, checkpoint, tokens, 1)
  expected = stage.results()
  for wrong in (np.nan, np.inf):
    batch = stage.batch((1, 12, 20, 29), (3, 0, 0, 9), (2, 7, 31, 32))
    assert batch.hidden is not None
    stage.model.step(Batch(batch.entries, batch.token_ids, np.full_like(batch.hidden, wrong)))
    for sequence, position in ((1, 12), (2, 7), (3, 0)):
      stage.model.truncate(sequence, position)
    for got, wanted in zip(stage.results(), expected, strict=True):
      same(engine, got, wanted)


def test_line_5_what_cannot_be_computed_is_refused_at_the_door(
    engine: str, checkpoint: Checkpoint, tokens: list[int]
) -> None:
  """Ids that no embedding has and hidden states of another shape: refused, and no cache has changed."""
  first, last = (FailingStage(engine, checkpoint, tokens, index) for index in (0, 1))
  expected = [stage.results() for stage in (first, last)]
  good, given = first.failing(), last.failing()
  assert given.hidden is not None
  for wrong in (-1, checkpoint.config.vocab_size, 2**31 - 1, -2**31):
    ids = good.token_ids.copy()
    ids[3] = wrong
    with pytest.raises(EngineError, match=f"token id {wrong} is not from 0 to"):
      first.model.step(Batch(good.entries, ids))
  for hidden in (given.hidden[:-1], given.hidden[:1], given.hidden[:, :-1], given.hidden[:, :1], given.hidden[0], None):
    with pytest.raises(EngineError, match="hidden states"):
      last.model.step(Batch(given.entries, given.token_ids, hidden))
  for stage, batch in ((first, good), (last, given)):
    with pytest.raises(EngineError, match="token ids"):
      stage.model.step(Batch(batch.entries, batch.token_ids[:-1], batch.hidden))
    with pytest.raises(CacheReuseError):
      stage.model.copy(99, 5, 4)
    with pytest.raises(CacheReuseError):
      stage.model.copy(1, 5, 13)
  for stage, wanted in zip((first, last), expected, strict=True):
    for position, sequence in ((12, 1), (7, 2), (9, 5)):
      stage.model.truncate(sequence, position)
    stage.model.drop(3)
    for got, want in zip(stage.results(), wanted, strict=True):
      same(engine, got, want)


def test_a_sequence_that_is_computed_anew_is_not_taken_for_the_old_one(
    engine: str, checkpoint: Checkpoint, tokens: list[int]
) -> None:
  """Two that decode together; one is dropped, and comes again under its number with another text."""
  together, alone = Stages(engine, checkpoint), Stages(engine, checkpoint)
  for sequence in (1, 2):
    together.step([(sequence, 0, tokens[:8])])
  together.step([(1, 8, tokens[8:9]), (2, 8, tokens[8:9])])
  together.each("drop", 1)
  together.step([(1, 0, tokens[20:29])])
  alone.step([(1, 0, tokens[20:29])])
  out = together.step([(1, 9, tokens[9:10]), (2, 9, tokens[9:10])])
  same(engine, out[:1], alone.step([(1, 9, tokens[9:10])]))
