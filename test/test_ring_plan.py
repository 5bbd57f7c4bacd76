"""Plans as pure functions: every layer once, no empty stage, nothing over its capacity, the same on every node."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.errors import ModelTooLargeError, PeerUnreachableError
from exo.topology.device_capabilities import DeviceCapabilities
from exo.topology.partitioning_strategy import map_partitions_to_shards
from exo.topology.ring_memory_weighted_partitioning_strategy import RingMemoryWeightedPartitioningStrategy
from exo.topology.ring_plan import MIN_KV_TOKENS, ModelSize, WeightMemory, make_plan, membership_epoch
from exo.topology.topology import PeerConnection, Topology

STRATEGY = RingMemoryWeightedPartitioningStrategy()
memories = st.dictionaries(
    st.text("abcdef0123456789", min_size=1, max_size=6), st.integers(0, 200_000), min_size=1, max_size=32
)


def topology_of(memory_mb: dict[str, int]) -> Topology:
  return Topology({node_id: DeviceCapabilities(memory=memory) for node_id, memory in memory_mb.items()})


@given(memories, st.integers(1, 130))
def test_every_layer_exactly_once_and_no_empty_stage(memory_mb: dict[str, int], n_layers: int) -> None:
  plan = make_plan("m", n_layers, topology_of(memory_mb), STRATEGY, "e")
  layers = [layer for stage in plan.stages for layer in stage.shard.layers]
  assert layers == list(range(n_layers))
  assert all(stage.shard.layer_count > 0 for stage in plan.stages)
  assert [s.shard
          for s in plan.stages] == map_partitions_to_shards(STRATEGY.partition(topology_of(memory_mb)), n_layers, "m")


@given(memories, st.integers(1, 130), st.randoms())
def test_all_nodes_make_the_same_plan(memory_mb: dict[str, int], n_layers: int, random) -> None:
  shuffled = list(memory_mb.items())
  random.shuffle(shuffled)
  one = make_plan("m", n_layers, topology_of(memory_mb), STRATEGY, "e")
  other = make_plan("m", n_layers, topology_of(dict(shuffled)), STRATEGY, "e")
  assert one == other and one.plan_id == other.plan_id


@given(memories, st.lists(st.integers(1, 50 * 2**20), min_size=1, max_size=40), st.booleans())
def test_no_stage_gets_more_than_it_can_hold(memory_mb: dict[str, int], layer_bytes: list[int], tied: bool) -> None:
  size = ModelSize(tuple(layer_bytes), 20 * 2**20, 20 * 2**20, 1000, tied)
  capacity = {node_id: memory * 2**20 // 100 for node_id, memory in memory_mb.items()}
  try:
    plan = make_plan("m", size.n_layers, topology_of(memory_mb), STRATEGY, "e", size, capacity)
  except ModelTooLargeError as error:
    assert int(error.details["missing_mb"] or 0) >= 1
    # a single node that could hold everything would have been used
    assert all(size.stage_bytes(0, size.n_layers, MIN_KV_TOKENS) > c for c in capacity.values())
    return
  for stage in plan.stages:
    held = size.stage_bytes(stage.shard.start_layer, stage.shard.end_layer + 1, MIN_KV_TOKENS)
    assert held <= capacity[stage.node_id]


def test_more_memory_than_layers_needs_no_index_error() -> None:
  """Version 0 made 2 shards of 3 partitions here and then indexed the third."""
  plan = make_plan("m", 16, topology_of({"a": 64000, "b": 1000, "c": 1000}), STRATEGY, "e")
  assert plan.node_ids == ("a", ) and plan.first.shard.layer_count == 16


def test_a_model_that_fits_no_single_node_is_split_and_too_small_a_ring_says_how_much_is_missing() -> None:
  size = ModelSize((3 * 2**20, ) * 30, 30 * 2**20, 30 * 2**20, 1536, tied=True)
  capacity = {"a": 110 * 2**20, "b": 110 * 2**20}
  plan = make_plan("m", 30, topology_of({"a": 110, "b": 110}), STRATEGY, "e", size, capacity)
  assert plan.node_ids == ("b", "a")
  with pytest.raises(ModelTooLargeError, match="55 MB are missing"):
    make_plan("m", 30, topology_of({"a": 110}), STRATEGY, "e", size, {"a": 110 * 2**20})


def test_a_dequantizing_engine_gets_fewer_layers() -> None:
  size = ModelSize((10 * 2**20, ) * 10, 0, 0, 0)
  capacity = {"a": 70 * 2**20, "b": 70 * 2**20}
  plan = make_plan("m", 10, topology_of({"a": 70, "b": 70}), STRATEGY, "e", size, capacity, {"a": 2.0})
  assert {s.node_id: s.shard.layer_count for s in plan.stages} == {"b": 7, "a": 3}


@pytest.mark.parametrize(("file_bytes_per_weight", "memory", "scale"), [
    (2, WeightMemory(plain=1.125), 0.5625),
    (2, WeightMemory(plain=4.0, packed=4.0), 2.0),
    (4, WeightMemory(), 1.0),
    (0.625, WeightMemory(plain=1.125), 1.0),
    (0.625, WeightMemory(plain=4.0, packed=4.0), 6.4),
])
def test_what_an_engine_holds_against_what_the_files_have(
    file_bytes_per_weight: float, memory: WeightMemory, scale: float
) -> None:
  size = ModelSize((int(10**6 * file_bytes_per_weight), ) * 4, 0, 0, 0, n_weights=4 * 10**6)
  assert memory.scale(size) == pytest.approx(scale)


def test_neighbours() -> None:
  plan = make_plan("m", 9, topology_of({"a": 1, "b": 1, "c": 1}), STRATEGY, "e")
  assert plan.node_ids == ("c", "b", "a")
  assert [plan.next_of(n).node_id if plan.next_of(n) else None for n in "cba"] == ["b", "a", None]
  assert [plan.previous_of(n).node_id if plan.previous_of(n) else None for n in "cba"] == [None, "c", "b"]
  assert plan.next_of("stranger") is None and plan.previous_of("stranger") is None


def test_an_empty_topology_is_an_error() -> None:
  with pytest.raises(PeerUnreachableError):
    make_plan("m", 4, Topology(), STRATEGY, "e")


def test_epoch_depends_on_members_and_not_on_their_order() -> None:
  one = membership_epoch([("a", 1, 100), ("b", 1, 100)])
  assert one == membership_epoch([("b", 1, 100), ("a", 1, 100)])
  assert one != membership_epoch([("a", 2, 100), ("b", 1, 100)])
  assert one != membership_epoch([("a", 1, 101), ("b", 1, 100)])


def test_topology_views() -> None:
  view = Topology({"a": DeviceCapabilities(), "b": DeviceCapabilities()}, frozenset({PeerConnection("a", "b")}), "b")
  assert view.without(["b"]) == Topology({"a": DeviceCapabilities()})
  assert view.only(["a"]).nodes.keys() == {"a"}
