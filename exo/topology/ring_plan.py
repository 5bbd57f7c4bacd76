"""Which node runs which layers: the one thing that the rest of the program indexes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from exo.errors import ModelTooLargeError, PeerUnreachableError
from exo.inference.shard import Shard
from exo.topology.partitioning_strategy import PartitioningStrategy, layer_counts
from exo.topology.topology import Topology

# A plan is only made where every stage can also keep this many tokens of KV cache beside its weights.
MIN_KV_TOKENS = 1024
_MB = 2**20


@dataclass(frozen=True, slots=True)
class ModelSize:
  """Bytes that a model's parts have in its files, and how many numbers those are; `kv_bytes_per_token` is one layer's."""
  layer_bytes: tuple[int, ...]
  embedding_bytes: int
  head_bytes: int
  kv_bytes_per_token: int
  tied: bool = False
  n_weights: int = 0

  @property
  def n_layers(self) -> int:
    return len(self.layer_bytes)

  def stage_bytes(self, start: int, end: int, kv_tokens: int = 0) -> int:
    """Memory for layers [start, end) with `kv_tokens` tokens of cache; embedding and head counted where they live."""
    total = sum(self.layer_bytes[start:end]) + (end - start) * self.kv_bytes_per_token * kv_tokens
    first, last = start == 0, end == self.n_layers
    if first:
      total += self.embedding_bytes
    if last and not (first and self.tied):
      total += self.head_bytes
    return total


@dataclass(frozen=True, slots=True)
class WeightMemory:
  """Bytes of memory in which an engine holds one weight: `plain` those that are floats in the file, `packed` those that
  are quantized there. 0: as many as in the file.
  """
  plain: float = 0.0
  packed: float = 0.0

  def scale(self, size: ModelSize) -> float:
    """Bytes in memory per byte of the model's files."""
    in_files = size.stage_bytes(0, size.n_layers)
    if not size.n_weights or not in_files:
      return 1.0
    # the narrowest floats have two bytes; a few float norms among packed matrices change nothing
    held = self.plain if in_files / size.n_weights > 1.9 else self.packed
    return held * size.n_weights / in_files if held else 1.0


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


def membership_epoch(members: Iterable[tuple[str, int, int]]) -> str:
  """The version of a membership: a hash of its (node id, incarnation, offered memory in MB), in any order."""
  text = "\n".join(f"{node_id} {incarnation} {weight}" for node_id, incarnation, weight in sorted(members))
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def make_plan(
    model_id: str,
    n_layers: int,
    topology: Topology,
    strategy: PartitioningStrategy,
    epoch: str,
    size: ModelSize | None = None,
    capacity_bytes: Mapping[str, int] | None = None,
    scale: Mapping[str, float] | None = None,
) -> RingPlan:
  """The plan that every node with this topology makes.

  Layers follow the strategy's fractions; where `size` is known, no stage gets more than its `capacity_bytes` (nodes
  that are not named there count as boundless), and the counts stay as close to the fractions as that allows. `scale`
  is how many times its size in the checkpoint a node's engine needs in memory (1 where not named).

  Raises `PeerUnreachableError` for an empty topology, `ModelTooLargeError` when the ring cannot hold the model.
  """
  partitions = strategy.partition(topology)
  if not partitions:
    raise PeerUnreachableError(f"no node is there to run {model_id}")
  node_ids = [p.node_id for p in partitions]
  counts = layer_counts(partitions, n_layers)
  if size is not None and capacity_bytes:
    counts = _fit(model_id, node_ids, counts, size, capacity_bytes, scale or {})
  stages, start = [], 0
  for node_id, count in zip(node_ids, counts, strict=True):
    if count:
      stages.append(Stage(node_id, Shard(model_id, start, start + count - 1, n_layers)))
      start += count
  return RingPlan(model_id, epoch, tuple(stages))


def _fit(
    model_id: str,
    node_ids: Sequence[str],
    wanted: list[int],
    size: ModelSize,
    capacity: Mapping[str, int],
    scale: Mapping[str, float],
) -> list[int]:
  n = size.n_layers

  def fits(i: int, start: int, end: int) -> bool:
    if start == end or node_ids[i] not in capacity:
      return True
    factor = scale.get(node_ids[i], 1.0)
    weights = size.stage_bytes(start, end) * factor
    cache = (end - start) * size.kv_bytes_per_token * MIN_KV_TOKENS
    return weights + cache <= capacity[node_ids[i]]

  start, as_wanted = 0, True
  for i, count in enumerate(wanted):
    as_wanted = as_wanted and fits(i, start, start + count)
    start += count
  if as_wanted:
    return wanted

  # best[done] = (deviation from the wanted counts, counts) for the nodes so far holding the first `done` layers
  best: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, ())}
  for i, want in enumerate(wanted):
    step: dict[int, tuple[int, tuple[int, ...]]] = {}
    for done, (cost, counts) in best.items():
      for end in range(done, n + 1):
        if not fits(i, done, end):
          break
        candidate = (cost + abs(end - done - want), (*counts, end - done))
        if end not in step or candidate < step[end]:
          step[end] = candidate
    best = step
  if n in best:
    return list(best[n][1])

  worst_scale = max((scale.get(node_id, 1.0) for node_id in node_ids), default=1.0)
  needed = size.stage_bytes(0, n) * worst_scale + n * size.kv_bytes_per_token * MIN_KV_TOKENS
  offered = sum(capacity.get(node_id, 0) for node_id in node_ids)
  missing_mb = max(1, -int((offered - needed) // _MB))
  raise ModelTooLargeError(
      f"{model_id} needs about {-int(-needed // _MB)} MB, the {len(node_ids)} node(s) of this ring offer "
      f"{offered // _MB} MB: {missing_mb} MB are missing. Add a node, raise --max-memory, or choose a smaller model.",
      missing_mb=missing_mb,
  )
