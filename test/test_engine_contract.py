"""The contract that every engine keeps: any split, batch or chunking of a model gives what the whole gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from exo.errors import EngineError
from exo.inference.dummy.checkpoint import DummyCheckpoint
from exo.inference.engine import Batch, BatchEntry, LoadOptions, LogitsOf
from exo.inference.engines import load_engine, probe_engine, weight_memory
from exo.inference.shard import Shard
from exo.inference.weights.checkpoint import EMBEDDING, Checkpoint, open_checkpoint
from exo.orchestration.model_catalog import model_size
from exo.topology.ring_plan import WeightMemory
from test.support.stages import Stages

# an engine, and after a colon how it holds the weights
ENGINES = ["dummy", "mlx", "mlx:8", "onnx", "onnx:4", "onnx:none", "tinygrad", "tinygrad:8", "tinygrad:4"]
ARCHITECTURES = ["llama", "llama3_rope", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"]
EXACT = {"dummy", "onnx", "onnx:4", "onnx:none", "tinygrad", "tinygrad:8", "tinygrad:4"}
# golden folders that an engine takes, and how far 8 bits may be off
REFERENCES = {"onnx": (ARCHITECTURES, 5e-2), "tinygrad": ([*ARCHITECTURES, "qwen3_moe"], 3e-2)}


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
  probe = probe_engine(request.param.partition(":")[0])
  if not probe.available:
    pytest.skip(probe.reason)
  return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(engine: str, goldens: Path) -> Iterator[Checkpoint]:
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


def test_a_batch_of_unequal_lengths_equals_its_members_alone(
    engine: str, checkpoint: Checkpoint, tokens: list[int]
) -> None:
  alone, together = Stages(engine, checkpoint, (3, )), Stages(engine, checkpoint, (3, ))
  lengths = {1: 5, 2: 33, 3: 17}
  for stages in (alone, together):
    for sequence, length in lengths.items():
      stages.step([(sequence, 0, tokens[:length])])
  for k in range(4):
    batch = together.step([(s, n + k, [tokens[k + s]]) for s, n in lengths.items()])
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
  name, _, held = engine.partition(":")
  if name == "dummy":
    assert weight_memory(name, None) == WeightMemory()
    return
  opened = open_checkpoint(goldens / "llama")
  stages, size = Stages(engine, opened), model_size(opened)
  expected = weight_memory(name, held or None).scale(size) * size.stage_bytes(0, size.n_layers)
  assert 0.7 < stages.models[0].memory.weight_bytes / expected < 1.5


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_what_embeddings_are_made_of(engine: str, architecture: str, goldens: Path, tokens: list[int]) -> None:
  """Hidden states after the final norm, alike on all engines, also of the second half of a prompt and over two stages."""
  if engine == "dummy":
    pytest.skip("the dummy engine computes nothing that others do")
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
    pytest.skip(probe.reason)
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
