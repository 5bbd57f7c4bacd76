"""The datagram by which a node makes itself known."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from exo.bounds import is_node_id
from exo.errors import ProtocolError
from exo.networking.peer_messages import Hello

MAX_BYTES = 1400
MAX_BODY_BYTES = MAX_BYTES - 64  # a cluster key adds its seal


class _Flops(msgspec.Struct, frozen=True):
  fp32: float = 0.0
  fp16: float = 0.0
  int8: float = 0.0


class _Capabilities(msgspec.Struct, frozen=True):
  model: str = ""
  chip: str = ""
  memory: int = 0
  flops: _Flops = _Flops()


class Beacon(msgspec.Struct, frozen=True, kw_only=True):
  """`reply` asks the receiver to answer at once; the interface is the sender's own."""
  type: str
  node_id: str
  grpc_port: int
  incarnation: int = 0
  priority: int = 0
  interface_name: str = ""
  interface_type: str = ""
  reply: bool = False
  device_capabilities: _Capabilities = _Capabilities()


_DECODER = msgspec.json.Decoder(Beacon)


def encode_beacon(hello: Hello, *, interface_name: str, interface_type: str, priority: int, reply: bool) -> bytes:
  capabilities = hello.capabilities
  body: dict[str, Any] = {
      "type": "discovery",
      "node_id": hello.node_id,
      "grpc_port": hello.port,
      "incarnation": hello.incarnation,
      "device_capabilities": {
          "model": capabilities.model[:100],
          "chip": capabilities.chip[:100],
          "memory": capabilities.memory,
          "flops": {"fp32": capabilities.flops.fp32, "fp16": capabilities.flops.fp16, "int8": capabilities.flops.int8},
      },
      "priority": priority,
      "interface_name": interface_name,
      "interface_type": interface_type,
      "reply": reply,
  }
  data = json.dumps(body, separators=(",", ":")).encode()
  if len(data) > MAX_BODY_BYTES:  # names in other scripts take six bytes a character
    body["device_capabilities"] |= {"model": "", "chip": ""}
    data = json.dumps(body, separators=(",", ":")).encode()
  return data


def decode_beacon(data: bytes) -> Beacon:
  """Raises `ProtocolError` for anything that is not a beacon."""
  if len(data) > MAX_BYTES:
    raise ProtocolError(f"a datagram of {len(data)} bytes")
  try:
    beacon = _DECODER.decode(data)
  except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
    raise ProtocolError(f"a datagram that is no beacon: {error}") from error
  if beacon.type != "discovery" or not is_node_id(beacon.node_id) or not 1024 <= beacon.grpc_port <= 65535:
    raise ProtocolError("a beacon with an impossible type, id or port")
  return beacon
