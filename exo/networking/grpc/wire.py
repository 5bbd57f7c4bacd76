"""Envelopes as bytes: many small items in one message, one large item in several, and how much there may be of each.

Whatever must be small is found to be too large before it is parsed, since protobuf makes a hundred bytes of two where a
message holds many empty ones.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError

from exo.errors import ProtocolError
from exo.networking.grpc import node_service_pb2 as pb

MAX_ITEMS = 64  # in one envelope
PIECE_BYTES = 2 * 2**20  # of what is cut
MAX_MESSAGE_BYTES = PIECE_BYTES + 2**10  # what gRPC lets in
# of one envelope by the kind of its stream: a frame of a long prompt, a request with its prompt, a block of a file; "" is
# for the greeting, in which each of many workers tells of its engines
MAX_BYTES = {"": 2**18, "data": 64 * 2**20, "control": 8 * 2**20, "heartbeat": 2**18, "bulk": 16 * 2**20}
_ITEMS_TAG, _PIECE_TAG, _LAST_PIECE_TAG = b"\x0a", b"\x12", b"\x1a"  # fields 1, 2 and 3, with a length
# an item that is larger is looked through for how many things it holds; deliveries bring logprobs of long prompts
_CROWDED_BYTES, _MOST_THINGS, _MOST_LOGPROBS = 2**20, 2**17, 2**20
_FRAME_TAG, _DELIVERY_TAG = b"\x22", b"\x32"
_LEAST_BYTES = 4  # of each thing in a delivery: an entry has three fields and 13 bytes


def envelope_bytes(items: list[pb.Item]) -> bytes:
  """Envelopes laid end to end are one envelope (repeated fields of a protobuf message add up), and need no copy."""
  parts = []
  for item in items:
    data = item.SerializeToString()
    parts += [_ITEMS_TAG, _varint(len(data)), data]
  return b"".join(parts)


def pieces(data: bytes) -> list[bytes]:
  """An envelope as the messages in which it is sent: itself, or envelopes with a part of it each."""
  if len(data) <= PIECE_BYTES:
    return [data]
  cut = [memoryview(data)[at:at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES)]
  tags = [_PIECE_TAG] * (len(cut) - 1) + [_LAST_PIECE_TAG]
  return [b"".join((tag, _varint(len(part)), part)) for tag, part in zip(tags, cut, strict=True)]


def piece_of(data: bytes) -> tuple[memoryview, bool] | None:
  """(part, whether it is the last one) of a message that holds a part of an envelope, None of any other."""
  if data[:1] not in (_PIECE_TAG, _LAST_PIECE_TAG):
    return None
  size, at = _read_varint(memoryview(data), 1)
  if at + size != len(data):
    raise ProtocolError("a part of a message is malformed")
  return memoryview(data)[at:], data[:1] == _LAST_PIECE_TAG


def envelope_items(data: bytes) -> list[pb.Item]:
  """Raises `ProtocolError` for bytes that are no envelope, or one with too much in it."""
  view, at = memoryview(data), 0
  items: list[pb.Item] = []
  while at < len(view):
    if data[at:at + 1] != _ITEMS_TAG:
      raise ProtocolError("a message that is not an envelope")
    size, start = _read_varint(view, at + 1)
    at = start + size
    if at > len(view) or len(items) == MAX_ITEMS:
      raise ProtocolError("a message that is not an envelope, or one with too many items")
    item = view[start:at]
    if size > _CROWDED_BYTES:
      logprobs = min(_MOST_LOGPROBS, size // _LEAST_BYTES)
      check_crowd(item, pb.Item.DESCRIPTOR, logprobs if item[:1] == _DELIVERY_TAG else _MOST_THINGS)
    try:
      items.append(pb.Item.FromString(item))  # type: ignore[arg-type]
    except DecodeError as error:
      raise ProtocolError("a message that is not an envelope") from error
  return items


def is_slow(data: bytes) -> bool:
  """Whether to read an envelope takes long: it is large, and no frame, whose numbers are one string of bytes."""
  if len(data) <= _CROWDED_BYTES:
    return False
  _, at = _read_varint(memoryview(data), 1)
  return data[at:at + 1] != _FRAME_TAG


def check_crowd(message: memoryview, kind: Any, most: int) -> int:
  """How many fields a message of a `kind` (its descriptor) has, with those of the messages in it.

  Raises `ProtocolError` for more than `most`.
  """
  at, fields, end = 0, 0, len(message)
  while at < end:
    tag, at = _read_varint(message, at)
    form = tag & 7
    if form == 0:
      _, at = _read_varint(message, at)
    elif form == 2:
      size, at = _read_varint(message, at)
      field = kind.fields_by_number.get(tag >> 3)
      if size and field is not None and field.message_type is not None:
        fields += check_crowd(message[at:at + size], field.message_type, most - fields)
      at += size
    elif form in (1, 5):
      at += 8 if form == 1 else 4
    else:
      raise ProtocolError("a message that is not an envelope")
    fields += 1
    if fields > most:
      raise ProtocolError("a message holds more things than any node has to say at once")
  return fields


def _varint(number: int) -> bytes:
  out = bytearray()
  while number > 127:
    out.append(number & 127 | 128)
    number >>= 7
  out.append(number)
  return bytes(out)


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
  """(number, where the next thing begins)."""
  number = shift = 0
  try:
    while True:
      byte = data[at]
      at += 1
      number |= (byte & 127) << shift
      if byte < 128:
        return number, at
      shift += 7
      if shift > 63:
        break
  except IndexError:
    pass
  raise ProtocolError("a message that is not an envelope")
