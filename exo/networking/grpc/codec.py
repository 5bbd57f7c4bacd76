"""Messages to protobuf and back. Protobuf classes go no further than this package.

Decoding checks everything that a peer could get wrong and raises `ProtocolError`; nothing is pickled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import batched
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

from exo.errors import ProtocolError
from exo.inference.engine import BatchEntry, LogitsOf
from exo.inference.sampling import SamplingParams, TokenLogprob
from exo.inference.shard import Shard
from exo.networking import messages as m
from exo.networking.grpc import model_codec
from exo.networking.grpc import node_service_pb2 as pb
from exo.topology.device_capabilities import DeviceCapabilities, DeviceFlops
from exo.topology.ring_plan import RingPlan, Stage, WeightMemory

_DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int32": np.dtype("<i4"),
}
_MAX_RANK = 4
_BLOCK = 64  # numbers that share a scale on an 8-bit wire
_FLOAT16_MOST = 65504.0
WireDtype = Literal["native", "16", "8"]
_LOGITS = {int(kind): kind for kind in LogitsOf}
_MAX_LINKS = 256
_MAX_PACES = 64
_MAX_WIDTH = 64  # tokens of one sequence in a step that is not a prompt's


def encode_tensor(array: npt.NDArray[Any], wire: WireDtype = "native") -> pb.Tensor:
  """Raw little-endian bytes with dtype and shape, floats narrowed to the bits that `wire` names."""
  if wire != "native" and array.dtype.kind in "fV":
    return _encode_narrow(array, wire)
  name = array.dtype.name
  if name not in _DTYPES:
    raise ProtocolError(f"tensors of {name} are not sent")
  return pb.Tensor(dtype=name, shape=array.shape, data=array.tobytes())


def _encode_narrow(array: npt.NDArray[Any], wire: WireDtype) -> pb.Tensor:
  """16 bits: float16, or bfloat16 where a value is too large for it. 8 bits: whole numbers with a scale a block."""
  numbers = array.astype(np.float32)
  if wire == "16":
    fits = bool(np.abs(numbers).max(initial=0) <= _FLOAT16_MOST)
    narrow = numbers.astype(np.float16 if fits else ml_dtypes.bfloat16)
    return pb.Tensor(dtype=narrow.dtype.name, shape=array.shape, data=narrow.tobytes())
  width = array.shape[-1]
  padded = np.zeros((numbers.size // width, -(-width // _BLOCK) * _BLOCK), np.float32)
  padded[:, :width] = numbers.reshape(-1, width)
  blocks = padded.reshape(-1, _BLOCK)
  scales = np.abs(blocks).max(axis=1) / np.float32(127)
  whole = np.rint(blocks / np.where(scales > 0, scales, 1)[:, None]).astype(np.int8)
  data = whole.reshape(padded.shape)[:, :width].tobytes()
  return pb.Tensor(dtype="int8", shape=array.shape, data=data, scales=scales.astype("<f4").tobytes())


def decode_tensor(tensor: pb.Tensor) -> npt.NDArray[Any]:
  """A read-only array over the message's bytes; float32 where they were narrowed to 8 bits."""
  dtype = np.dtype(np.int8) if tensor.dtype == "int8" else _DTYPES.get(tensor.dtype)
  shape = tuple(tensor.shape)
  if dtype is None or not 1 <= len(shape) <= _MAX_RANK or min(shape) < 1:
    raise ProtocolError(f"a tensor of {tensor.dtype[:20]!r} and shape {shape[:8]} is not allowed")
  data = tensor.data
  if math.prod(shape) * dtype.itemsize != len(data):
    raise ProtocolError(f"a tensor of shape {shape} and {tensor.dtype} came with {len(data)} bytes")
  array = np.frombuffer(data, dtype).reshape(shape)
  return _widened(array, tensor.scales) if tensor.dtype == "int8" else array


def _widened(array: npt.NDArray[np.int8], scale_bytes: bytes) -> npt.NDArray[np.float32]:
  width = array.shape[-1]
  blocks = -(-width // _BLOCK)
  if len(scale_bytes) != 4 * blocks * (array.size // width):
    raise ProtocolError(f"an int8 tensor of shape {array.shape} came with {len(scale_bytes)} bytes of scales")
  scales = np.frombuffer(scale_bytes, "<f4").reshape(-1, blocks)
  if not np.isfinite(scales).all():
    raise ProtocolError("an int8 tensor came with scales that are no numbers")
  wide: npt.NDArray[np.float32] = array.reshape(-1, width) * np.repeat(scales, _BLOCK, axis=1)[:, :width]
  return wide.reshape(array.shape)


def _shard_out(shard: Shard) -> pb.Shard:
  return pb.Shard(
      model_id=shard.model_id, start_layer=shard.start_layer, end_layer=shard.end_layer, n_layers=shard.n_layers
  )


def _shard_in(shard: pb.Shard) -> Shard:
  try:
    return Shard(shard.model_id, shard.start_layer, shard.end_layer, shard.n_layers)
  except ValueError as error:
    raise ProtocolError(str(error)) from error


def _capabilities_out(c: DeviceCapabilities) -> pb.DeviceCapabilities:
  return pb.DeviceCapabilities(
      model=c.model, chip=c.chip, memory=c.memory, fp32=c.flops.fp32, fp16=c.flops.fp16, int8=c.flops.int8
  )


def _capabilities_in(c: pb.DeviceCapabilities) -> DeviceCapabilities:
  return DeviceCapabilities(c.model[:200], c.chip[:200], max(0, c.memory), DeviceFlops(c.fp32, c.fp16, c.int8))


def _bounded(weight_bytes: float) -> float:
  return weight_bytes if 0 <= weight_bytes <= 16 else 0.0  # also not a number


def hello_out(hello: m.Hello, stream: str) -> pb.Item:
  body = pb.Hello(
      node_id=hello.node_id,
      incarnation=hello.incarnation,
      stream=stream,
      port=hello.port,
      capabilities=_capabilities_out(hello.capabilities),
      engine=hello.engine,
      device=hello.device,
      version=hello.version,
      local_models=hello.local_models,
      protocol=m.PROTOCOL_VERSION,
      plain_weight_bytes=hello.weight_memory.plain,
      packed_weight_bytes=hello.weight_memory.packed
  )
  return pb.Item(hello=body)


def hello_in(item: pb.Item) -> tuple[m.Hello, str]:
  """(who it is, which kind of stream this is)."""
  h = item.hello
  if h.protocol != m.PROTOCOL_VERSION:
    raise ProtocolError(
        f"the other node speaks protocol {h.protocol}, this one {m.PROTOCOL_VERSION}: update the older one"
    )
  if not 1 <= len(h.node_id) <= 128 or h.stream not in ("data", "control", "heartbeat", "bulk"):
    raise ProtocolError("a stream began with a malformed greeting")
  hello = m.Hello(
      h.node_id, h.incarnation, h.port, _capabilities_in(h.capabilities), h.engine[:40], h.device[:200], h.version[:40],
      tuple(h.local_models), WeightMemory(_bounded(h.plain_weight_bytes), _bounded(h.packed_weight_bytes))
  )
  return hello, h.stream


def _heartbeat_out(message: m.Heartbeat) -> dict[str, Any]:
  return {
      "heartbeat": pb.Heartbeat(
          number=message.number,
          is_answer=message.is_answer,
          active=message.active,
          free_memory_mb=message.free_memory_mb,
          loaded=[_shard_out(s) for s in message.loaded],
          used_memory_mb=message.used_memory_mb,
          load=message.load,
          frames=message.frames,
          links=[pb.PeerLink(node_id=p.node_id, rtt_ms=p.rtt_ms, interface=p.interface) for p in message.links],
          cpu_s=message.cpu_s,
          rss_mb=message.rss_mb,
          paces=[_pace_out(p) for p in message.paces],
          leaving=message.leaving,
          data_bytes=message.data_bytes,
          data_read_bytes=message.data_read_bytes,
          rumours=[
              pb.Rumour(node_id=r.node_id, incarnation=r.incarnation, beat=r.beat, address=r.address)
              for r in message.rumours
          ]
      )
  }


def _heartbeat_in(h: pb.Heartbeat) -> m.Heartbeat:
  return m.Heartbeat(
      h.number, h.is_answer, h.free_memory_mb, h.active, tuple(_shard_in(s) for s in h.loaded), h.used_memory_mb,
      min(1.0, max(0.0, h.load)), h.frames,
      tuple(m.PeerLink(p.node_id[:128], p.rtt_ms, p.interface[:40]) for p in h.links[:_MAX_LINKS]), h.cpu_s, h.rss_mb,
      tuple(_pace_in(p) for p in h.paces[:_MAX_PACES]), h.leaving,
      tuple(m.Rumour(r.node_id[:128], r.incarnation, r.beat, r.address[:80]) for r in h.rumours[:_MAX_LINKS]),
      h.data_bytes, h.data_read_bytes
  )


def _pace_out(p: m.PlanPace) -> pb.PlanPace:
  return pb.PlanPace(
      plan_id=p.plan_id,
      lap_ms=p.lap_ms,
      compute_ms=p.compute_ms,
      wait_ms=p.wait_ms,
      hop_ms=p.hop_ms,
      hop_p99_ms=p.hop_p99_ms,
      transport_ms=p.transport_ms,
      laps=p.laps,
      drafted=p.drafted,
      accepted=p.accepted,
      wasted=p.wasted
  )


def _pace_in(p: pb.PlanPace) -> m.PlanPace:
  return m.PlanPace(
      p.plan_id[:64], p.lap_ms, tuple(p.compute_ms), tuple(p.wait_ms), p.hop_ms, p.hop_p99_ms, p.transport_ms, p.laps,
      p.drafted, p.accepted, p.wasted
  )


def _plan_out(plan: RingPlan, addresses: dict[str, str]) -> pb.Plan:
  stages = [
      pb.Stage(node_id=s.node_id, shard=_shard_out(s.shard), address=addresses.get(s.node_id, "")) for s in plan.stages
  ]
  return pb.Plan(model_id=plan.model_id, epoch=plan.epoch, stages=stages)


def _plan_in(plan: pb.Plan) -> RingPlan:
  try:
    return RingPlan(plan.model_id, plan.epoch, tuple(Stage(s.node_id, _shard_in(s.shard)) for s in plan.stages))
  except ValueError as error:
    raise ProtocolError(f"a plan is malformed: {error}") from error


def _open_out(message: m.OpenPlan) -> pb.OpenPlan:
  return pb.OpenPlan(
      plan=_plan_out(message.plan, dict(message.addresses)), fingerprint=message.fingerprint, beside=message.beside
  )


def _open_in(o: pb.OpenPlan) -> m.OpenPlan:
  addresses = tuple((s.node_id, s.address) for s in o.plan.stages if s.address)
  return m.OpenPlan(_plan_in(o.plan), o.fingerprint, addresses, o.beside)


def _opened_in(o: pb.PlanOpened) -> m.PlanOpened:
  return m.PlanOpened(o.plan_id, o.max_kv_tokens, o.max_sequences, o.max_context, o.max_drafting)


def _opened_out(message: m.PlanOpened) -> dict[str, Any]:
  return {
      "plan_opened": pb.PlanOpened(
          plan_id=message.plan_id,
          max_kv_tokens=message.max_kv_tokens,
          max_sequences=message.max_sequences,
          max_context=message.max_context,
          max_drafting=message.max_drafting
      )
  }


def _failure_out(failure: m.Failure) -> pb.Failure:
  return pb.Failure(kind=failure.kind, message=failure.message, details_json=failure.details_json)


def _failure_in(f: pb.Failure) -> m.Failure:
  return m.Failure(f.kind[:100], f.message[:4000], f.details_json[:10000])


def _close_out(message: m.ClosePlan) -> dict[str, Any]:
  body = pb.ClosePlan(plan_id=message.plan_id)
  if message.reason is not None:
    body.reason.CopyFrom(_failure_out(message.reason))
  return {"close_plan": body}


def _close_in(c: pb.ClosePlan) -> m.ClosePlan:
  return m.ClosePlan(c.plan_id, _failure_in(c.reason) if c.HasField("reason") else None)


def _sampling_out(s: SamplingParams) -> pb.Sampling:
  body = pb.Sampling(
      temperature=s.temperature,
      top_p=s.top_p,
      top_k=s.top_k,
      min_p=s.min_p,
      frequency_penalty=s.frequency_penalty,
      presence_penalty=s.presence_penalty,
      repetition_penalty=s.repetition_penalty,
      seed=s.seed,
      logit_bias=dict(s.logit_bias),
      grammar=s.grammar
  )
  if s.top_logprobs is not None:
    body.top_logprobs = s.top_logprobs
  return body


def _sampling_in(s: pb.Sampling) -> SamplingParams:
  return SamplingParams(
      s.temperature, s.top_p, s.top_k, s.min_p, s.frequency_penalty, s.presence_penalty, s.repetition_penalty, s.seed,
      dict(s.logit_bias), s.top_logprobs if s.HasField("top_logprobs") else None, s.grammar
  )


def _request_out(r: m.Request) -> pb.Request:
  body = pb.Request(
      request_id=r.request_id,
      entry_node=r.entry_node,
      choice=r.choice,
      prompt_ids=r.prompt_ids,
      max_tokens=r.max_tokens,
      eos_ids=sorted(r.eos_ids),
      sampling=_sampling_out(r.sampling),
      replay_ids=r.replay_ids,
      embed=r.embed,
      replay_wide=[number for w in r.replay_wide for number in (w.index, w.count, w.width)]
  )
  if r.prompt_logprobs is not None:
    body.prompt_logprobs = r.prompt_logprobs
  return body


def _request_in(r: pb.Request) -> m.Request:
  if not 1 <= len(r.request_id) <= 128 or not 1 <= len(r.entry_node) <= 128:
    raise ProtocolError("a request without a proper id")
  if len(r.replay_wide) % 3:
    raise ProtocolError("a request's wide steps are not threes")
  wide = tuple(m.WideStep(*numbers) for numbers in batched(r.replay_wide, 3))
  if any(not 1 <= w.count <= w.width <= _MAX_WIDTH or w.index + w.count >= len(r.replay_ids) for w in wide):
    raise ProtocolError("a request's wide steps do not fit the tokens that it replays")
  return m.Request(
      r.request_id, r.entry_node, tuple(r.prompt_ids), r.max_tokens, frozenset(r.eos_ids), _sampling_in(r.sampling),
      r.choice, r.prompt_logprobs if r.HasField("prompt_logprobs") else None, tuple(r.replay_ids), r.embed, wide
  )


def _submit_out(message: m.Submit) -> dict[str, Any]:
  return {"submit": pb.Submit(open=_open_out(message.open), request=_request_out(message.request))}


def _frame_out(f: m.Frame, wire: WireDtype = "native") -> dict[str, Any]:
  body = pb.Frame(
      plan_id=f.plan_id,
      epoch=f.epoch,
      step=f.step,
      drops=f.drops,
      token_ids=f.token_ids.tobytes(),
      compute_ms=f.compute_ms,
      run=f.run,
      entries=[number for e in f.entries for number in (e.sequence, e.position, e.n_tokens, e.logits)],
      opens=[
          pb.SequenceOpen(
              sequence=o.sequence,
              request=_request_out(o.request),
              prompt_tokens=o.prompt_tokens,
              source=o.source,
              reused=o.reused
          ) for o in f.opens
      ],
      ends=f.ends,
      truncates=[number for pair in f.truncates for number in pair],
      refused=f.refused,
      spent_ms=f.spent_ms
  )
  if f.hidden is not None:
    body.hidden.CopyFrom(encode_tensor(f.hidden, wire))
  return {"frame": body}


def _frame_in(f: pb.Frame) -> m.Frame:
  try:
    entries = tuple(BatchEntry(s, p, n, _LOGITS[w]) for s, p, n, w in batched(f.entries, 4))
  except (ValueError, KeyError) as error:
    raise ProtocolError(f"a frame's entry is malformed: {error}") from error
  tokens = sum(e.n_tokens for e in entries)
  if len(f.token_ids) != 4 * tokens or any(e.n_tokens < 1 for e in entries):
    raise ProtocolError(f"a frame of {tokens} tokens came with {len(f.token_ids)} bytes of token ids")
  hidden = decode_tensor(f.hidden) if f.HasField("hidden") else None
  if hidden is not None and (hidden.ndim != 2 or hidden.shape[0] != tokens):
    raise ProtocolError(f"a frame of {tokens} tokens came with hidden states of shape {hidden.shape}")
  opens = tuple(
      m.SequenceOpen(o.sequence, _request_in(o.request), o.prompt_tokens, o.source, o.reused) for o in f.opens
  )
  if len(f.truncates) % 2:
    raise ProtocolError("a frame's truncations are not pairs")
  return m.Frame(
      f.plan_id, f.epoch, f.step, entries, np.frombuffer(f.token_ids, "<i4"), hidden, opens, tuple(f.drops),
      tuple(f.compute_ms), max(1, f.run), tuple(f.ends), tuple(zip(f.truncates[::2], f.truncates[1::2], strict=True)),
      tuple(f.refused), tuple(f.spent_ms)
  )


def _result_out(r: m.StepResult) -> dict[str, Any]:
  tokens = [pb.SequenceToken(sequence=t.sequence, token_id=t.token_id, finish_reason=t.finish_reason) for t in r.tokens]
  body = pb.StepResult(
      plan_id=r.plan_id, step=r.step, tokens=tokens, compute_ms=r.compute_ms, refused=r.refused, spent_ms=r.spent_ms
  )
  return {"step_result": body}


def _result_in(r: pb.StepResult) -> m.StepResult:
  tokens = tuple(m.SequenceToken(t.sequence, t.token_id, t.finish_reason) for t in r.tokens)
  return m.StepResult(r.plan_id, r.step, tokens, tuple(r.compute_ms), tuple(r.refused), tuple(r.spent_ms))


def _logprob_out(entry: TokenLogprob) -> pb.LogprobEntry:
  return pb.LogprobEntry(
      token_id=entry.token_id,
      logprob=entry.logprob,
      top_ids=[i for i, _ in entry.top],
      top_logprobs=[p for _, p in entry.top]
  )


def _logprob_in(entry: pb.LogprobEntry) -> TokenLogprob:
  return TokenLogprob(entry.token_id, entry.logprob, tuple(zip(entry.top_ids, entry.top_logprobs, strict=False)))


def _delivery_out(d: m.TokenDelivery) -> dict[str, Any]:
  return {
      "token_delivery": pb.TokenDelivery(
          plan_id=d.plan_id,
          request_id=d.request_id,
          choice=d.choice,
          index=d.index,
          finish_reason=d.finish_reason,
          tokens=[_logprob_out(t) for t in d.tokens],
          prompt_logprobs=[_logprob_out(t) for t in d.prompt_logprobs],
          width=d.width,
          cached_tokens=d.cached_tokens,
          embedding=b"" if d.embedding is None else d.embedding.tobytes()
      )
  }


def _delivery_in(d: pb.TokenDelivery) -> m.TokenDelivery:
  if len(d.embedding) % 4:
    raise ProtocolError(f"an embedding came with {len(d.embedding)} bytes")
  return m.TokenDelivery(
      d.plan_id, d.request_id, d.choice, d.index, tuple(_logprob_in(t) for t in d.tokens), d.finish_reason,
      tuple(_logprob_in(t) for t in d.prompt_logprobs), max(1, d.width), d.cached_tokens,
      np.frombuffer(d.embedding, "<f4") if d.embedding else None
  )


_OUT: dict[type, Callable[[Any], dict[str, Any]]] = {
    m.Heartbeat: _heartbeat_out,
    m.OpenPlan: lambda x: {"open_plan": _open_out(x)},
    m.PlanOpened: _opened_out,
    m.ClosePlan: _close_out,
    m.Submit: _submit_out,
    m.Cancel: lambda x: {"cancel": pb.Cancel(plan_id=x.plan_id, request_id=x.request_id)},
    m.Failure: lambda x: {"failure": _failure_out(x)},
    m.Done: lambda _: {"done": pb.Done()},
    m.RequestFailed: lambda x:
    {"request_failed": pb.RequestFailed(plan_id=x.plan_id, request_id=x.request_id, failure=_failure_out(x.failure))},
    m.Frame: _frame_out,
    m.StepResult: _result_out,
    m.StepFailed: lambda x:
    {"step_failed": pb.StepFailed(plan_id=x.plan_id, step=x.step, failure=_failure_out(x.failure))},
    m.TokenDelivery: _delivery_out,
    **model_codec.OUT,
}
_IN: dict[str, Callable[[Any], m.Message]] = {
    "heartbeat": _heartbeat_in,
    "open_plan": _open_in,
    "plan_opened": _opened_in,
    "close_plan": _close_in,
    "submit": lambda x: m.Submit(_open_in(x.open), _request_in(x.request)),
    "cancel": lambda x: m.Cancel(x.plan_id, x.request_id),
    "failure": _failure_in,
    "done": lambda _: m.Done(),
    "request_failed": lambda x: m.RequestFailed(x.plan_id, x.request_id, _failure_in(x.failure)),
    "frame": _frame_in,
    "step_result": _result_in,
    "step_failed": lambda x: m.StepFailed(x.plan_id, x.step, _failure_in(x.failure)),
    "token_delivery": _delivery_in,
    **model_codec.IN,
}


def encode(message: m.Message, call_id: int = 0, is_reply: bool = False, wire: WireDtype = "native") -> pb.Item:
  if isinstance(message, m.Frame):
    return pb.Item(**_frame_out(message, wire))
  return pb.Item(call_id=call_id, is_reply=is_reply, **_OUT[type(message)](message))


def decode(item: pb.Item) -> tuple[m.Message, int, bool]:
  """(message, call id, whether it is a reply). Raises `ProtocolError`."""
  kind = item.WhichOneof("body")
  if kind not in _IN:
    raise ProtocolError(f"an item of kind {kind!r} has no place in the middle of a stream")
  return _IN[kind](getattr(item, kind)), item.call_id, item.is_reply


def envelope_bytes(items: list[pb.Item]) -> bytes:
  return pb.Envelope(items=items).SerializeToString()


def envelope_items(data: bytes) -> list[pb.Item]:
  """Raises `ProtocolError` for bytes that are no envelope."""
  from google.protobuf.message import DecodeError
  try:
    return list(pb.Envelope.FromString(data).items)
  except DecodeError as error:
    raise ProtocolError("a message that is not an envelope") from error
