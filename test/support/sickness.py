"""Makes nodes of rings inside one process sick, rather than dead. The dummy engine's text tells of every lost or doubled token."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from exo.inference.engine import Batch
from exo.orchestration.node import Node
from exo.worker.shard_loader import LoadedShard

Step = Callable[[Batch], np.ndarray]

ROOMY = 1000


class Sickness:
  """Faults of one of a node's workers: `load` raises before each load, `step` is called in place of every model's own."""
  def __init__(self, node: Node, worker: int = 0) -> None:
    self.load: Callable[[], None] | None = None
    self.step: Callable[[Step, Batch], np.ndarray] | None = None
    self.loads = 0
    loader = node.workers[worker].loader
    original = loader.load

    async def load(*arguments: object) -> LoadedShard:
      self.loads += 1
      if self.load is not None:
        await node.workers[worker].thread.run(self.load)
      loaded = await original(*arguments)  # type: ignore[arg-type]
      loaded.model.step = partial(self._step, loaded.model.step)  # type: ignore[method-assign]
      return loaded

    loader.load = load  # type: ignore[method-assign, assignment]

  def _step(self, own: Step, batch: Batch) -> np.ndarray:
    return own(batch) if self.step is None else self.step(own, batch)


def raising(error: BaseException) -> Callable[[], None]:
  def fail() -> None:
    raise error

  return fail


def ill(nodes: list[Node]) -> list[set[str]]:
  """Which nodes each of them leaves out of some model."""
  return [set(node.planner.ailments()) for node in nodes]


async def until(condition: Callable[[], bool], what: str) -> None:
  for _ in range(500):
    if condition():
      return
    await asyncio.sleep(0.02)
  raise AssertionError(f"{what} did not happen")


def golden_folder(goldens: Path, tmp_path: Path, *names: str) -> Path:
  folder = tmp_path / "models"
  folder.mkdir()
  for name in names:
    (folder / name).symlink_to(goldens / "llama")
  return folder


def rows_of(batch: Batch, out: np.ndarray, sequences: set[int] | None, value: float) -> np.ndarray:
  """`out` with bad numbers in it, in rows of some sequences; of all where None."""
  out, start = out.copy(), 0
  by_token = len(out) == batch.n_tokens
  for entry in batch.entries:
    count = entry.n_tokens if by_token else entry.logit_rows
    if sequences is None or entry.sequence in sequences:
      out[start:start + count, -1:] = value
    start += count
  return out


LONG = "a prompt that is long enough to be kept, and used again"
