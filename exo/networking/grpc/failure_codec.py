"""Errors on their way to whoever waits, to protobuf and back; their strings are bounded."""

from __future__ import annotations

from exo.networking import messages as m
from exo.networking.grpc import node_service_pb2 as pb


def failure_out(failure: m.Failure) -> pb.Failure:
  return pb.Failure(kind=failure.kind, message=failure.message, details_json=failure.details_json)


def failure_in(f: pb.Failure) -> m.Failure:
  return m.Failure(f.kind[:100], f.message[:4000], f.details_json[:10000])
