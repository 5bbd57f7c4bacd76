"""The process in which strangers' PDFs are read: bounded in memory and time, and ended after each. Runs as `main`."""

from __future__ import annotations

import contextlib
import io
import logging
import time
from typing import Any

from exo.child_process import give_way, serve
from exo.errors import InvalidRequestError
from exo.inference.whole_characters import whole_characters

_MEMORY = 2**30


def pdf_text(data: bytes, most_chars: int, most_s: float) -> dict[str, Any]:
  """`text` of the first `read` of its `pages`; fewer where it grows too long or takes too long. Raises `InvalidRequestError`."""
  from pypdf import PdfReader

  deadline = time.monotonic() + most_s
  logging.disable(logging.CRITICAL)  # pypdf remarks on every oddity
  texts: list[str] = []
  n_chars, pages, why = 0, 0, ""
  try:
    reader = PdfReader(io.BytesIO(data))
    if reader.is_encrypted and not reader.decrypt(""):
      raise InvalidRequestError("it is protected by a password: attach a copy that is not", "data")
    pages = len(reader.pages)
    for page in reader.pages:
      if n_chars > most_chars or time.monotonic() > deadline:
        why = "length" if n_chars > most_chars else "time"
        break
      texts.append(page.extract_text().strip())
      n_chars += len(texts[-1]) + 2
  except InvalidRequestError:
    raise
  except MemoryError:
    texts = texts or [""]
    why = "memory"
  except Exception as error:  # the library raises anything over a broken file
    if not n_chars:
      raise InvalidRequestError("it is damaged, or no PDF: it cannot be read", "data") from error
    why = "damage"
  text = "\n\n".join(filter(None, texts))
  if len(text) > most_chars:
    text, why = text[:most_chars], "length"
  return {"text": whole_characters(text), "pages": pages, "read": len(texts), "why": why}


def bound() -> None:
  """Hold this process to its memory, where the system can; where not, time alone bounds it."""
  with contextlib.suppress(ImportError, OSError, ValueError):
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


def main() -> None:
  bound()
  give_way()
  serve({"pdf_text": pdf_text}, 1)
