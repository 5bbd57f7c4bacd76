"""POST /v1/documents/text: the text of a PDF, for the page, which sends it on with a question."""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import Any

from aiohttp import web
from msgspec import Struct

from exo.api.aside import aside
from exo.api.errors import json_response
from exo.api.schema import read_body
from exo.child_process import ChildGoneError, ChildProcess
from exo.errors import InvalidRequestError, QueueFullError
from exo.orchestration.node import Node

MAX_CHARS = 200_000
_MOST_S, _ENDED_AFTER_S = 15.0, 25.0  # between pages it stops by itself; a page that does not end is ended
_MAX_AT_ONCE = 2
_RETRY_S = 5
_WHY = {
    "length": f"the first {MAX_CHARS:,} characters are kept", "time": f"the rest would take more than {_MOST_S:.0f} s",
    "memory": "the rest takes too much memory", "damage": "what comes then is damaged"
}


class DocumentRequest(Struct):
  """`data` is the PDF in base64."""
  data: str
  name: str = ""


class _Readers:
  """How many processes there are."""
  busy = 0


async def document_text(request: web.Request, node: Node) -> web.Response:
  """The text of a PDF; `note` says what of it is missing."""
  body = await read_body(request, DocumentRequest)
  data = await aside(len(body.data), _decoded, body.data)
  if _Readers.busy >= _MAX_AT_ONCE:
    raise QueueFullError(f"{_Readers.busy} documents are being read already", retry_after_s=_RETRY_S)
  _Readers.busy += 1
  try:
    found = await _read(data)
  finally:
    _Readers.busy -= 1
  if not found["text"] and found["why"] != "memory":
    raise InvalidRequestError(
        "there is no text in it: its pages are pictures, which a scanner's software can read", "data"
    )
  if not found["text"]:
    raise InvalidRequestError("to read it takes too much memory: attach a part of it, or its text", "data")
  return json_response({
      "object": "document.text", "name": body.name[:200], "text": found["text"], "note": _note(found)
  })


def _decoded(text: str) -> bytes:
  try:
    data = base64.b64decode(text, validate=True)
  except (binascii.Error, ValueError) as error:
    raise InvalidRequestError("data: this is no base64", "data") from error
  if not data.startswith(b"%PDF-"):
    raise InvalidRequestError("data: this is no PDF, which begins with %PDF-", "data")
  return data


async def _read(data: bytes) -> dict[str, Any]:
  """In a process for this document alone: whatever it does to its reader, nothing of that stays."""
  child = ChildProcess("exo.api.document_process", "a document")
  try:
    answer = asyncio.wrap_future(child.call("pdf_text", data, MAX_CHARS, _MOST_S))
    async with asyncio.timeout(_ENDED_AFTER_S):
      found: dict[str, Any] = await answer
    return found
  except TimeoutError as error:
    raise InvalidRequestError(
        f"a page of it could not be read within {_ENDED_AFTER_S:.0f} s: attach a part of it, or its text", "data"
    ) from error
  except ChildGoneError as error:
    raise InvalidRequestError("to read it takes too much: attach a part of it, or its text", "data") from error
  finally:
    child.kill()


def _note(found: dict[str, Any]) -> str:
  if not found["why"]:
    return ""
  return f"cut after {found['read']} of {found['pages']} pages: {_WHY[found['why']]}"
