"""Which workers of which nodes run which layers: the one thing that the rest of the program indexes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from exo.inference.shard import Shard
from exo.model_file import ModelFile
from exo.topology.loaded_for import WHAT_FITS, LoadedFor
from exo.topology.weight_memory import StageBytes


class WorkerId(NamedTuple):
  """One device of a node; `worker` is its short name there, as "cpu" or "gpu0"."""
  node_id: str
  worker: str

  def __str__(self) -> str:
    return f"{self.node_id}/{self.worker}" if self.worker else self.node_id


Whom = str | WorkerId  # a node with all that it has, or one of its workers


def node_of(whom: Whom) -> str:
  return whom.node_id if isinstance(whom, WorkerId) else whom


def names_of(workers: Iterable[WorkerId]) -> dict[WorkerId, str]:
  """What people call them, in order: a node's name is enough where only one of its workers is among them."""
  found = sorted(set(workers))
  nodes = Counter(worker.node_id for worker in found)
  return {worker: worker.node_id if nodes[worker.node_id] == 1 else str(worker) for worker in found}


@dataclass(frozen=True, slots=True)
class Stage:
  """One worker's place in a plan. `memory` is what it is to take of the worker's, zeros where nobody has reckoned it."""
  node_id: str
  shard: Shard
  worker: str
  memory: StageBytes = field(default=StageBytes(0, 0), compare=False)

  @property
  def by(self) -> WorkerId:
    """Who computes it."""
    return WorkerId(self.node_id, self.worker)


@dataclass(frozen=True)
class RingPlan:
  """A model's stages in ring order under one epoch. No stage is empty and every layer is in exactly one stage.

  `file` is what all of them run, `loaded_for` what they are loaded for: a plan of other files, or for something else, is another plan.
  """
  model_id: str
  epoch: str
  stages: tuple[Stage, ...]
  file: ModelFile = field(default_factory=ModelFile)
  loaded_for: LoadedFor = WHAT_FITS

  def __post_init__(self) -> None:
    expected = 0
    for stage in self.stages:
      if stage.shard.start_layer != expected or stage.shard.model_id != self.model_id:
        raise ValueError(f"stages of {self.model_id} do not follow each other: {stage.shard}")
      expected = stage.shard.end_layer + 1
    if not self.stages or expected != self.stages[0].shard.n_layers:
      raise ValueError(f"the stages of {self.model_id} do not cover its layers")
    if len({stage.by for stage in self.stages}) != len(self.stages):
      raise ValueError(f"a worker has two stages of {self.model_id}")

  @cached_property
  def plan_id(self) -> str:
    """Equal plans have equal ids, whoever made them."""
    what = [self.model_id, self.file.key, str(self.loaded_for), self.epoch]
    text = "\n".join([*what, *(f"{s.by} {s.shard}" for s in self.stages)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]

  @property
  def first(self) -> Stage:
    return self.stages[0]

  @property
  def last(self) -> Stage:
    return self.stages[-1]

  @cached_property
  def node_ids(self) -> tuple[str, ...]:
    """The nodes that have a stage, each once, in ring order."""
    return tuple(dict.fromkeys(stage.node_id for stage in self.stages))

  @property
  def workers(self) -> tuple[WorkerId, ...]:
    return tuple(stage.by for stage in self.stages)

  def has(self, node_id: str) -> bool:
    """Whether this node has a stage."""
    return node_id in self.node_ids

  def after(self, index: int) -> Stage | None:
    """The stage that gets this one's hidden states; None after the last."""
    return self.stages[index + 1] if index + 1 < len(self.stages) else None

  def before(self, index: int) -> Stage | None:
    """The stage that this one gets hidden states from; None before the first."""
    return self.stages[index - 1] if index else None

  def name_of(self, index: int) -> str:
    """Who computes a stage, for people."""
    return self._names[self.stages[index].by]

  @cached_property
  def _names(self) -> dict[WorkerId, str]:
    return names_of(self.workers)

  def __str__(self) -> str:
    spans = (f"{self.name_of(i)} {s.shard.start_layer}-{s.shard.end_layer}" for i, s in enumerate(self.stages))
    return f"{self.model_id} over {', '.join(spans)}"
