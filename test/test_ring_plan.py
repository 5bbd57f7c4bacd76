"""What a plan is, what a model takes in memory, and the views of a topology."""

import pytest

from exo.inference.shard import Shard
from exo.topology.device_capabilities import DeviceCapabilities
from exo.topology.model_size import ModelSize
from exo.topology.ring_plan import RingPlan, Stage
from exo.topology.topology import PeerConnection, Topology
from exo.topology.weight_memory import WeightMemory


def stages(*spans: tuple[str, int, int], n_layers: int = 9) -> tuple[Stage, ...]:
  return tuple(Stage(node_id, Shard("m", start, end, n_layers), "cpu") for node_id, start, end in spans)


@pytest.mark.parametrize(("wrong", "why"), [
    ((), "do not cover"),
    ((("a", 0, 7), ), "do not cover"),
    ((("a", 0, 3), ("b", 5, 8)), "do not follow"),
    ((("a", 0, 3), ("b", 3, 8)), "do not follow"),
    ((("b", 4, 8), ("a", 0, 3)), "do not follow"),
])
def test_a_plan_has_every_layer_exactly_once(wrong: tuple[tuple[str, int, int], ...], why: str) -> None:
  with pytest.raises(ValueError, match=why):
    RingPlan("m", "e", stages(*wrong))


def test_equal_plans_have_equal_ids() -> None:
  one = RingPlan("m", "e", stages(("a", 0, 3), ("b", 4, 8)))
  assert one.plan_id == RingPlan("m", "e", stages(("a", 0, 3), ("b", 4, 8))).plan_id
  assert one.plan_id != RingPlan("m", "f", stages(("a", 0, 3), ("b", 4, 8))).plan_id
  assert one.plan_id != RingPlan("m", "e", stages(("b", 0, 3), ("a", 4, 8))).plan_id


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
  in_files = size.stage_bytes(0, 4)
  assert memory.stage(size, 0, 4, 0) == pytest.approx((scale * in_files, scale * in_files))


def test_a_stage_takes_its_layers_the_ends_where_they_live_and_a_small_cache() -> None:
  size = ModelSize((10, 20, 40), 100, 1000, 1, tied=False)
  held = WeightMemory().stage_bytes
  assert [held(size, *span) for span in ((0, 1), (1, 2), (2, 3), (0, 3), (1, 1))
          ] == [110 + 1024, 20 + 1024, 1040 + 1024, 1170 + 3 * 1024, 0]
  assert held(ModelSize((10, 20, 40), 100, 100, 0, tied=True), 0, 3) == 170
  assert held(ModelSize((10, 20, 40), 100, 100, 0, tied=True), 2, 3) == 140


def test_neighbours() -> None:
  plan = RingPlan("m", "e", stages(("c", 0, 2), ("b", 3, 5), ("a", 6, 8)))
  assert plan.node_ids == ("c", "b", "a")
  assert [plan.after(i).node_id if plan.after(i) else None for i in range(3)] == ["b", "a", None]
  assert [plan.before(i).node_id if plan.before(i) else None for i in range(3)] == [None, "c", "b"]
  assert plan.has("a") and not plan.has("stranger")


def test_topology_views() -> None:
  view = Topology({"a": DeviceCapabilities(), "b": DeviceCapabilities()}, frozenset({PeerConnection("a", "b")}), "b")
  assert view.without(["b"]) == Topology({"a": DeviceCapabilities()})
  assert view.only(["a"]).nodes.keys() == {"a"}
