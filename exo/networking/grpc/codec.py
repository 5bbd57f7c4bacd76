"""Messages to protobuf and back. Protobuf classes go no further than this package.

Decoding checks everything that a peer could get wrong and raises `ProtocolError`; nothing is pickled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import batched
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from exo.errors import ProtocolError
from exo.inference.engine import BatchEntry, LogitsOf
from exo.inference.sampling import SamplingParams, TokenLogprob
from exo.networking import messages as m
from exo.networking.grpc import model_codec
from exo.networking.grpc import node_service_pb2 as pb
from exo.networking.grpc.peer_codec import heartbeat_in, heartbeat_out, shard_in, shard_out
from exo.networking.grpc.tensor_codec import WireDtype, decode_tensor, fill_tensor
from exo.topology.ring_plan import RingPlan, Stage

_LOGITS = {int(kind): kind for kind in LogitsOf}
_ITEMS_TAG = b"\x0a"  # field 1, with a length
_ID = np.dtype("<i4")
_MAX_WIDTH = 64  # tokens of one sequence in a step that is not a prompt's


def _plan_out(plan: RingPlan, addresses: dict[str, str]) -> pb.Plan:
  stages = [
      pb.Stage(node_id=s.node_id, shard=shard_out(s.shard), address=addresses.get(s.node_id, "")) for s in plan.stages
  ]
  return pb.Plan(model_id=plan.model_id, epoch=plan.epoch, stages=stages)


def _plan_in(plan: pb.Plan) -> RingPlan:
  try:
    return RingPlan(plan.model_id, plan.epoch, tuple(Stage(s.node_id, shard_in(s.shard)) for s in plan.stages))
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


def _fill_frame(out: pb.Frame, f: m.Frame, wire: WireDtype) -> None:
  out.plan_id, out.epoch, out.step, out.run = f.plan_id, f.epoch, f.step, f.run
  out.token_ids = f.token_ids.tobytes()
  out.entries.extend([number for e in f.entries for number in (e.sequence, e.position, e.n_tokens, e.logits)])
  out.stage_ms.extend(f.stage_ms)
  if f.hidden is not None:
    fill_tensor(out.hidden, f.hidden, wire)
  if f.opens or f.drops or f.ends or f.truncates or f.refused:
    _fill_changes(out.changes, f)


def _fill_changes(out: pb.CacheChanges, f: m.Frame) -> None:
  for opened in f.opens:
    body = out.opens.add(
        sequence=opened.sequence, prompt_tokens=opened.prompt_tokens, source=opened.source, reused=opened.reused
    )
    body.request.CopyFrom(_request_out(opened.request))
  out.drops.extend(f.drops)
  out.ends.extend(f.ends)
  out.truncates.extend([number for pair in f.truncates for number in pair])
  out.refused.extend(f.refused)


def _frame_in(f: pb.Frame) -> m.Frame:
  entries, tokens = [], 0
  try:
    for sequence, position, count, wanted in batched(f.entries, 4):
      if count < 1:
        raise ProtocolError("a frame computes no token of a sequence")
      entries.append(BatchEntry(sequence, position, count, _LOGITS[wanted]))
      tokens += count
  except (ValueError, KeyError) as error:
    raise ProtocolError(f"a frame's entry is malformed: {error}") from error
  ids = f.token_ids
  if len(ids) != 4 * tokens:
    raise ProtocolError(f"a frame of {tokens} tokens came with {len(ids)} bytes of token ids")
  hidden = decode_tensor(f.hidden) if f.HasField("hidden") else None
  if hidden is not None and (hidden.ndim != 2 or hidden.shape[0] != tokens):
    raise ProtocolError(f"a frame of {tokens} tokens came with hidden states of shape {hidden.shape}")
  changes = _changes_in(f.changes) if f.HasField("changes") else {}
  return m.Frame(
      f.plan_id,
      f.epoch,
      f.step,
      tuple(entries),
      np.frombuffer(ids, _ID),
      hidden,
      stage_ms=tuple(f.stage_ms),
      run=max(1, f.run),
      **changes
  )


def _changes_in(c: pb.CacheChanges) -> dict[str, Any]:
  """A frame's fields of these names."""
  if len(c.truncates) % 2:
    raise ProtocolError("a frame's truncations are not pairs")
  return {
      "opens": tuple(
          m.SequenceOpen(o.sequence, _request_in(o.request), o.prompt_tokens, o.source, o.reused) for o in c.opens
      ),
      "drops": tuple(c.drops),
      "ends": tuple(c.ends),
      "truncates": tuple(zip(c.truncates[::2], c.truncates[1::2], strict=True)),
      "refused": tuple(c.refused),
  }


def _fill_result(out: pb.StepResult, r: m.StepResult) -> None:
  out.plan_id, out.step = r.plan_id, r.step
  for token in r.tokens:
    out.tokens.add(sequence=token.sequence, token_id=token.token_id, finish_reason=token.finish_reason)
  out.stage_ms.extend(r.stage_ms)
  if r.refused:
    out.refused.extend(r.refused)


def _result_in(r: pb.StepResult) -> m.StepResult:
  tokens = [m.SequenceToken(t.sequence, t.token_id, t.finish_reason) for t in r.tokens]
  return m.StepResult(r.plan_id, r.step, tuple(tokens), tuple(r.stage_ms), tuple(r.refused))


def _fill_logprobs(out: Any, entries: Iterable[TokenLogprob]) -> None:
  """`out` is a repeated field."""
  for entry in entries:
    added = out.add(token_id=entry.token_id, logprob=entry.logprob)
    if entry.top:
      added.top_ids.extend([i for i, _ in entry.top])
      added.top_logprobs.extend([p for _, p in entry.top])


def _logprob_in(entry: pb.LogprobEntry) -> TokenLogprob:
  return TokenLogprob(entry.token_id, entry.logprob, tuple(zip(entry.top_ids, entry.top_logprobs, strict=False)))


def _fill_delivery(out: pb.TokenDelivery, d: m.TokenDelivery) -> None:
  out.plan_id, out.request_id, out.choice, out.index = d.plan_id, d.request_id, d.choice, d.index
  out.width, out.cached_tokens, out.finish_reason = d.width, d.cached_tokens, d.finish_reason
  _fill_logprobs(out.tokens, d.tokens)
  if d.prompt_logprobs:
    _fill_logprobs(out.prompt_logprobs, d.prompt_logprobs)
  if d.embedding is not None:
    out.embedding = d.embedding.tobytes()


def _delivery_in(d: pb.TokenDelivery) -> m.TokenDelivery:
  if len(d.embedding) % 4:
    raise ProtocolError(f"an embedding came with {len(d.embedding)} bytes")
  return m.TokenDelivery(
      d.plan_id, d.request_id, d.choice, d.index, tuple(_logprob_in(t) for t in d.tokens), d.finish_reason,
      tuple(_logprob_in(t) for t in d.prompt_logprobs), max(1, d.width), d.cached_tokens,
      np.frombuffer(d.embedding, "<f4") if d.embedding else None
  )


_OUT: dict[type, Callable[[Any], dict[str, Any]]] = {
    m.Heartbeat: heartbeat_out,
    m.OpenPlan: lambda x: {"open_plan": _open_out(x)},
    m.PlanOpened: _opened_out,
    m.ClosePlan: _close_out,
    m.Submit: _submit_out,
    m.Cancel: lambda x: {"cancel": pb.Cancel(plan_id=x.plan_id, request_id=x.request_id)},
    m.Failure: lambda x: {"failure": _failure_out(x)},
    m.Done: lambda _: {"done": pb.Done()},
    m.RequestFailed: lambda x:
    {"request_failed": pb.RequestFailed(plan_id=x.plan_id, request_id=x.request_id, failure=_failure_out(x.failure))},
    m.StepFailed: lambda x:
    {"step_failed": pb.StepFailed(plan_id=x.plan_id, step=x.step, failure=_failure_out(x.failure))},
    **model_codec.OUT,
}
_IN: dict[str, Callable[[Any], m.Message]] = {
    "heartbeat": heartbeat_in,
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
  """`call_id` 0 for what is no call and no reply. What goes round the ring at every step is written in place: a message
  that is put into another one is copied, by way of its bytes."""
  if isinstance(message, m.Frame | m.StepResult | m.TokenDelivery):
    item = pb.Item()
    if call_id:
      item.call_id, item.is_reply = call_id, is_reply
    if isinstance(message, m.Frame):
      _fill_frame(item.frame, message, wire)
    elif isinstance(message, m.StepResult):
      _fill_result(item.step_result, message)
    else:
      _fill_delivery(item.token_delivery, message)
    return item
  return pb.Item(call_id=call_id, is_reply=is_reply, **_OUT[type(message)](message))


def decode(item: pb.Item) -> tuple[m.Message, int, bool]:
  """(message, call id, whether it is a reply). Raises `ProtocolError`."""
  kind = item.WhichOneof("body")
  read = _IN.get(kind or "")
  if kind is None or read is None:
    raise ProtocolError(f"an item of kind {kind!r} has no place in the middle of a stream")
  return read(getattr(item, kind)), item.call_id, item.is_reply


def envelope_bytes(items: list[pb.Item]) -> bytes:
  """Envelopes laid end to end are one envelope (repeated fields of a protobuf message add up), and need no copy."""
  parts = []
  for item in items:
    data = item.SerializeToString()
    parts += [_ITEMS_TAG, _varint(len(data)), data]
  return b"".join(parts)


def _varint(number: int) -> bytes:
  out = bytearray()
  while number > 127:
    out.append(number & 127 | 128)
    number >>= 7
  out.append(number)
  return bytes(out)


def envelope_items(data: bytes) -> list[pb.Item]:
  """Raises `ProtocolError` for bytes that are no envelope."""
  try:
    return list(pb.Envelope.FromString(data).items)
  except DecodeError as error:
    raise ProtocolError("a message that is not an envelope") from error
