"""The messages about kept records, to protobuf and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from exo.bounds import MAX_RECORD_ID, MAX_RECORD_WORD
from exo.errors import ProtocolError
from exo.networking import messages as m
from exo.networking.grpc import node_service_pb2 as pb
from exo.networking.record_messages import (
    MAX_SENT_BYTES,
    ChangeRecord,
    FindRecord,
    Outcome,
    RecordChanged,
    RecordFound,
)

_OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


def _bounded(record_id: str, proof: str, sealed: bytes) -> None:
  if len(record_id) > MAX_RECORD_ID or len(proof) > MAX_RECORD_WORD:
    raise ProtocolError("a record has an endless name")
  if len(sealed) > MAX_SENT_BYTES:
    raise ProtocolError(f"a record of {len(sealed)} bytes")


def _find_in(x: pb.FindRecord) -> FindRecord:
  _bounded(x.record_id, x.proof, b"")
  return FindRecord(x.record_id, x.proof)


def _found_in(x: pb.RecordFound) -> RecordFound:
  _bounded("", "", x.sealed)
  return RecordFound(x.sealed)


def _change_in(x: pb.ChangeRecord) -> ChangeRecord:
  _bounded(x.record_id, x.proof, x.sealed)
  return ChangeRecord(x.record_id, x.proof, x.sealed)


def _changed_in(x: pb.RecordChanged) -> RecordChanged:
  outcome = next((known for known in _OUTCOMES if known == x.outcome), None)
  if outcome is None:
    raise ProtocolError("a record was changed in a way that is unknown")
  return RecordChanged(outcome)


OUT: dict[type, Callable[[Any], dict[str, Any]]] = {
    FindRecord: lambda x: {"find_record": pb.FindRecord(record_id=x.record_id, proof=x.proof)},
    RecordFound: lambda x: {"record_found": pb.RecordFound(sealed=x.sealed)},
    ChangeRecord: lambda x: {"change_record": pb.ChangeRecord(record_id=x.record_id, proof=x.proof, sealed=x.sealed)},
    RecordChanged: lambda x: {"record_changed": pb.RecordChanged(outcome=x.outcome)},
}
IN: dict[str, Callable[[Any], m.Message]] = {
    "find_record": _find_in,
    "record_found": _found_in,
    "change_record": _change_in,
    "record_changed": _changed_in,
}
