"""What goes over the wire comes back equal, and what a stranger sends is refused, never trusted."""

import math
from dataclasses import replace

import ml_dtypes
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from exo.bounds import MAX_CONTEXT, MAX_PARALLEL
from exo.errors import ModelTooLargeError, ProtocolError, QueueFullError, from_wire, to_wire
from exo.inference.engine import BatchEntry, LogitsOf
from exo.inference.engine_news import EngineNews
from exo.inference.offer import EngineOffer, EngineSpeed
from exo.inference.repertoire import Repertoire
from exo.inference.sampling import SamplingParams, TokenLogprob
from exo.inference.shard import Shard
from exo.model_file import ModelFile
from exo.networking import messages as m
from exo.networking.grpc import node_service_pb2 as pb
from exo.networking.grpc.codec import decode, encode
from exo.networking.grpc.frame_codec import FrameBody
from exo.networking.grpc.peer_codec import hello_in, hello_out
from exo.networking.grpc.tensor_codec import WireTensor, decode_tensor, encode_tensor
from exo.networking.grpc.wire import envelope_bytes, envelope_items
from exo.networking.peer_messages import Heartbeat, Hello, PeerLink, PlanRoom, WorkerBeat, WorkerOffer
from exo.topology.device_capabilities import DeviceCapabilities, DeviceFlops
from exo.topology.loaded_for import WHAT_FITS, LoadedFor
from exo.topology.ring_plan import RingPlan, Stage
from exo.topology.weight_memory import WeightMemory

PLAN = RingPlan("m", "epoch", (Stage("a", Shard("m", 0, 3, 8), "cpu"), Stage("b", Shard("m", 4, 7, 8), "cpu")))
REQUEST = m.Request(
    "r1", "a", (1, 2, 3), 50, frozenset({2, 7}),
    SamplingParams(0.7, 0.9, 40, 0.1, 0.5, -0.5, 1.1, -2**63, {5: -100.0}, 3), 2, 0
)
FRAME = m.Frame(
    "p", "e", 9, (BatchEntry(1, 4, 2, LogitsOf.NONE), BatchEntry(2, 0, 1, LogitsOf.LAST)), np.array([5, 6, 7],
                                                                                                    np.int32),
    np.arange(12, dtype=np.float32).reshape(3, 4), (m.SequenceOpen(2, REQUEST, 3), ), (8, 9), (1.5, )
)
NEWS = EngineNews({"mlx": EngineSpeed(900.5, 80.25)}, {"onnx": "its library is gone"}, {"0f" * 8: "mlx"})
ROOMS = (
    PlanRoom("p", "m", LoadedFor(4096, 4), 4, 4096, 16384, kept=True), PlanRoom("q", "m", WHAT_FITS, 64, 8192, 10**9)
)
MESSAGES = [
    Heartbeat(
        3,
        True,
        True, (
            WorkerBeat("cpu", 1000, 300, (Shard("m", 0, 3, 8), )),
            WorkerBeat("gpu0", 500, problem="no device", news=NEWS, pinned=(("m", 300), ), loading=(("m", 0.5), ))
        ),
        0.25,
        17, (PeerLink("other", 0.5, "eth0"), ),
        rooms=ROOMS
    ),
    m.OpenPlan(PLAN, (("b", "10.0.0.2:50"), ), stage=1),
    m.OpenPlan(replace(PLAN, loaded_for=LoadedFor(4096, 4)), room_s=1.5),
    m.OpenPlan(replace(PLAN, file=ModelFile("ab", "cd", "ef", "org/name", "0123", "model.gguf", 2**40))),
    m.PlanOpened("p", 10**9, 64, 8192, 1, 10**8),
    m.ClosePlan("p", m.Failure("peer_lost", "gone", "{}")),
    m.ClosePlan("p"),
    m.Submit(m.OpenPlan(PLAN), REQUEST),
    m.Submit(m.OpenPlan(PLAN), replace(REQUEST, share="0f" * 16, cache_salt="ab" * 16, progress=True)),
    m.Submit(m.OpenPlan(PLAN), replace(REQUEST, replay_ids=(4, 5, 6, 7), replay_wide=(m.WideStep(1, 2, 5), ))),
    m.Cancel("p", "r1"),
    m.GiveWay("p", "q"),
    m.ShrinkLease("p", 10**9, "q"),
    m.GrowLease("p", 2, 10**9, True),
    m.Lease("p", 10**9, 7, 10**10),
    m.PromptProgress("p", "r1", 0, 900, 100, 356),
    m.PromptProgress("p", "r1", 3),
    m.Failure("x", "y", '{"a": 1}'),
    m.Done(),
    m.RequestFailed("p", "r1", m.Failure("x", "y")),
    m.StepResult("p", 9, (m.SequenceToken(1, 7, "stop"), ), (1.0, 2.0)),
    m.StepFailed("p", 9, m.Failure("x", "y")),
    m.TokenDelivery(
        "p", "r1", 1, 5, (TokenLogprob(7, -0.5, ((7, -0.5), (8, -1.0))), ), "length", (TokenLogprob(1, -2.0), )
    ),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_round_trip(message: m.Message) -> None:
  (item, ) = envelope_items(envelope_bytes([encode(message, 5, is_reply=True)]))
  assert decode(item) == (message, 5, True)


def test_frames_round_trip() -> None:
  (item, ) = envelope_items(envelope_bytes([encode(FRAME)]))
  frame, _, _ = decode(item)
  assert isinstance(frame, m.Frame) and frame.hidden is not None
  np.testing.assert_array_equal(frame.hidden, FRAME.hidden)
  np.testing.assert_array_equal(frame.token_ids, FRAME.token_ids)
  assert (frame.entries, frame.opens, frame.drops, frame.stage_ms) == (FRAME.entries, FRAME.opens, FRAME.drops, (1.5, ))


@pytest.mark.parametrize("wide", [(0, 0, 1), (0, 2, 1), (0, 1, 65), (2, 2, 2), (9, 1, 1)])
def test_wide_steps_that_do_not_fit_are_refused(wide: tuple[int, int, int]) -> None:
  request = replace(REQUEST, replay_ids=(4, 5, 6), replay_wide=(m.WideStep(*wide), ))
  with pytest.raises(ProtocolError, match="wide steps"):
    decode(encode(m.Submit(m.OpenPlan(PLAN), request), 1))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int32])
def test_tensors_of_every_allowed_type(dtype: type) -> None:
  array = np.arange(6).reshape(2, 3).astype(dtype)
  back = decode_tensor(encode_tensor(array))
  assert back.dtype == array.dtype
  np.testing.assert_array_equal(back.astype(np.float32), array.astype(np.float32))


@pytest.mark.parametrize(
    "tensor", [
        WireTensor("float64", (2, ), bytes(16)),
        WireTensor("object", (2, ), bytes(16)),
        WireTensor("float32", (), bytes(4)),
        WireTensor("float32", (0, ), b""),
        WireTensor("float32", (
            2,
            2,
            2,
            2,
            2,
        ), bytes(128)),
        WireTensor("float32", (3, ), bytes(16)),
        WireTensor("float32", (
            2**31,
            2**31,
        ), bytes(16)),
    ]
)
def test_bad_tensors_are_refused(tensor: WireTensor) -> None:
  with pytest.raises(ProtocolError):
    decode_tensor(tensor)


GOOD_BODY = FrameBody("p", "e", 0, 1, 1, (BatchEntry(1, 0, 1, LogitsOf.NONE), ), memoryview(bytes(4)), ())


@pytest.mark.parametrize(
    "body", [
        structs.replace(GOOD_BODY, entries=(BatchEntry(1, 0, 2, LogitsOf.NONE), )),
        structs.replace(GOOD_BODY, entries=(BatchEntry(1, 0, 0, LogitsOf.NONE), ), token_ids=memoryview(b"")),
        structs.replace(GOOD_BODY, entries=(BatchEntry(1, -1, 1, LogitsOf.NONE), )),
        structs.replace(GOOD_BODY, entries=((1, 0, 1, 9), )),
        structs.replace(GOOD_BODY, entries=((1, 0, 1), )),
        structs.replace(GOOD_BODY, entries=((1, 0, "1", 0), )),
        structs.replace(GOOD_BODY, token_ids=[0]),
        structs.replace(GOOD_BODY, run=0),
        structs.replace(GOOD_BODY, stage=-1),
        structs.replace(GOOD_BODY, stage=10**6),
        structs.replace(GOOD_BODY, stage_ms=(math.nan, 1.0)),
        structs.replace(GOOD_BODY, plan_id=None),
        structs.replace(GOOD_BODY, hidden=WireTensor("float32", (2, 2), memoryview(bytes(16)))),
        structs.replace(GOOD_BODY, hidden=WireTensor("float32", (1, ), memoryview(bytes(4)))),
        structs.replace(GOOD_BODY, changes=b"no message"),
        structs.replace(GOOD_BODY, changes=pb.CacheChanges(opens=[pb.SequenceOpen(sequence=1)]).SerializeToString()),
        structs.replace(GOOD_BODY, changes=pb.CacheChanges(truncates=[1, 2, 3]).SerializeToString()),
    ]
)
def test_bad_frames_are_refused(body: FrameBody) -> None:
  assert isinstance(decode(pb.Item(frame=msgspec.msgpack.encode(GOOD_BODY)))[0], m.Frame)
  with pytest.raises(ProtocolError):
    decode(pb.Item(frame=msgspec.msgpack.encode(body)))


@given(st.binary(max_size=200), st.integers(0, 200))
@settings(max_examples=200, deadline=None)
def test_frames_and_results_of_any_bytes_are_refused_or_read(data: bytes, at: int) -> None:
  whole = encode(FRAME).frame
  for item in (pb.Item(frame=data), pb.Item(step_result=data), pb.Item(frame=whole[:at] + data + whole[at:])):
    try:
      message, _, _ = decode(item)
    except ProtocolError:
      continue
    assert isinstance(message, m.Frame | m.StepResult)


@pytest.mark.parametrize("ms", [math.nan, math.inf, -1.0, 1e30, "1"])
def test_times_that_cannot_be_reckoned_with_are_refused(ms: object) -> None:
  with pytest.raises(ProtocolError, match="result is malformed"):
    decode(pb.Item(step_result=msgspec.msgpack.encode(["p", 1, [], [1.0, ms], []])))


@pytest.mark.parametrize("token", [(1, -1, ""), (1, 2**31, ""), (-1, 5, ""), (1, ), (1, "5", ""), None])
def test_bad_results_are_refused(token: object) -> None:
  with pytest.raises(ProtocolError, match="result is malformed"):
    decode(pb.Item(step_result=msgspec.msgpack.encode(["p", 1, [token], []])))


def test_bad_plans_are_refused() -> None:
  half = pb.Plan(
      model_id="m", stages=[pb.Stage(node_id="a", worker="cpu", shard=pb.Shard(model_id="m", end_layer=3, n_layers=8))]
  )
  reversed_ = pb.Plan(
      model_id="m",
      stages=[
          pb.Stage(node_id="a", worker="cpu", shard=pb.Shard(model_id="m", start_layer=5, end_layer=3, n_layers=8))
      ]
  )
  whole = pb.Plan(model_id="m", stages=[pb.Stage(node_id="a", worker="cpu", shard=pb.Shard(model_id="m", n_layers=1))])
  assert decode(pb.Item(open_plan=pb.OpenPlan(plan=whole)))[0].plan.loaded_for == WHAT_FITS
  endless = [
      pb.Plan(model_id="m", stages=whole.stages, context=MAX_CONTEXT + 1),
      pb.Plan(model_id="m", stages=whole.stages, parallel=MAX_PARALLEL + 1)
  ]
  for plan in (half, reversed_, pb.Plan(model_id="m"), *endless):
    with pytest.raises(ProtocolError):
      decode(pb.Item(open_plan=pb.OpenPlan(plan=plan)))


ENGINE = EngineOffer(
    "mlx", "GPU", "it is", 3, "1", "", Repertoire(("llama", ), unread=(("gpt", "x"), )), WeightMemory(4.0, 0.625),
    EngineSpeed(900.5, 80.25)
)


def test_greetings() -> None:
  hello = Hello(
      "a", 5, 1234, DeviceCapabilities("Mac", "M3", 8192, DeviceFlops(1, 2, 3)), (
          WorkerOffer("gpu0", (ENGINE, EngineOffer("onnx", "CPU", "", 0, missing="is not installed")),
                      8000), WorkerOffer("cpu", (ENGINE, ), 192)
      ), "1.0", ("x", )
  )
  assert hello_in(hello_out(hello, "data")) == (hello, "data")
  with pytest.raises(ProtocolError, match="malformed greeting"):
    hello_in(hello_out(hello, "other"))
  for engines in (b"", b"\x93", b"\x00" * 2**17, msgspec.msgpack.encode([{"name": 1}])):
    other = hello_out(hello, "data")
    other.hello.workers[0].engines = engines
    with pytest.raises(ProtocolError, match="greeting tells"):
      hello_in(other)
  newer = hello_out(hello, "data")
  newer.hello.protocol = 99
  with pytest.raises(ProtocolError, match="speaks protocol 99"):
    hello_in(newer)


def pack(thing: object) -> bytes:
  return msgspec.msgpack.encode(thing)


@pytest.mark.parametrize(
    "news", [
        b"\x93", b"\x00" * 2**16,
        pack([]),
        pack({"speeds": {"a": {"prompt": 0, "decode": 1}}}),
        pack({"speeds": {"a": {"prompt": float("nan"), "decode": 1}}}),
        pack({"speeds": {"a" * 201: {"prompt": 1, "decode": 1}}}),
        pack({"broken": {str(i): ""
                         for i in range(33)}}),
        pack({"broken": {"a": "b" * 401}}),
        pack({"settled": {str(i): "a"
                          for i in range(65)}}),
        pack({"settled": {"f" * 201: "a"}})
    ]
)
def test_line_2_what_a_heartbeat_tells_of_engines_is_bounded(news: bytes) -> None:
  with pytest.raises(ProtocolError, match="a heartbeat tells"):
    decode(pb.Item(heartbeat=pb.Heartbeat(workers=[pb.WorkerBeat(name="cpu", news=news)])))


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_do_no_more_than_raise(data: bytes) -> None:
  try:
    for item in envelope_items(data):
      decode(item)
  except ProtocolError:
    pass


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_messages_do_no_more_than_raise(data: st.DataObject) -> None:
  raw = bytearray(envelope_bytes([encode(message) for message in [*MESSAGES, FRAME]]))
  for _ in range(data.draw(st.integers(1, 4))):
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
  try:
    for item in envelope_items(bytes(raw)):
      decode(item)
  except ProtocolError:
    pass


def test_errors_keep_their_class_and_data_on_the_way() -> None:
  error = from_wire(*to_wire(ModelTooLargeError("45 MB are missing", missing_mb=45)))
  assert isinstance(error, ModelTooLargeError) and error.details == {"missing_mb": 45
                                                                     } and str(error) == "45 MB are missing"
  assert isinstance(from_wire(*to_wire(QueueFullError("full", retry_after_s=5))), QueueFullError)
  assert from_wire(*to_wire(ValueError("x"))).kind == "internal_error"
  assert from_wire("from_the_future", "m", "not json").message == "m"


@pytest.mark.parametrize(("wire", "relative", "bits"), [("16", 2**-11, 16.1), ("8", 1 / 254, 8.6)])
def test_narrow_wire_formats_are_bounded_in_error(wire, relative: float, bits: float) -> None:
  """16 bits: half a unit of float16's last place of each number; 8 bits: half a step of its block's largest."""
  rng = np.random.default_rng(0)
  array = (rng.standard_normal((7, 1000)) * 10.0**rng.integers(-3, 4, (7, 1000))).astype(np.float32)
  array[3] = 0
  tensor = encode_tensor(array, wire)
  assert 8 * len(msgspec.msgpack.encode(tensor)) / array.size < bits
  error = np.abs(decode_tensor(tensor).astype(np.float32) - array)
  if wire == "16":
    bound = np.abs(array) * relative + 2**-25
  else:
    padded = np.pad(np.abs(array), ((0, 0), (0, 24))).reshape(7, 16, 64)
    bound = np.repeat(padded.max(axis=2) * relative, 64, axis=1)[:, :1000] * 1.0001
  assert (error <= bound).all()
  large = np.array([[1e6, -3.0]], np.float32)
  np.testing.assert_allclose(decode_tensor(encode_tensor(large, "16")).astype(np.float32), large, rtol=2**-8)


def test_malformed_scales_are_refused() -> None:
  tensor = encode_tensor(np.ones((2, 70), np.float32), "8")
  tensor = structs.replace(tensor, scales=tensor.scales[:-4])
  with pytest.raises(ProtocolError, match="scales"):
    decode_tensor(tensor)
