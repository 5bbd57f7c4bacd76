"""A request's body: of a kind that is read here, unpacked, in time, and within bounds before anything is made of it."""

from __future__ import annotations

import asyncio
import zlib

from aiohttp import web

from exo.api.aside import LARGE, aside
from exo.api.errors import Refused
from exo.api.json_depth import deeper_than, too_many_values

MAX_JSON_DEPTH = 64
MAX_JSON_VALUES = 100_000  # texts, lists and objects: what takes the interpreter a microsecond each
MAX_JSON_ITEMS = 2_000_000  # token ids, for the most part
BODY_TIMEOUT_S = 20.0
MIN_BODY_RATE = 64 * 1024  # bytes a second, beyond the first 20 s
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS

_UNPACKED = web.RequestKey("unpacked", bytes)


def body_length(request: web.Request, *, asks: bool) -> int:
  """How long the body is at most. Raises `Refused` for a kind that is not read.

  `asks`: the route changes nothing for others, and takes what curl sends of itself, but not from a page: a browser always
  says where its request comes from.
  """
  kind = request.content_type
  untold = asks and ("Content-Type" not in request.headers or kind == "application/x-www-form-urlencoded")
  of_a_page = "Origin" in request.headers or request.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin"
  is_json = kind == "application/json" or kind.endswith("+json")
  if request.method != "DELETE" and not is_json and (of_a_page or not untold):
    raise Refused(
        415, "the body must be JSON: send it with the header Content-Type: application/json", "unsupported_media_type"
    )
  if _packing(request) not in ("identity", "gzip", "x-gzip", "deflate"):
    raise Refused(
        415, "the body's Content-Encoding is not read: send it as it is, or with gzip or deflate", "content_encoding"
    )
  packed = _packing(request) != "identity"
  length = request.client_max_size if packed or request.content_length is None else request.content_length
  if length > request.client_max_size:
    raise web.HTTPRequestEntityTooLarge(request.client_max_size, length)
  return length


async def check_body(request: web.Request, length: int) -> int:
  """Read and unpack it; returns its length. Raises `Refused`."""
  try:
    async with asyncio.timeout(BODY_TIMEOUT_S + length / MIN_BODY_RATE):
      data = await request.read()
  except TimeoutError:
    raise Refused(408, "the body came too slowly", "body_timeout", {"Connection": "close"}) from None
  if _packing(request) != "identity" and data:
    data = await aside(request.client_max_size, _unpacked, data, request.client_max_size)
    request[_UNPACKED] = data
  deep, many = await aside(len(data), _shape, data) if len(data) >= LARGE else _shape(data)
  if deep:
    raise Refused(400, f"the body nests deeper than {MAX_JSON_DEPTH} levels", "json_depth")
  if many is not None:
    raise Refused(400, f"the body has {many}", "json_values")
  return len(data)


async def body_of(request: web.Request) -> bytes:
  """What `check_body` has read."""
  unpacked: bytes | None = request.get(_UNPACKED)
  return await request.read() if unpacked is None else unpacked


def _packing(request: web.Request) -> str:
  return request.headers.get("Content-Encoding", "").strip().lower() or "identity"


def _unpacked(data: bytes, most: int) -> bytes:
  unpack = zlib.decompressobj(_GZIP_OR_ZLIB)
  try:
    out = unpack.decompress(data, most + 1)
  except zlib.error:
    raise Refused(400, "the body is not packed as its Content-Encoding says", "content_encoding") from None
  if len(out) > most:
    raise web.HTTPRequestEntityTooLarge(most, len(out))
  if not unpack.eof:
    raise Refused(400, "the body is packed, but breaks off", "content_encoding")
  return out


def _shape(data: bytes) -> tuple[bool, str | None]:
  return deeper_than(data, MAX_JSON_DEPTH), too_many_values(data, MAX_JSON_VALUES, MAX_JSON_ITEMS)
