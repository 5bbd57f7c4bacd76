"""What of a model's files nobody has vouched for: kept beside the maps of their blocks, so that a restart forgets nothing.

A neighbour's bytes, and the list of files that they were fetched by, may be anything. They are in doubt until the hash of
the whole file, the pinned hashes of its blocks or bytes of the hub agree with them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from exo.file_calls import write_whole
from exo.inference.weights.block_map import Span, merged, span_bytes
from exo.log import log

DOUBTS = ".exo/doubts.json"
SOMEBODY = "a neighbour"  # whose bytes they are was not written down before the node died
_MAX_BYTES = 64 * 2**20


class Doubts:
  """`list_from`: the node whose word the list of files is, "" where the hub or exo itself vouches for it."""
  def __init__(self, list_from: str = "") -> None:
    self.list_from = list_from
    self._spans: dict[str, dict[str, list[Span]]] = {}  # file: giver: bytes

  @classmethod
  def read(cls, folder: Path) -> Doubts:
    """Those of a model's folder; where they cannot be read everything is in doubt. Blocks."""
    path = folder / DOUBTS
    doubts = cls()
    try:
      if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{path.stat().st_size} bytes")
      value = json.loads(path.read_text("utf-8"))
      doubts.list_from = str(value["list"])
      for name, givers in value["files"].items():
        for giver, spans in givers.items():
          doubts._spans.setdefault(name, {})[giver] = merged((int(start), int(end)) for start, end in spans)
    except FileNotFoundError:
      return doubts
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
      log(1, "%s cannot be read, so nothing there counts as verified: %s", path, error)
      return cls(SOMEBODY)
    return doubts

  def save(self, folder: Path, coming: Mapping[str, Iterable[Span]] | None = None) -> None:
    """Write them, on disk when this returns; `coming` is about to be given by neighbours. Blocks; raises `OSError`."""
    path = folder / DOUBTS
    files = {name: {giver: merged(spans) for giver, spans in givers.items()} for name, givers in self._spans.items()}
    for name, spans in (coming or {}).items():
      files.setdefault(name, {})[SOMEBODY] = merged([*files.get(name, {}).get(SOMEBODY, ()), *spans])
    if not files and not self.list_from:
      path.unlink(missing_ok=True)
      return
    text = json.dumps({"list": self.list_from, "files": files}, separators=(",", ":"))
    write_whole(path, text.encode(), lasting=True)

  def __bool__(self) -> bool:
    return bool(self.list_from or self._spans)

  @property
  def givers(self) -> list[str]:
    """The nodes whose bytes are in doubt."""
    return sorted({giver for givers in self._spans.values() for giver in givers})

  @property
  def everybody(self) -> tuple[str, ...]:
    """Also the one that gave the list of files."""
    return tuple(sorted({*self.givers, self.list_from} - {""}))

  def of(self, name: str) -> dict[str, list[Span]]:
    """By giver, the bytes of a file that are in doubt."""
    return {giver: merged(spans) for giver, spans in self._spans.get(name, {}).items()}

  @property
  def files(self) -> list[str]:
    return list(self._spans)

  @property
  def n_bytes(self) -> int:
    return sum(
        span_bytes(merged(span for spans in givers.values() for span in spans)) for givers in self._spans.values()
    )

  def add(self, name: str, giver: str, start: int, end: int) -> None:
    spans = self._spans.setdefault(name, {}).setdefault(giver, [])
    if spans and spans[-1][1] == start:
      spans[-1] = (spans[-1][0], end)
    else:
      spans.append((start, end))

  def settle(self, name: str, giver: str | None = None) -> None:
    """What one giver, or everybody, gave of a file has been checked or thrown away."""
    givers = self._spans.get(name, {})
    for one in [giver] if giver is not None else list(givers):
      givers.pop(one, None)
    if not givers:
      self._spans.pop(name, None)
