"""Missing bytes of a file, in whole blocks, and how they are divided among those who give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from exo.download.manifest import RepoFile
from exo.download.neighbours import Held
from exo.download.sparse_file import SparseFile, disk_error
from exo.inference.weights.block_map import Span

_COPY_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class Piece:
  """Missing bytes of a file, in whole blocks."""
  target: SparseFile
  start: int
  end: int

  @property
  def file(self) -> RepoFile:
    return self.target.file


def copy_span(source: Path, target: SparseFile, start: int, end: int) -> None:
  """Copy bytes of an equal file of this machine. Blocks; raises `DownloadError`."""
  try:
    with source.open("rb") as data:
      data.seek(start)
      at, step = start, max(_COPY_BYTES // target.map.block, 1) * target.map.block
      while at < end and (piece := data.read(min(step, end - at))):
        target.write(at, piece)
        at += len(piece)
  except OSError as error:
    raise disk_error(source, error) from error


def cut(piece: Piece, size: int) -> list[Piece]:
  """Consecutive pieces of at most `size` bytes, each of whole blocks."""
  block = piece.target.map.block
  step = max(size // block, 1) * block
  return [Piece(piece.target, at, min(at + step, piece.end)) for at in range(piece.start, piece.end, step)]


def split(piece: Piece, held: Held) -> list[Piece]:
  """The piece cut wherever what some node holds begins or ends; only at blocks, since honest nodes give no others."""
  block = piece.target.map.block
  points = {p for spans in held.values() for span in spans.get(piece.file.name, ()) for p in span if p % block == 0}
  edges = [piece.start, *sorted(point for point in points if piece.start < point < piece.end), piece.end]
  return [Piece(piece.target, start, end) for start, end in pairwise(edges)]


def covers(held: Mapping[str, Sequence[Span]], read: Piece) -> bool:
  return any(start <= read.start and read.end <= end for start, end in held.get(read.file.name, ()))
