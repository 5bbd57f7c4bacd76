"""A QR code in a terminal, for the phone that is to open an address."""

from __future__ import annotations

import io
from collections.abc import Sequence

import segno

_LIGHT_ON_DARK, _AS_BEFORE = "\x1b[97;40m", "\x1b[0m"


def qr_lines(text: str) -> list[str]:
  """Lines of half blocks, to be shown light on dark."""
  out = io.StringIO()
  segno.make(text, error="l", micro=False).terminal(out, border=2, compact=True)
  return out.getvalue().rstrip("\n").split("\n")


def in_colours(lines: Sequence[str]) -> list[str]:
  """Light on dark whatever the terminal's own colours are: cameras want it."""
  return [f"{_LIGHT_ON_DARK}{line}{_AS_BEFORE}" for line in lines]
