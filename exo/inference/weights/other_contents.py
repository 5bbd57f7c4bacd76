"""What lies under the name of weights and is none: what a clone without its large files leaves, or a page that was saved instead of a file."""

from __future__ import annotations

_PAGE = "a web page, not weights: the address that it was fetched from asked for something first"
_MARKS = (
    (
        b"version https://git-lfs.github.com/spec/",
        "a pointer of git LFS, not the weights: fetch these with `git lfs pull`, or by exo"
    ),
    (b"<!doctype html", _PAGE),
    (b"<html", _PAGE),
    (b"<?xml", "an XML document, not weights: the store that it was fetched from gave an error"),
    (b"{\"error\"", "an error of the server that it was fetched from, not weights"),
)
_HEAD = 128


def other_contents(head: bytes | memoryview) -> str:
  """What it is, by its first bytes; "" for what may be weights."""
  begin = bytes(head[:_HEAD]).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
  return next((what for mark, what in _MARKS if begin.startswith(mark)), "")
