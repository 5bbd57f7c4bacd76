"""What llama.cpp takes for weights, caches and computing, as its log tells: no function of its C interface does."""

from __future__ import annotations

import re
from dataclasses import dataclass

_MIB = 1 << 20
# of models and contexts that take no memory only the tensors' sizes are told of keys and values, but of recurrent states the buffers
_SIZE = re.compile(
    rb"(?P<kind>model|RS|compute|output|state) buffer size = +(?P<mib>[\d.]+) MiB|: size = +(?P<kv>[\d.]+) MiB \([^)]*\), K \("
)
_FIELDS = {b"model": "weights", b"RS": "states", b"state": "states", b"compute": "compute", b"output": "output"}


@dataclass(frozen=True, slots=True)
class BufferSizes:
  """Bytes, as exact as two decimals of a MiB are. `output` is where logits are handed out, for one row of each sequence."""
  weights: int = 0
  cache: int = 0
  states: int = 0
  compute: int = 0
  output: int = 0


class ToldSizes:
  """Adds up what the log says until it is taken."""
  def __init__(self) -> None:
    self._found: dict[str, int] = {}

  def note(self, text: bytes) -> None:
    match = _SIZE.search(text)
    if match is None:
      return
    field = "cache" if match["kv"] else _FIELDS[match["kind"]]
    self._found[field] = self._found.get(field, 0) + round(float(match["kv"] or match["mib"]) * _MIB)

  def take(self) -> BufferSizes:
    found, self._found = BufferSizes(**self._found), {}
    return found
