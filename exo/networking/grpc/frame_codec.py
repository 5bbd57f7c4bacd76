"""What goes round the ring at every step, to bytes and back: each in one call of msgspec, with every field checked.

Field by field, with caches that the engine has just filled with weights, a frame and its result took 0.16 ms of a lap, so
0.12 ms.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np
from google.protobuf.message import DecodeError

from exo.bounds import MAX_STAGES
from exo.errors import ProtocolError
from exo.inference.engine import BatchEntry, Count
from exo.networking import messages as m
from exo.networking.grpc import node_service_pb2 as pb
from exo.networking.grpc.failure_codec import failure_in, failure_out
from exo.networking.grpc.request_codec import request_in, request_out
from exo.networking.grpc.tensor_codec import WireDtype, WireTensor, bytes_of, decode_tensor, encode_tensor
from exo.networking.grpc.wire import check_crowd

_ID = np.dtype("<i4")
_MAX_CHANGES_BYTES, _CROWDED_BYTES, _MOST_CHANGES = 16 * 2**20, 2**16, 2**16


class FrameBody(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
  """`messages.Frame` on the wire. `changes` is a `pb.CacheChanges`, empty for most frames."""
  plan_id: str
  epoch: str
  stage: Annotated[int, msgspec.Meta(ge=0, lt=MAX_STAGES)]
  step: Count
  run: Annotated[int, msgspec.Meta(ge=1, le=1024)]
  entries: Annotated[tuple[BatchEntry, ...], m.MOST_OF_A_STEP]
  token_ids: memoryview
  stage_ms: m.StageMs
  hidden: WireTensor | None = None
  changes: bytes = b""


_ENCODER = msgspec.msgpack.Encoder()
_FRAME = msgspec.msgpack.Decoder(FrameBody)
_RESULT = msgspec.msgpack.Decoder(m.StepResult)
_UNREADABLE = (msgspec.DecodeError, ValueError, RecursionError)  # a string that is no UTF-8 is a ValueError


def frame_out(f: m.Frame, wire: WireDtype) -> bytes:
  hidden = None if f.hidden is None else encode_tensor(f.hidden, wire)
  changed = f.opens or f.drops or f.ends or f.truncates or f.copies or f.refused or f.failed
  changes = _changes_out(f) if changed else b""
  return _ENCODER.encode(
      FrameBody(
          f.plan_id, f.epoch, f.stage, f.step, f.run, f.entries, bytes_of(f.token_ids), f.stage_ms, hidden, changes
      )
  )


def frame_in(data: bytes) -> m.Frame:
  """Raises `ProtocolError`."""
  try:
    f = _FRAME.decode(data)
  except _UNREADABLE as error:
    raise ProtocolError(f"a frame is malformed: {error}") from error
  tokens = 0
  for entry in f.entries:
    tokens += entry.n_tokens
  if len(f.token_ids) != 4 * tokens:
    raise ProtocolError(f"a frame of {tokens} tokens came with {len(f.token_ids)} bytes of token ids")
  hidden = None if f.hidden is None else decode_tensor(f.hidden)
  if hidden is not None and (hidden.ndim != 2 or hidden.shape[0] != tokens):
    raise ProtocolError(f"a frame of {tokens} tokens came with hidden states of shape {hidden.shape}")
  ids = np.frombuffer(f.token_ids, _ID)
  if not f.changes:
    return m.Frame(f.plan_id, f.epoch, f.step, f.entries, ids, hidden, stage_ms=f.stage_ms, run=f.run, stage=f.stage)
  c = _changes_in(f.changes)
  return m.Frame(
      f.plan_id,
      f.epoch,
      f.step,
      f.entries,
      ids,
      hidden,
      tuple(m.SequenceOpen(o.sequence, request_in(o.request), o.prompt_tokens, o.source, o.reused) for o in c.opens),
      tuple(c.drops),
      f.stage_ms,
      f.run,
      tuple(c.ends),
      tuple(zip(c.truncates[::2], c.truncates[1::2], strict=True)),
      tuple(c.refused),
      tuple(m.SequenceFailure(x.sequence, failure_in(x.failure)) for x in c.failed),
      f.stage,
      tuple(zip(c.copies[::3], c.copies[1::3], c.copies[2::3], strict=True)),
  )


def _changes_out(f: m.Frame) -> bytes:
  out = pb.CacheChanges(
      drops=f.drops,
      ends=f.ends,
      truncates=[number for pair in f.truncates for number in pair],
      copies=[number for copy in f.copies for number in copy],
      refused=f.refused,
      failed=[pb.SequenceFailure(sequence=x.sequence, failure=failure_out(x.failure)) for x in f.failed],
      opens=[
          pb.SequenceOpen(
              sequence=opened.sequence,
              prompt_tokens=opened.prompt_tokens,
              source=opened.source,
              reused=opened.reused,
              request=request_out(opened.request)
          ) for opened in f.opens
      ]
  )
  return out.SerializeToString()


def _changes_in(data: bytes) -> pb.CacheChanges:
  if len(data) > _MAX_CHANGES_BYTES:
    raise ProtocolError(f"a frame's changes to caches have {len(data)} bytes")
  if len(data) > _CROWDED_BYTES:
    check_crowd(memoryview(data), pb.CacheChanges.DESCRIPTOR, _MOST_CHANGES)
  try:
    changes = pb.CacheChanges.FromString(data)
  except DecodeError as error:
    raise ProtocolError("a frame's changes to caches are malformed") from error
  if max(len(changes.drops), len(changes.ends), len(changes.truncates), len(changes.refused)) > 2 * _MOST_CHANGES:
    raise ProtocolError("a frame changes more caches than there can be")
  if len(changes.truncates) % 2:
    raise ProtocolError("a frame's truncations are not pairs")
  if len(changes.copies) % 3 or len(changes.copies) > 3 * _MOST_CHANGES:
    raise ProtocolError("a frame's copies are not three numbers each")
  return changes


def result_out(result: m.StepResult) -> bytes:
  return _ENCODER.encode(result)


def result_in(data: bytes) -> m.StepResult:
  """Raises `ProtocolError`."""
  try:
    return _RESULT.decode(data)
  except _UNREADABLE as error:
    raise ProtocolError(f"a step's result is malformed: {error}") from error
