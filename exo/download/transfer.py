"""Brings spans of a model's files into its folder: from this disk, then from neighbours, then from the hub.

One transfer at a time works on a model's folder (`model_store.py` holds the lock).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from exo.download.hub import HubUnreachableError, cached_blob
from exo.download.hub_fetch import HubFetcher, RangesIgnored
from exo.download.manifest import Manifest, RepoFile, inside
from exo.download.neighbours import READ_BYTES, Held, Neighbours
from exo.download.progress import ProgressMeter
from exo.download.sparse_file import SparseFile, disk_error
from exo.errors import DownloadError, ExoError, ModelFilesError
from exo.inference.weights.block_map import Span, merged, span_bytes
from exo.log import log
from exo.models import HubSource
from exo.system_figures import free_disk

_SEGMENT_BYTES = 1 << 25  # of one request to the hub
_PEER_WINDOW = 4  # reads under way from one neighbour
_SPARE_BYTES = 64 * 2**20
_COPY_BYTES = 1 << 24

Wants = Mapping[str, Iterable[Span]]  # file: bytes


@dataclass(frozen=True, slots=True)
class _Piece:
  """Missing bytes of a file, in whole blocks."""
  target: SparseFile
  start: int
  end: int

  @property
  def file(self) -> RepoFile:
    return self.target.file


class Transfer:
  """Everything about fetching one model's bytes into `folder`. Use as an async context manager: it closes the files."""
  def __init__(
      self,
      manifest: Manifest,
      folder: Path,
      source: HubSource | None,
      hub: HubFetcher,
      neighbours: Neighbours,
      meter: ProgressMeter,
      *,
      quick: bool = False
  ) -> None:
    self.manifest, self._folder, self._source = manifest, folder, source
    self._hub, self._neighbours, self.meter, self._quick = hub, neighbours, meter, quick
    self._open: dict[str, SparseFile] = {}
    self._held: dict[str, Mapping[str, Sequence[Span]]] | None = None

  async def __aenter__(self) -> Transfer:
    return self

  async def __aexit__(self, *_: object) -> None:
    files, self._open = list(self._open.values()), {}
    await asyncio.to_thread(_close_all, files)

  async def file(self, name: str) -> SparseFile:
    """A file of the model, opened for writing. Raises `ModelFilesError`, `DownloadError`."""
    if name not in self._open:
      entry = self.manifest.file(name)
      if entry is None:
        raise ModelFilesError(f"{self.manifest.model_id} has no file {name}")
      path = inside(self._folder, name)
      self._open[name] = await asyncio.to_thread(
          SparseFile, path, entry, self.manifest.identity(entry), quick=self._quick
      )
    return self._open[name]

  async def whole(self, names: Iterable[str]) -> None:
    await self.bring({name: [(0, (await self.file(name)).file.size)] for name in names})

  async def bring(self, wants: Wants) -> None:
    """Fetch what is missing of these spans, and verify files that are whole then.

    Raises `DownloadError` with what to do; what came stays and is not fetched again.
    """
    targets = {name: await self.file(name) for name in wants}
    await self._bring(targets, wants)
    damaged = [target for target in targets.values() if not await self._verified(target)]
    if damaged:  # once more and from the hub alone: a neighbour may hold bad bytes, or a connection may have garbled them
      for target in damaged:
        log(0, "%s is not what its repository says: fetching it again", target.file.name)
        target.forget()
      again = {target.file.name: [(0, target.file.size)] for target in damaged}
      await self._bring({target.file.name: target for target in damaged}, again, hub_only=True)
      for target in damaged:
        if not await self._verified(target):
          target.forget()
          raise DownloadError(
              f"{target.file.name} of {self.manifest.model_id} does not have the hash that its repository tells: the "
              "source is damaged. Nothing of it is used; try another HF_ENDPOINT, or later"
          )

  async def _verified(self, target: SparseFile) -> bool:
    return not target.is_whole or await asyncio.to_thread(target.verify)

  async def _bring(self, targets: Mapping[str, SparseFile], wants: Wants, *, hub_only: bool = False) -> None:
    try:
      if not hub_only:
        await self._copy_cached(self._missing(targets, wants))
      pieces = self._missing(targets, wants)
      if not pieces:
        return
      await self._check_space(sum(p.end - p.start for p in pieces))
      if not hub_only:
        await self._from_neighbours(pieces)
        pieces = self._missing(targets, wants)
      if pieces:
        await self._from_hub(pieces)
    finally:
      for target in targets.values():
        await asyncio.to_thread(target.sync)

  def _missing(self, targets: Mapping[str, SparseFile], wants: Wants) -> list[_Piece]:
    return [
        _Piece(target, start, end) for name, target in targets.items()
        for start, end in target.missing(merged(wants[name]))
    ]

  async def _check_space(self, needed: int) -> None:
    free = await asyncio.to_thread(free_disk, self._folder)
    if free is not None and free < needed + min(_SPARE_BYTES, needed):
      raise DownloadError(
          f"{self.manifest.model_id} needs {needed / 1e6:,.0f} MB more in {self._folder}, where {free / 1e6:,.0f} MB are "
          "free: make room (`exo rm MODEL`), or point EXO_HOME elsewhere"
      )

  # from this disk

  async def _copy_cached(self, pieces: list[_Piece]) -> None:
    """What huggingface_hub's own cache holds already."""
    if self._source is None or not pieces:
      return
    for piece in pieces:
      blob = cached_blob(self._source, piece.file)
      if blob is not None:
        await asyncio.to_thread(copy_span, blob, piece.target, piece.start, piece.end)

  async def copy(self, name: str, source: Path) -> None:
    """What is missing of a file, from an equal one of this machine."""
    target = await self.file(name)
    for start, end in target.missing([(0, target.file.size)]):
      await asyncio.to_thread(copy_span, source, target, start, end)
    await asyncio.to_thread(target.sync)
    if not await self._verified(target):
      target.forget()
      raise DownloadError(f"{name} does not have the hash that exo knows: the source is damaged")

  # from neighbours

  async def _from_neighbours(self, pieces: list[_Piece]) -> None:
    """From all nodes that hold something of it at once; what they fail to give is left to the hub."""
    if self._held is None:  # asked once: what comes to a neighbour while we fetch is left out
      self._held = dict(await self._neighbours.held(self.manifest, self.manifest.files))
    held = self._held
    reads: dict[frozenset[str], deque[_Piece]] = {}  # by the nodes that hold them
    for part in (part for piece in pieces for part in _split(piece, held)):
      holders = frozenset(node_id for node_id, spans in held.items() if _covers(spans, part))
      reads.setdefault(holders, deque()).extend(_cut(part, max(READ_BYTES, part.target.map.block)))
    reads.pop(frozenset(), None)
    failed: set[str] = set()
    while nodes := {node_id for holders, queue in reads.items() if queue for node_id in holders} - failed:
      self.meter.status("fetching from neighbours")
      await run_all(self._read_from(node_id, reads, failed) for node_id in nodes for _ in range(_PEER_WINDOW))
    for node_id in failed:
      del held[node_id]

  async def _read_from(self, node_id: str, reads: Mapping[frozenset[str], deque[_Piece]], failed: set[str]) -> None:
    """Take reads that this node can serve until there are none; stop at its first failure."""
    queues = [queue for holders, queue in reads.items() if node_id in holders]
    while node_id not in failed and (queue := next((q for q in queues if q), None)) is not None:
      read = queue.popleft()
      try:
        got = await self._neighbours.read(node_id, self.manifest, read.file, read.start, read.end)
        if len(got.data) != read.end - read.start:
          raise ModelFilesError(f"{len(got.data)} bytes came where {read.end - read.start} were asked for")
        await asyncio.to_thread(read.target.write, read.start, got.data, got.digests)
      except DownloadError:  # of our own disk
        raise
      except (ExoError, ValueError) as error:
        log(1, "%s gives no %s: %s", node_id, read.file.name, error)
        queue.appendleft(read)
        failed.add(node_id)
        return
      self.meter.add(len(got.data), from_peer=True)

  # from the hub

  async def _from_hub(self, pieces: list[_Piece]) -> None:
    if self._source is None:
      raise HubUnreachableError(
          f"{self.manifest.model_id} lies on another node, and no node of the ring now holds all that is missing here"
      )
    self.meter.status("fetching from the hub")
    try:
      await run_all(self._fetch(segment) for piece in pieces for segment in _cut(piece, _SEGMENT_BYTES))
    except RangesIgnored:
      await self._fetch_whole_files(pieces)

  async def _fetch(self, piece: _Piece) -> None:
    target = piece.target

    async def sink(at: int, data: bytes) -> None:
      await asyncio.to_thread(target.write, at, data)
      self.meter.add(len(data), from_peer=False)

    await self._hub.fetch(self.manifest, piece.file, piece.start, piece.end, target.map.block, sink)

  async def _fetch_whole_files(self, pieces: list[_Piece]) -> None:
    """From a server that answers a range with the whole file: begin anew and take it all."""
    for target in {id(piece.target): piece.target for piece in pieces}.values():
      if not target.missing([(0, target.file.size)]):
        continue
      log(0, "the server ignores ranges: fetching %s whole", target.file.name)
      needed = span_bytes(target.missing([(0, target.file.size)]))
      await self._check_space(needed)

      async def sink(at: int, data: bytes, target: SparseFile = target) -> None:
        await asyncio.to_thread(target.write, at, data)
        self.meter.add(len(data), from_peer=False)

      await self._hub.fetch_whole(self.manifest, target.file, target.map.block, sink)


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


def _cut(piece: _Piece, size: int) -> list[_Piece]:
  """Consecutive pieces of at most `size` bytes, each of whole blocks."""
  block = piece.target.map.block
  step = max(size // block, 1) * block
  return [_Piece(piece.target, at, min(at + step, piece.end)) for at in range(piece.start, piece.end, step)]


def _split(piece: _Piece, held: Held) -> list[_Piece]:
  """The piece cut wherever what some node holds begins or ends."""
  points = {point for spans in held.values() for span in spans.get(piece.file.name, ()) for point in span}
  edges = [piece.start, *sorted(point for point in points if piece.start < point < piece.end), piece.end]
  return [_Piece(piece.target, start, end) for start, end in pairwise(edges)]


def _covers(held: Mapping[str, Sequence[Span]], read: _Piece) -> bool:
  return any(start <= read.start and read.end <= end for start, end in held.get(read.file.name, ()))


async def run_all(works: Iterable[Coroutine[Any, Any, None]]) -> None:
  """Run them at once; the first failure ends the others. Of several the most telling is raised: a refusal rather than
  a network that is away."""
  try:
    async with asyncio.TaskGroup() as group:
      for work in works:
        group.create_task(work)
  except BaseExceptionGroup as errors:
    raise min(_leaves(errors), key=lambda error: isinstance(error, HubUnreachableError)) from None


def _leaves(error: BaseException) -> list[BaseException]:
  if isinstance(error, BaseExceptionGroup):
    return [leaf for part in error.exceptions for leaf in _leaves(part)]
  return [error]


def _close_all(files: Iterable[SparseFile]) -> None:
  for file in files:
    file.close()
