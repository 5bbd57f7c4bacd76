"""What all engines do alike: checks of a step, room for KV, bits of weights, rounding to blocks."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from exo.errors import CacheReuseError, ConfigError, EngineError, OutOfMemoryError
from exo.inference.dummy.checkpoint import DummyCheckpoint
from exo.inference.engine import Batch, BatchEntry, LoadOptions, LogitsOf, StageMemory
from exo.inference.engine_names import engine_names
from exo.inference.engines import probe_engine
from exo.inference.kv_budget import KvBudget
from exo.inference.quantize import Quantize, choose_quantize
from exo.inference.shard import Shard
from exo.inference.stage_base import StageBase
from exo.inference.weights.rounding import round_between, round_symmetric, round_to_extreme
from exo.inference.whole_blocks import blocks_for, whole_blocks
from test.support.shaped_models import Shape, write_shaped
from test.support.stages import Stages

# checks of a step


def keep_caches(connection: Connection) -> None:
  """A child process that holds, for each sequence, the tokens that it was given."""
  held: dict[int, list[int]] = {}
  while (call := connection.recv()) is not None:
    name, sequence, argument = call
    if name == "add":
      held.setdefault(sequence, []).extend(argument)
      if 13 in argument:
        connection.send(MemoryError("out of memory"))
        continue
    elif name == "cut":
      held[sequence] = held.get(sequence, [])[:argument]
    elif name == "copy":
      held[argument[0]] = held[sequence][:argument[1]]
    connection.send(list(held.get(sequence, [])))


class DistantStage(StageBase):
  """Its caches are in another process; here are their lengths alone. Gives the sums of the sequence's tokens."""
  library = "distant"

  def __init__(self, connection: Connection) -> None:
    super().__init__(Shard("m", 0, 0, 1), StageMemory(0, 8, 100, 4, 20), 1, 50)
    self._connection, self._lengths = connection, dict[int, int]()

  def _ask(self, *call: Any) -> list[int]:
    self._connection.send(call)
    if isinstance(answer := self._connection.recv(), Exception):
      raise answer
    return list(answer)

  def step(self, batch: Batch) -> npt.NDArray[Any]:
    return self._computed(batch, self._sums)

  def _sums(self, batch: Batch) -> npt.NDArray[Any]:
    rows, start = [], 0
    for entry in batch.entries:
      ids = batch.token_ids[start:start + entry.n_tokens].tolist()
      rows.append(float(sum(self._ask("add", entry.sequence, ids))))
      start += entry.n_tokens
    return np.array(rows)

  def length(self, sequence: int) -> int:
    return self._lengths.get(sequence, 0)

  def _commit(self, entries: tuple[BatchEntry, ...]) -> None:
    for entry in entries:
      self._lengths[entry.sequence] = entry.position + entry.n_tokens

  def _copy(self, source: int, target: int, length: int) -> None:
    self._ask("copy", source, (target, length))
    self._lengths[target] = length

  def truncate(self, sequence: int, length: int) -> None:
    self._ask("cut", sequence, length)
    self._lengths[sequence] = min(length, self.length(sequence))

  def drop(self, sequence: int) -> None:
    self.truncate(sequence, 0)

  def close(self) -> None:
    self._connection.send(None)


@pytest.fixture
def distant() -> Iterator[DistantStage]:
  here, there = multiprocessing.Pipe()
  child = multiprocessing.get_context("spawn").Process(target=keep_caches, args=(there, ))
  child.start()
  there.close()  # its end, whenever that comes, is the end of what is waited for here
  stage = DistantStage(here)
  yield stage
  stage.close()
  child.join(10)
  assert child.exitcode == 0


def batch(*entries: tuple[int, int, list[int]]) -> Batch:
  """Of (sequence, position, tokens)."""
  made = tuple(BatchEntry(s, p, len(ids), LogitsOf.LAST) for s, p, ids in entries)
  return Batch(made, np.array([i for _, _, ids in entries for i in ids], np.int32))


def test_line_6_caches_may_be_in_another_process(distant: DistantStage) -> None:
  assert distant.step(batch((1, 0, [3, 4]), (2, 0, [5]))).tolist() == [7, 5]
  for wrong, said in (
      (batch((2, 1, [6]), (1, 3, [6])), "position 3 of a sequence whose cache holds 2 tokens"),
      (batch((3, 0, list(range(21)))), "longer than 20 tokens"),
      (batch((2, 1, [50])), "token id 50 is not from 0 to 49"),
      (batch((2, 1, [-1])), "token id -1 is not"),
  ):  # yapf: disable
    with pytest.raises(EngineError, match=said):
      distant.step(wrong)
  assert distant.step(batch((2, 1, [6]), (1, 2, [6]))).tolist() == [11, 13]  # nothing had come through
  distant.copy(1, 4, 2)
  assert distant.step(batch((4, 2, [1]))).tolist() == [8]
  for source, length in ((1, 4), (9, 1), (9, 0)):
    with pytest.raises(CacheReuseError, match=f"{distant.length(source)} tokens are kept where {length} are wanted"):
      distant.copy(source, 5, length)


def test_line_6_a_step_that_raises_there_is_told_in_the_projects_words(distant: DistantStage) -> None:
  distant.step(batch((1, 0, [3, 4])))
  with pytest.raises(OutOfMemoryError, match=r"no memory left for the request \(distant: out of memory\)"):
    distant.step(batch((1, 2, [13])))
  assert distant.length(1) == 2  # what was written behind it is nobody's
  distant.truncate(1, 2)
  assert distant.step(batch((1, 2, [1]))).tolist() == [8]


@pytest.mark.parametrize("engine", engine_names())
def test_line_6_every_engine_checks_by_the_same_code(engine: str, goldens: Any, tmp_path: Path) -> None:
  if missing := probe_engine(engine).missing:
    pytest.skip(missing)
  from exo.inference.weights.checkpoint import open_checkpoint
  path = goldens / "llama"
  if engine == "llama_cpp":
    path = write_shaped(tmp_path / "model.gguf", Shape(6, 256, 512, 8, 4, 320), "Q8_0")
  checkpoint = DummyCheckpoint() if engine == "dummy" else open_checkpoint(path)
  stages = Stages(engine, checkpoint, (3, ))
  for stage in stages.models:
    assert isinstance(stage, StageBase)
    for name in ("_check", "_computed", "copy", "memory"):
      assert getattr(type(stage), name) is getattr(StageBase, name)
  stages.step([(1, 0, [5, 6, 7])])
  for stage in stages.models:
    with pytest.raises(CacheReuseError, match="3 tokens are kept where 4 are wanted"):
      stage.copy(1, 2, 4)
    with pytest.raises(CacheReuseError, match="0 tokens are kept where 1 are wanted"):
      stage.copy(9, 2, 1)
  stages.close()


# room for keys and values


@pytest.mark.parametrize(
    ("options", "context", "tokens"),
    [
        (LoadOptions(10_000, 1), 100, 90),
        (LoadOptions(10_000, 1, max_context=60), 60, 90),
        (LoadOptions(10_000, 1, max_context=4000), 100, 90),
        (LoadOptions(5_000, 1), 50, 40),  # no sequence is longer than all memory
        (LoadOptions(100, 1), 2, 0),
        (LoadOptions(10_000, 1, kv_memory_bytes=2_050), 100, 20),
        (LoadOptions(10_000, 1, kv_memory_bytes=20_000), 100, 90),
        (LoadOptions(10_000, 1, kv_memory_bytes=0), 100, 0),
    ]
)
def test_line_6_room_for_keys_and_values(options: LoadOptions, context: int, tokens: int) -> None:
  budget = KvBudget(options, token_bytes=100, model_context=100)
  assert (budget.max_context, budget.tokens(1_000)) == (context, tokens)
  assert replace(budget, spare=0.5).tokens(1_000) == int(tokens / 1.5)
  free = replace(budget, options=replace(options, free_bytes=3_000))
  assert free.tokens(1_000) == tokens and free.tokens(1_000, at_once=True) == min(20, tokens)


def test_line_6_a_tokens_bytes_are_those_of_the_stages_layers() -> None:
  config = DummyCheckpoint().config
  budgets = [KvBudget.of(Shard("m", a, b, 8), config, LoadOptions(2**20, 1), 4) for a, b in ((0, 0), (1, 7))]
  assert [budget.token_bytes for budget in budgets] == [2 * 8 * 4, 7 * 2 * 8 * 4]


# bits


def test_line_6_what_quantize_means_is_said_by_each_engine() -> None:
  has = (Quantize.EIGHT, Quantize.NONE)
  assert choose_quantize("x", has, None) is Quantize.EIGHT and choose_quantize("x", has, "none").bits is None
  assert choose_quantize("x", has, "8").bits == 8
  for wrong in ("4", "5", ""):
    with pytest.raises(ConfigError, match=f"the x engine has no --quantize {wrong}: choose 8, none"):
      choose_quantize("x", has, wrong)


@pytest.mark.parametrize("engine", ["mlx", "onnx", "tinygrad"])
def test_line_6_an_engine_plans_with_the_bits_that_it_has(engine: str) -> None:
  taken = [probe_engine(engine, wanted).weights.plain for wanted in ("none", "8", "4")]
  assert probe_engine(engine).weights.plain == taken[1 if engine == "onnx" else 0]
  assert engine == "mlx" or taken[0] > taken[1] > taken[2]
  assert f"the {engine} engine has no --quantize 3" in probe_engine(engine, "3").missing


# rounding


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("axis", [-1, 1])
def test_line_6_rounding_is_off_by_half_a_step_at_most(bits: int, axis: int) -> None:
  values = np.random.default_rng(bits).normal(size=(3, 32, 5, 32)).astype(np.float32)
  values[1, :, 2, :] = 0  # blocks of nothing
  for rounded in (round_symmetric, round_to_extreme):
    codes, scales = rounded(values, bits, axis)
    steps = np.expand_dims(scales, axis)
    top = (1 << (bits - 1)) - 1
    assert np.abs(codes).max() <= top + (rounded is round_to_extreme) and np.all(codes == np.round(codes))
    # Q4_0 has no code for the extreme's opposite: such a value is off by a step
    most = 0.5 if rounded is round_symmetric else 1
    assert (np.abs(codes * steps - values) <= (most + 1e-4) * np.abs(steps)).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_line_6_rounding_between_two_ends_reaches_both(bits: int) -> None:
  values = np.random.default_rng(bits).normal(3, 1, size=(7, 32)).astype(np.float32)
  values[3] = 2.5
  low, high = values.min(axis=-1), values.max(axis=-1)
  codes, scales = round_between(values, low, high, bits)
  assert codes.min() == 0 and codes.max() == (1 << bits) - 1 and not codes[3].any()
  assert (np.abs(low[:, None] + codes * scales[:, None] - values) <= 0.501 * scales[:, None]).all()


def test_line_6_whole_blocks() -> None:
  assert [blocks_for(n, 32) for n in (0, 1, 31, 32, 33)] == [0, 1, 1, 1, 2]
  assert [whole_blocks(n, 32) for n in (0, 1, 32, 33)] == [0, 32, 32, 64]
