"""Several devices of one node, each a worker of its own."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from exo.api.ring_stream import worker_json
from exo.bounds import MAX_WORKERS
from exo.errors import ConfigError, EngineError, ProtocolError
from exo.inference.engines import engine_names, probe_engine
from exo.inference.shard import Shard
from exo.networking import messages as m
from exo.networking.grpc import node_service_pb2 as pb
from exo.networking.grpc.codec import decode, encode
from exo.networking.grpc.peer_codec import hello_in, hello_out
from exo.networking.grpc.wire import MAX_BYTES, envelope_bytes
from exo.networking.local.local_mesh import LocalNetwork
from exo.networking.peer_messages import Hello, WorkerOffer
from exo.orchestration.node import Node
from exo.orchestration.ring_view import ring_view
from exo.topology.device_capabilities import DeviceCapabilities
from exo.topology.ring_plan import RingPlan, Stage, WorkerId, names_of
from exo.worker import devices
from test.support.engine_folders import add_engine
from test.support.local_rings import local_ring, make_node, run, settled, spec, text_of
from test.support.nodes import exo, ring
from test.support.sickness import LONG, ROOMY, Sickness, until
from test.support.workers import dummy_offers

TWO = ("one", "two")
pytestmark = pytest.mark.usefixtures("soon")


async def alone(tmp_path: Path, *wanted: object) -> list[list[str]]:
  """What one node with one worker answers."""
  async with local_ring(tmp_path, ROOMY) as ((node, ), _):
    return [await text_of(node, w) for w in wanted]  # type: ignore[arg-type]


def test_line_1_a_node_with_two_workers_runs_a_plan_of_two_stages_by_itself(tmp_path: Path) -> None:
  """Exact against one worker, and nothing of it goes by way of the network."""
  wanted = [
      spec("hello", 200, n=3),
      spec("hello", 60, temperature=1.0, seed=3, frequency_penalty=0.5),
      spec(LONG, 40),
      spec(LONG + " with more", 40)
  ]

  async def scenario() -> None:
    expected = await alone(tmp_path, *wanted)
    async with local_ring(tmp_path, ROOMY, devices=TWO) as ((node, ), _):
      sent: list[m.Message] = []
      node.mesh.send = lambda node_id, message: sent.append(message)  # type: ignore[method-assign]
      assert [await text_of(node, w) for w in wanted] == expected
      (plan, ) = node.plans.plans
      assert plan.workers == (WorkerId("n0", "two"), WorkerId("n0", "one")) and plan.node_ids == ("n0", )
      assert not sent
      assert [[s.layer_count for s in node.plans.shards(worker)] for worker in node.workers] == [[4], [4]]
      both = await asyncio.gather(*(text_of(node, w) for w in wanted))
      assert list(both) == expected
      await settled([node])

  run(scenario)


def test_line_1_a_ring_of_nodes_with_two_workers_each_survives_the_loss_of_one(tmp_path: Path) -> None:
  async def scenario() -> None:
    ((expected, ), ) = await alone(tmp_path, spec("hello", 300))
    async with local_ring(tmp_path, ROOMY, ROOMY, devices=TWO) as (nodes, network):
      model = await nodes[0].model("dummy")
      async with nodes[0].generation(spec("hello", 300), model) as generation:
        text = b""
        assert len(generation.plan.stages) == 4
        async for delivery in generation:
          text += bytes(token.token_id for token in delivery.tokens)
          if len(text) > 20 and "n1" in network.nodes:
            await network.kill("n1")
        assert text.decode() == expected and len(generation.resumptions) == 1
        assert set(generation.plan.workers) == {WorkerId("n0", "one"), WorkerId("n0", "two")}

  run(scenario)


def breaking(sick: Sickness, node: Node, worker: int) -> None:
  """From now on nothing can be computed on it, with a new instance of its engine neither."""
  def step(own: object, batch: object) -> np.ndarray:
    raise EngineError("the device is gone")

  async def broken() -> None:
    raise EngineError("the device is gone")

  sick.step = step
  node.workers[worker].health._prove = node.workers[worker].health._renew = broken  # type: ignore[method-assign]


@pytest.mark.parametrize("worker", [0, 1])
def test_line_1_one_of_two_workers_breaks_and_the_other_goes_on(tmp_path: Path, worker: int) -> None:
  """A stream that runs on both goes on exact on the other, which serves what comes later, until both are well again."""
  async def scenario() -> None:
    ((expected, ), ) = await alone(tmp_path, spec("hello", 300))
    async with local_ring(tmp_path, ROOMY, devices=TWO) as ((node, ), _):
      sick, health = Sickness(node, worker), node.workers[worker].health
      broken, well = WorkerId("n0", TWO[worker]), WorkerId("n0", TWO[1 - worker])
      renew, prove = health._renew, health._prove
      model, text = await node.model("dummy"), b""
      async with node.generation(spec("hello", 300), model) as generation:
        assert set(generation.plan.workers) == {broken, well}
        async for delivery in generation:
          text += bytes(token.token_id for token in delivery.tokens)
          if len(text) > 20:
            breaking(sick, node, worker)
        assert text.decode() == expected and generation.plan.workers == (well, )
      await until(lambda: health.broken, "the proof that fails")
      states = {state.name: state.problem for state in node.heartbeat().workers}
      assert "the device is gone" in states[broken.worker] and not states[well.worker]
      assert node.unhealthy is None and not node.leaving
      assert await text_of(node, spec("hello", 300)) == [expected]
      assert node.planner.plan(node.hello, model).workers == (well, )
      sick.step, health._renew, health._prove = None, renew, prove  # type: ignore[method-assign]
      await until(lambda: not health.broken and not node.planner.ailments(), "recovery")
      assert set(node.planner.plan(node.hello, model).workers) == {broken, well}
      assert await text_of(node, spec("hello", 300)) == [expected]

  run(scenario)


def test_line_1_a_worker_that_breaks_leaves_the_plans_of_others_alone(tmp_path: Path) -> None:
  """What runs on the other worker alone notices nothing; where both break, the node leaves the ring."""
  async def scenario() -> None:
    async with local_ring(tmp_path, ROOMY, devices=TWO) as ((node, ), _):
      model = await node.model("dummy")
      ((expected, ), ) = await alone(tmp_path, spec("hello", 300))
      health = node.workers[0].health
      sick = Sickness(node, 0)
      breaking(sick, node, 0)
      health.doubt()
      await until(lambda: health.broken, "the proof that fails")
      async with node.generation(spec("hello", 300), model) as generation:
        text = b""
        async for delivery in generation:
          text += bytes(token.token_id for token in delivery.tokens)
        assert text.decode() == expected and not generation.resumptions
        assert generation.plan.workers == (WorkerId("n0", "two"), )
      breaking(Sickness(node, 1), node, 1)
      node.workers[1].health.doubt()
      await until(lambda: node.unhealthy is not None, "bad health")
      assert node.leaving

  run(scenario)


def test_line_1_what_loads_on_a_worker_that_breaks_is_not_opened_there(tmp_path: Path) -> None:
  """The request that waits for it goes on with the other worker, and nothing of the model is held against the broken one."""
  async def scenario() -> None:
    ((expected, ), ) = await alone(tmp_path, spec("hello", 60))
    async with local_ring(tmp_path, ROOMY, devices=TWO) as ((node, ), _):
      sick, health, go_on = Sickness(node, 0), node.workers[0].health, threading.Event()
      sick.load = lambda: go_on.wait(20) and None
      answer = asyncio.create_task(text_of(node, spec("hello", 60)))
      await until(lambda: sick.loads == 1, "a load")
      breaking(sick, node, 0)
      sick.step = None  # the proof alone finds out
      health.doubt()
      await until(lambda: health.broken, "the proof that fails")
      go_on.set()
      assert await answer == [expected]
      assert [plan.workers for plan in node.plans.plans] == [(WorkerId("n0", "two"), )]
      assert not node.planner.ailments() and not node.workers[0].loaded_bytes

  run(scenario)


def test_line_1_a_frame_is_for_the_stage_that_it_names_and_from_the_one_before(tmp_path: Path) -> None:
  async def scenario() -> None:
    async with local_ring(tmp_path, ROOMY, devices=TWO) as ((node, ), _):
      expected, model, text = await text_of(node, spec("hello", 200)), await node.model("dummy"), b""
      async with node.generation(spec("hello", 200), model) as generation:
        async for delivery in generation:
          if not text:
            plan = generation.plan
            for stage in (0, 1, 2):
              drops = tuple(range(100))  # this request's among them
              frame = m.Frame(plan.plan_id, plan.epoch, 1, (), m.EMPTY_TOKEN_IDS, drops=drops, stage=stage)
              node.message("stranger", frame)
          text += bytes(token.token_id for token in delivery.tokens)
        assert [text.decode()] == expected and not generation.resumptions and plan in node.plans.plans

  run(scenario)


# what nodes say of their workers

HELLO = Hello("a", 5, 1234, DeviceCapabilities(memory=1000), dummy_offers(1000, TWO), "1")


@pytest.mark.parametrize(
    "workers", [
        (),
        (HELLO.workers[0], HELLO.workers[0]),
        (replace(HELLO.workers[0], name="a b"), ),
        (replace(HELLO.workers[0], name=""), ),
        (replace(HELLO.workers[0], name="x" * 33), ),
        (replace(HELLO.workers[0], engines=()), ),
        (replace(HELLO.workers[0], memory_mb=1001), ),
        (replace(HELLO.workers[0], memory_mb=600), HELLO.workers[1]),
        (replace(HELLO.workers[0], engines=HELLO.workers[0].engines * 33), ),
        tuple(replace(HELLO.workers[0], name=f"w{i}", memory_mb=1) for i in range(MAX_WORKERS + 1)),
    ]
)
def test_line_1_greetings_name_workers_that_can_be(workers: tuple[WorkerOffer, ...]) -> None:
  assert hello_in(hello_out(HELLO, "data")) == (HELLO, "data")
  with pytest.raises(ProtocolError):
    hello_in(hello_out(replace(HELLO, workers=workers), "data"))


def test_line_1_as_many_workers_as_a_node_may_have_fit_into_its_greeting() -> None:
  engines = tuple(replace(probe_engine(name), missing="m" * 200) for name in engine_names())
  workers = tuple(WorkerOffer(f"gpu{i}", engines, 1) for i in range(MAX_WORKERS))
  hello = replace(HELLO, workers=workers, local_models=tuple(f"model-{i:050}" for i in range(256)))
  assert hello_in(hello_out(hello, "data"))[0] == hello
  assert len(envelope_bytes([hello_out(hello, "data")])) < MAX_BYTES[""]


def test_line_1_plans_and_frames_name_workers_and_stages_that_can_be() -> None:
  halves = (Stage("a", Shard("m", 0, 3, 8), "one"), Stage("a", Shard("m", 4, 7, 8), "two"))
  plan = RingPlan("m", "e", halves)
  for stage in (0, 1):
    opening = m.OpenPlan(plan, (("a", "host:1"), ), stage=stage)
    assert decode(encode(opening))[0] == opening
  with pytest.raises(ProtocolError, match="stage 2"):
    decode(encode(m.OpenPlan(plan, stage=2)))
  for name in ("one", "", "two\n"):  # the first has a stage already
    shards = [pb.Shard(model_id="m", start_layer=a, end_layer=b, n_layers=8) for a, b in ((0, 3), (4, 7))]
    stages = [pb.Stage(node_id="a", worker=w, shard=s) for w, s in zip(("one", name), shards, strict=True)]
    with pytest.raises(ProtocolError, match="malformed"):
      decode(pb.Item(open_plan=pb.OpenPlan(plan=pb.Plan(model_id="m", stages=stages))))
  assert RingPlan("m", "e", (halves[0], replace(halves[1], worker="three"))).plan_id != plan.plan_id
  frame = m.Frame("p", "e", 1, (), m.EMPTY_TOKEN_IDS, stage=1)
  found, _, _ = decode(encode(frame))
  assert isinstance(found, m.Frame) and found.stage == 1
  with pytest.raises(ProtocolError):
    decode(encode(m.Frame("p", "e", 1, (), m.EMPTY_TOKEN_IDS, stage=-1)))


def test_line_1_a_nodes_name_is_enough_where_it_has_one_worker() -> None:
  names = names_of([WorkerId("b", "cpu"), WorkerId("a", "gpu0"), WorkerId("a", "cpu")])
  assert list(names.values()) == ["a/cpu", "a/gpu0", "b"] and names[WorkerId("b", "cpu")] == "b"


def test_line_1_every_node_sees_how_far_each_worker_is_with_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  """An engine whose second worker stops in the middle until it is let go on."""
  go_on = tmp_path / "go on"
  add_engine(
      tmp_path / "engines", monkeypatch, "slow_loader", 99, f"""
import pathlib, time
from exo.inference.dummy import engine as dummy
from exo.inference.engine import InferenceEngine

def load(shard, checkpoint, options, progress):
  progress(0.25 if options.device == "one" else 0.5)
  while options.device == "two" and not pathlib.Path({str(go_on)!r}).exists():
    time.sleep(0.01)
  return dummy.create().load(shard, checkpoint, options, progress)

def create():
  return InferenceEngine("slow_loader", load)
"""
  )
  engines = (probe_engine("slow_loader"), )

  async def scenario() -> None:
    network, offers = LocalNetwork(), tuple(WorkerOffer(name, engines, 500) for name in TWO)
    nodes = [make_node(tmp_path, network, "n0", 1000, offers=offers), make_node(tmp_path, network, "n1", 0)]
    for node in nodes:
      await node.start()
    answer = asyncio.create_task(text_of(nodes[0], spec("hello")))
    try:

      def loading(node: Node) -> dict[str, dict[str, float]]:
        return {
            worker["name"]: worker["loading"]
            for view in ring_view(node).nodes if view.node_id == "n0" for worker in map(worker_json, view.workers)
        }

      for node in nodes:
        await until(lambda n=node: loading(n) == {"one": {}, "two": {"dummy": 0.5}}, "the figures")
    finally:
      go_on.touch()
    assert await answer and loading(nodes[0]) == {"one": {}, "two": {}}
    for node in nodes:
      await node.stop()

  run(scenario)


# devices of a machine


def test_line_1_devices_are_those_that_an_engine_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
  onnx, dummy = probe_engine("onnx"), probe_engine("dummy")
  gpu = replace(dummy, name="gpu engine", device="a GPU", devices=("gpu0", "gpu1"), any_device=False)
  # each GPU, the first one also with what the CPU has for what a GPU's engine cannot run; without one the machine is one
  assert devices.engines_by_device((gpu, onnx), ()) == {"gpu0": (gpu, onnx), "gpu1": (gpu, )}
  assert devices.engines_by_device((onnx, gpu), ()) == {"gpu0": (onnx, gpu), "gpu1": (gpu, )}
  missing = replace(gpu, missing="is not installed")
  assert devices.engines_by_device((onnx, missing), ()) == {"cpu": (onnx, missing)}
  found = devices.engines_by_device((gpu, onnx), ("gpu1", "cpu"))
  assert found == {"gpu1": (gpu, ), "cpu": (onnx, )}
  assert list(devices.engines_by_device((dummy, ), ("a", "b", "c"))) == ["a", "b", "c"]
  with pytest.raises(ConfigError, match="gpu7: no engine can use it here"):
    devices.engines_by_device((gpu, onnx), ("gpu7", ))
  monkeypatch.setattr(devices, "gpu_memories_mb", lambda: [24000, 8000])
  total = devices.memory().total // 2**20
  assert devices.offers_mb(["gpu1", "cpu"], None) == [8000, total]
  assert devices.offers_mb(["a", "b"], None) == [total // 2, total // 2]
  assert devices.offers_mb(["gpu0", "gpu1"], 1000) == [750, 250] and devices.offers_mb(["cpu"], 10**9) == [total]


def test_line_1_workers_are_shown_under_their_node(tmp_path: Path) -> None:
  """Two processes with two workers each: everything that was shown before still is."""
  given = ("--inference-engine", "dummy", "--default-model", "dummy", "--devices", "one,two", "--max-memory", "1000")
  with ring(tmp_path, 2, *given) as nodes:
    status, answer = nodes[0].chat("hello", max_tokens=40)
    assert status == 200
    told = nodes[1].get("/v1/topology")[1]
    for node in told["nodes"].values():
      assert [(w["name"], w["engines"], w["memory"]) for w in node["workers"]] == [("one", ["dummy"], 500),
                                                                                   ("two", ["dummy"], 500)]
      assert node["memory"] == 1000 and node["engine"] == "dummy" and node["device"] == "none"
    (plan, ) = told["plans"]
    assert sorted((s["node_id"], s["worker"]) for s in plan["stages"]) == [(n, w) for n in ("node0", "node1")
                                                                           for w in ("one", "two")]
    shown = exo(tmp_path, "status", "node0").stdout
    assert shown.count("one: dummy on none") == 2 and "500 MB" in shown
    expected = answer["choices"][0]["message"]["content"]
    nodes[1].kill()
    assert nodes[0].chat("hello", max_tokens=40)[1]["choices"][0]["message"]["content"] == expected
  with ring(tmp_path / "alone", 1, *given[:4]) as (node, ):
    assert node.chat("hello", max_tokens=40)[1]["choices"][0]["message"]["content"] == expected
    assert "dummy on none" in exo(tmp_path / "alone", "status").stdout
    assert "cpu:" not in exo(tmp_path / "alone", "status").stdout
  wrong = exo(tmp_path, "--inference-engine", "onnx", "--devices", "gpu5")
  assert wrong.returncode and "--devices gpu5: no engine can use it here" in wrong.stderr
