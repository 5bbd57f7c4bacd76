"""Messages to protobuf and back. Protobuf classes go no further than this package.

Decoding checks everything that a peer could get wrong and raises `ProtocolError`; nothing is pickled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from exo.bounds import (
    MAX_CONTEXT,
    MAX_FINGERPRINT,
    MAX_MODEL_ID,
    MAX_PARALLEL,
    MAX_PLAN_ID,
    MAX_PROMPT_TOKENS,
    MAX_REQUEST_ID,
    MAX_STAGES,
    is_node_id,
    is_worker_name,
    real,
)
from exo.errors import ProtocolError
from exo.inference.exactness import Exactness
from exo.inference.sampling import TokenLogprob
from exo.networking import messages as m
from exo.networking.grpc import model_codec, record_codec
from exo.networking.grpc import node_service_pb2 as pb
from exo.networking.grpc.failure_codec import failure_in, failure_out
from exo.networking.grpc.frame_codec import frame_in, frame_out, result_in, result_out
from exo.networking.grpc.model_codec import file_in, file_out
from exo.networking.grpc.peer_codec import heartbeat_in, heartbeat_out, shard_in, shard_out
from exo.networking.grpc.request_codec import request_in, request_out
from exo.networking.grpc.tensor_codec import WireDtype
from exo.networking.peer_messages import Heartbeat
from exo.topology.loaded_for import LoadedFor
from exo.topology.ring_plan import RingPlan, Stage
from exo.topology.weight_memory import StageBytes

_MAX_TOKENS = 4096  # of one step and sequence
_MOST_STAGE_BYTES = 2**50
_MOST_ROOM_S = 3600.0


def _plan_out(plan: RingPlan, addresses: dict[str, str]) -> pb.Plan:
  stages = [
      pb.Stage(
          node_id=s.node_id,
          worker=s.worker,
          shard=shard_out(s.shard),
          address=addresses.get(s.node_id, ""),
          loading_bytes=s.memory.loading,
          held_bytes=s.memory.held
      ) for s in plan.stages
  ]
  wanted = plan.loaded_for
  return pb.Plan(
      model_id=plan.model_id,
      epoch=plan.epoch,
      stages=stages,
      file=file_out(plan.file),
      context=wanted.context or 0,
      parallel=wanted.parallel or 0
  )


def _stage_in(s: pb.Stage) -> Stage:
  memory = StageBytes(min(s.loading_bytes, _MOST_STAGE_BYTES), min(s.held_bytes, _MOST_STAGE_BYTES))
  return Stage(s.node_id, shard_in(s.shard), s.worker, memory)


def _plan_in(plan: pb.Plan) -> RingPlan:
  if len(plan.stages) > MAX_STAGES or len(plan.model_id) > MAX_MODEL_ID or len(plan.epoch) > MAX_PLAN_ID:
    raise ProtocolError("a plan is malformed: it has too many stages, or endless names")
  if not all(is_node_id(s.node_id) and is_worker_name(s.worker) for s in plan.stages):
    raise ProtocolError("a plan is malformed: it names nodes or workers that cannot be")
  if plan.context > MAX_CONTEXT or plan.parallel > MAX_PARALLEL:
    raise ProtocolError(f"a plan is for {plan.parallel} requests of {plan.context} tokens at once")
  try:
    return RingPlan(
        plan.model_id, plan.epoch, tuple(map(_stage_in, plan.stages)), file_in(plan.file),
        LoadedFor(plan.context or None, plan.parallel or None)
    )
  except ValueError as error:
    raise ProtocolError(f"a plan is malformed: {error}") from error


def _open_out(message: m.OpenPlan) -> pb.OpenPlan:
  return pb.OpenPlan(
      plan=_plan_out(message.plan, dict(message.addresses)),
      beside=message.beside,
      stage=message.stage,
      room_s=message.room_s
  )


def _open_in(o: pb.OpenPlan) -> m.OpenPlan:
  plan = _plan_in(o.plan)
  if o.stage >= len(plan.stages):
    raise ProtocolError(f"stage {o.stage} of a plan with {len(plan.stages)} is to be opened")
  addresses = {s.node_id: s.address[:80] for s in o.plan.stages if s.address}
  return m.OpenPlan(plan, tuple(addresses.items()), o.beside, o.stage, real(o.room_s, _MOST_ROOM_S))


def _opened_in(o: pb.PlanOpened) -> m.PlanOpened:
  return m.PlanOpened(
      o.plan_id[:MAX_PLAN_ID], o.max_kv_tokens, o.max_sequences, o.max_context, o.max_drafting, o.lease_tokens,
      _exactness_in(o.exactness), o.indivisible
  )


def _exactness_in(e: pb.Exactness) -> Exactness:
  found = Exactness(e.decode_rows, e.prompt_multiple, e.joined, e.draft_rows, e.as_prompt)
  if not found.is_possible:
    raise ProtocolError(f"a stage cannot be exact with {found}")
  return found


def _exactness_out(e: Exactness) -> pb.Exactness:
  return pb.Exactness(
      decode_rows=e.decode_rows,
      prompt_multiple=e.prompt_multiple,
      joined=e.joined,
      draft_rows=e.draft_rows,
      as_prompt=e.as_prompt
  )


def _found_out(message: m.ExactnessFound) -> dict[str, Any]:
  found = pb.ExactnessFound(plan_id=message.plan_id, stage=message.stage, exactness=_exactness_out(message.exactness))
  return {"exactness_found": found}


def _progress_out(message: m.PromptProgress) -> dict[str, Any]:
  told = pb.PromptProgress(
      plan_id=message.plan_id,
      request_id=message.request_id,
      place=message.place,
      total=message.total,
      cached=message.cached,
      processed=message.processed
  )
  return {"prompt_progress": told}


def _progress_in(p: pb.PromptProgress) -> m.PromptProgress:
  if not p.cached <= p.processed <= p.total <= MAX_PROMPT_TOKENS:
    raise ProtocolError(f"{p.processed} of {p.total} tokens of a prompt are computed, {p.cached} were cached")
  return m.PromptProgress(
      p.plan_id[:MAX_PLAN_ID], p.request_id[:MAX_REQUEST_ID], p.place, p.total, p.cached, p.processed
  )


def _opened_out(message: m.PlanOpened) -> dict[str, Any]:
  return {
      "plan_opened": pb.PlanOpened(
          plan_id=message.plan_id,
          max_kv_tokens=message.max_kv_tokens,
          max_sequences=message.max_sequences,
          max_context=message.max_context,
          max_drafting=message.max_drafting,
          lease_tokens=message.lease_tokens,
          exactness=_exactness_out(message.exactness),
          indivisible=message.indivisible
      )
  }


def _close_out(message: m.ClosePlan) -> dict[str, Any]:
  body = pb.ClosePlan(plan_id=message.plan_id)
  if message.reason is not None:
    body.reason.CopyFrom(failure_out(message.reason))
  return {"close_plan": body}


def _close_in(c: pb.ClosePlan) -> m.ClosePlan:
  return m.ClosePlan(c.plan_id[:MAX_PLAN_ID], failure_in(c.reason) if c.HasField("reason") else None)


def _submit_out(message: m.Submit) -> dict[str, Any]:
  return {"submit": pb.Submit(open=_open_out(message.open), request=request_out(message.request))}


def _fill_logprobs(out: Any, entries: Iterable[TokenLogprob]) -> None:
  """`out` is a repeated field."""
  for entry in entries:
    added = out.add(token_id=entry.token_id, logprob=entry.logprob, mu=entry.mu)
    if entry.top:
      added.top_ids.extend([i for i, _ in entry.top])
      added.top_logprobs.extend([p for _, p in entry.top])


def _logprob_in(entry: pb.LogprobEntry) -> TokenLogprob:
  return TokenLogprob(
      entry.token_id, entry.logprob, tuple(zip(entry.top_ids, entry.top_logprobs, strict=False)), entry.mu
  )


def _fill_delivery(out: pb.TokenDelivery, d: m.TokenDelivery) -> None:
  out.plan_id, out.request_id, out.choice, out.index = d.plan_id, d.request_id, d.choice, d.index
  out.width, out.cached_tokens, out.finish_reason = d.width, d.cached_tokens, d.finish_reason
  _fill_logprobs(out.tokens, d.tokens)
  if d.prompt_logprobs:
    _fill_logprobs(out.prompt_logprobs, d.prompt_logprobs)
  if d.embedding is not None:
    out.embedding = d.embedding.tobytes()


def _delivery_in(d: pb.TokenDelivery) -> m.TokenDelivery:
  if len(d.tokens) > _MAX_TOKENS:
    raise ProtocolError(f"a delivery of {len(d.tokens)} tokens")
  if len(d.embedding) % 4:
    raise ProtocolError(f"an embedding came with {len(d.embedding)} bytes")
  return m.TokenDelivery(
      d.plan_id[:MAX_PLAN_ID], d.request_id[:MAX_REQUEST_ID], d.choice, d.index,
      tuple(_logprob_in(t) for t in d.tokens), d.finish_reason[:40], tuple(_logprob_in(t) for t in d.prompt_logprobs),
      max(1, d.width), d.cached_tokens,
      np.frombuffer(d.embedding, "<f4") if d.embedding else None
  )


_OUT: dict[type, Callable[[Any], dict[str, Any]]] = {
    Heartbeat: heartbeat_out,
    m.OpenPlan: lambda x: {"open_plan": _open_out(x)},
    m.PlanOpened: _opened_out,
    m.ExactnessFound: _found_out,
    m.PromptProgress: _progress_out,
    m.ClosePlan: _close_out,
    m.Submit: _submit_out,
    m.Cancel: lambda x: {"cancel": pb.Cancel(plan_id=x.plan_id, request_id=x.request_id)},
    m.Failure: lambda x: {"failure": failure_out(x)},
    m.Done: lambda _: {"done": pb.Done()},
    m.GiveWay: lambda x: {"give_way": pb.GiveWay(plan_id=x.plan_id, wanted_by=x.wanted_by)},
    m.ShrinkLease: lambda x:
    {"shrink_lease": pb.ShrinkLease(plan_id=x.plan_id, tokens=x.tokens, wanted_by=x.wanted_by)},
    m.GrowLease: lambda x:
    {"grow_lease": pb.GrowLease(plan_id=x.plan_id, stage=x.stage, tokens=x.tokens, spare=x.spare)},
    m.Lease: lambda x: {"lease": pb.Lease(plan_id=x.plan_id, tokens=x.tokens, step=x.step, most=x.most)},
    m.Absolve: lambda x: {"absolve": pb.Absolve(model_id=x.model_id, fingerprint=x.fingerprint)},
    m.RequestFailed: lambda x:
    {"request_failed": pb.RequestFailed(plan_id=x.plan_id, request_id=x.request_id, failure=failure_out(x.failure))},
    m.StepFailed: lambda x:
    {"step_failed": pb.StepFailed(plan_id=x.plan_id, step=x.step, failure=failure_out(x.failure))},
    **model_codec.OUT,
    **record_codec.OUT,
}
_IN: dict[str, Callable[[Any], m.Message]] = {
    "heartbeat": heartbeat_in,
    "open_plan": _open_in,
    "plan_opened": _opened_in,
    "exactness_found": lambda x: m.ExactnessFound(x.plan_id[:MAX_PLAN_ID], x.stage, _exactness_in(x.exactness)),
    "prompt_progress": _progress_in,
    "close_plan": _close_in,
    "submit": lambda x: m.Submit(_open_in(x.open), request_in(x.request)),
    "cancel": lambda x: m.Cancel(x.plan_id[:MAX_PLAN_ID], x.request_id[:MAX_REQUEST_ID]),
    "failure": failure_in,
    "done": lambda _: m.Done(),
    "give_way": lambda x: m.GiveWay(x.plan_id[:MAX_PLAN_ID], x.wanted_by[:MAX_PLAN_ID]),
    "shrink_lease": lambda x: m.ShrinkLease(x.plan_id[:MAX_PLAN_ID], x.tokens, x.wanted_by[:MAX_PLAN_ID]),
    "grow_lease": lambda x: m.GrowLease(x.plan_id[:MAX_PLAN_ID], x.stage, x.tokens, x.spare),
    "lease": lambda x: m.Lease(x.plan_id[:MAX_PLAN_ID], x.tokens, x.step, x.most),
    "absolve": lambda x: m.Absolve(x.model_id[:MAX_MODEL_ID], x.fingerprint[:MAX_FINGERPRINT]),
    "request_failed": lambda x: m.
    RequestFailed(x.plan_id[:MAX_PLAN_ID], x.request_id[:MAX_REQUEST_ID], failure_in(x.failure)),
    "frame": frame_in,
    "step_result": result_in,
    "step_failed": lambda x: m.StepFailed(x.plan_id[:MAX_PLAN_ID], x.step, failure_in(x.failure)),
    "token_delivery": _delivery_in,
    **model_codec.IN,
    **record_codec.IN,
}


def encode(message: m.Message, call_id: int = 0, is_reply: bool = False, wire: WireDtype = "native") -> pb.Item:
  """`call_id` 0 for what is no call and no reply. Tokens are written in place: a message that is put into another one is
  copied, by way of its bytes."""
  if isinstance(message, m.Frame):
    item = pb.Item(frame=frame_out(message, wire))
  elif isinstance(message, m.StepResult):
    item = pb.Item(step_result=result_out(message))
  elif isinstance(message, m.TokenDelivery):
    item = pb.Item()
    _fill_delivery(item.token_delivery, message)
  else:
    item = pb.Item(**_OUT[type(message)](message))
  if call_id:
    item.call_id, item.is_reply = call_id, is_reply
  return item


def decode(item: pb.Item) -> tuple[m.Message, int, bool]:
  """(message, call id, whether it is a reply). Raises `ProtocolError`."""
  kind = item.WhichOneof("body")
  read = _IN.get(kind or "")
  if kind is None or read is None:
    raise ProtocolError(f"an item of kind {kind!r} has no place in the middle of a stream")
  return read(getattr(item, kind)), item.call_id, item.is_reply
