"""Which node runs which layers: the one thing that the rest of the program indexes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

from exo.inference.shard import Shard


@dataclass(frozen=True, slots=True)
class Stage:
  """One node's place in a plan."""
  node_id: str
  shard: Shard


@dataclass(frozen=True)
class RingPlan:
  """A model's stages in ring order under one epoch. No stage is empty and every layer is in exactly one stage."""
  model_id: str
  epoch: str
  stages: tuple[Stage, ...]

  def __post_init__(self) -> None:
    expected = 0
    for stage in self.stages:
      if stage.shard.start_layer != expected or stage.shard.model_id != self.model_id:
        raise ValueError(f"stages of {self.model_id} do not follow each other: {stage.shard}")
      expected = stage.shard.end_layer + 1
    if not self.stages or expected != self.stages[0].shard.n_layers:
      raise ValueError(f"the stages of {self.model_id} do not cover its layers")
    if len({stage.node_id for stage in self.stages}) != len(self.stages):
      raise ValueError(f"a node has two stages of {self.model_id}")

  @cached_property
  def plan_id(self) -> str:
    """Equal plans have equal ids, whoever made them."""
    text = "\n".join([self.model_id, self.epoch, *(f"{s.node_id} {s.shard}" for s in self.stages)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]

  @property
  def first(self) -> Stage:
    return self.stages[0]

  @property
  def last(self) -> Stage:
    return self.stages[-1]

  @property
  def node_ids(self) -> tuple[str, ...]:
    return tuple(stage.node_id for stage in self.stages)

  def index_of(self, node_id: str) -> int | None:
    """The place of a node in the ring, None where it has no stage."""
    return next((i for i, stage in enumerate(self.stages) if stage.node_id == node_id), None)

  def next_of(self, node_id: str) -> Stage | None:
    """The stage that gets this node's hidden states; None after the last."""
    index = self.index_of(node_id)
    return self.stages[index + 1] if index is not None and index + 1 < len(self.stages) else None

  def previous_of(self, node_id: str) -> Stage | None:
    """The stage that this node gets hidden states from; None before the first."""
    index = self.index_of(node_id)
    return self.stages[index - 1] if index else None

  def __str__(self) -> str:
    spans = ", ".join(f"{s.node_id} {s.shard.start_layer}-{s.shard.end_layer}" for s in self.stages)
    return f"{self.model_id} over {spans}"
