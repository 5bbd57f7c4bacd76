"""A reader of documents that takes as much memory as it is told, within the bounds of the real one."""

from __future__ import annotations

from exo.api import document_process
from exo.child_process import serve


def take(size: int) -> str:
  try:
    bytearray(size)
  except MemoryError:
    return "MemoryError"
  return "taken"


def main() -> None:
  document_process.bound()
  serve({"take": take}, 1)
