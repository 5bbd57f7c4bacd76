"""Issue 22, line 11: the text of PDFs, taken out by the node in a process of its own."""

from __future__ import annotations

import asyncio
import base64
import io
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from pypdf import PdfWriter

from exo.api import documents
from exo.child_process import ChildProcess
from exo.errors import InvalidRequestError, QueueFullError
from test.support.nodes import NodeProcess
from test.support.pdfs import pdf


def asked(nodes: list[NodeProcess], data: bytes) -> tuple[int, Any]:
  return nodes[0].post("/v1/documents/text", {"name": "a.pdf", "data": base64.b64encode(data).decode()})


def refused(nodes: list[NodeProcess], data: bytes) -> str:
  status, answer = asked(nodes, data)
  assert status == 400 and answer["error"]["param"] == "data"
  return str(answer["error"]["message"])


def test_22_line_11_a_pdf_becomes_its_text(dummy_ring: list[NodeProcess]) -> None:
  for packed in (False, True):
    status, answer = asked(dummy_ring, pdf(["The first page\nhas two lines (really)", "The second"], packed=packed))
    assert status == 200 and answer["name"] == "a.pdf" and answer["note"] == ""
    assert answer["text"].split() == ["The", "first", "page", "has", "two", "lines", "(really)", "The", "second"]


def test_22_line_11_what_was_too_long_is_said(dummy_ring: list[NodeProcess]) -> None:
  status, answer = asked(dummy_ring, pdf(["word " * 4_000] * 30))
  assert status == 200 and len(answer["text"]) == documents.MAX_CHARS
  assert answer["note"] == "cut after 10 of 30 pages: the first 200,000 characters are kept"


def test_22_line_11_what_cannot_be_read_says_why(dummy_ring: list[NodeProcess]) -> None:
  assert "pages are pictures" in refused(dummy_ring, pdf([""]))
  assert "no PDF" in refused(dummy_ring, b"text")
  assert "damaged" in refused(dummy_ring, b"%PDF-1.7\n" + b"\0" * 500)
  writer = PdfWriter(io.BytesIO(pdf(["secret"])))
  writer.encrypt("password", algorithm="RC4-128")
  locked = io.BytesIO()
  writer.write(locked)
  assert "password" in refused(dummy_ring, locked.getvalue())
  status, answer = dummy_ring[0].post("/v1/documents/text", {"data": "%%%"})
  assert status == 400 and "base64" in answer["error"]["message"]
  assert "/v1/documents/text" in dummy_ring[0].get("/openapi.json")[1]["paths"]


def test_22_line_11_cut_off_pdfs_never_fail_the_node(dummy_ring: list[NodeProcess]) -> None:
  whole = pdf(["some text"] * 3, packed=True)
  statuses = {asked(dummy_ring, whole[:len(whole) * part // 5])[0] for part in range(1, 5)}
  assert statuses <= {200, 400}


def test_22_line_11_a_bomb_is_bounded(dummy_ring: list[NodeProcess]) -> None:
  """A page that unpacks to gigabytes."""
  bomb = zlib.compress(b"(x) Tj " * 2_000_000, 9)
  for _ in range(2):  # once packed 1 to 500, twice far more
    data = pdf(["PLACE"]).replace(b"(PLACE) Tj", b"")
    head, _, tail = data.partition(b"stream\n")
    body = tail.partition(b"\nendstream")[2]
    filters = b"/Filter [/FlateDecode]"
    start = head.rindex(b"<<")
    made = head[:start] + b"<< /Length %d %s >>\nstream\n%s\nendstream%s" % (len(bomb), filters, bomb, body)
    status, _ = asked(dummy_ring, made)
    assert status in (200, 400)
    bomb = zlib.compress(b"\0" * 2**28, 9)
  assert dummy_ring[0].chat("hello", max_tokens=2)[0] == 200


@pytest.mark.skipif(sys.platform != "linux", reason="other systems bound no address space")
def test_22_line_11_its_process_has_bounded_memory() -> None:
  """What would take more ends as an error in words, of the process alone."""
  child = ChildProcess("test.support.greedy_document", "a document")
  try:
    assert child.ask(60, "take", 2**20) == "taken"
    assert child.ask(60, "take", 2**31) == "MemoryError"
  finally:
    child.kill()


def test_22_line_11_time_and_number_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(documents, "_ENDED_AFTER_S", 0.001)
  with pytest.raises(InvalidRequestError, match="could not be read within"):
    asyncio.run(documents._read(pdf(["x"])))
  monkeypatch.setattr(documents, "_ENDED_AFTER_S", 60)
  monkeypatch.setattr(documents, "_MOST_S", -1.0)
  found = asyncio.run(documents._read(pdf(["x"] * 3)))
  assert found["read"] == 0 and documents._note(found).startswith("cut after 0 of 3 pages")


def test_22_line_11_more_at_once_wait(dummy_ring: list[NodeProcess], monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(documents._Readers, "busy", 2)

  class Request:
    pass

  async def body(*_: Any) -> documents.DocumentRequest:
    return documents.DocumentRequest(base64.b64encode(pdf(["x"])).decode())

  monkeypatch.setattr(documents, "read_body", body)
  with pytest.raises(QueueFullError):
    asyncio.run(documents.document_text(Request(), None))  # type: ignore[arg-type]
  assert documents._Readers.busy == 2


if __name__ == "__main__":
  raise SystemExit(pytest.main([str(Path(__file__)), "-q"]))
