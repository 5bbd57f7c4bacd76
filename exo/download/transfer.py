"""Brings spans of a model's files into its folder: from this disk, then from neighbours, then from the hub.

What neighbours gave is in doubt (`doubts.py`) until a hash that somebody vouches for, or the hub, agrees with it. One transfer at
a time works on a model's folder (`model_fetcher.py` holds the lock).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from exo.download.disk_threads import in_thread
from exo.download.doubts import Doubts
from exo.download.hub import HubUnreachableError, cached_blob
from exo.download.hub_fetch import HubFetcher, RangesIgnored
from exo.download.manifest import Manifest, inside
from exo.download.neighbours import READ_BYTES
from exo.download.pieces import Piece, copy_span, covers, cut, split
from exo.download.progress import ProgressMeter
from exo.download.sparse_file import FalseBytesError, SparseFile, disk_error, matches
from exo.download.spot_check import false_givers
from exo.download.wary import WaryNeighbours
from exo.errors import DownloadError, ExoError, ModelFilesError
from exo.inference.weights.block_map import Span, merged, span_bytes
from exo.log import log
from exo.models import HubSource
from exo.sizes import shown_bytes
from exo.system_figures import free_disk

_SEGMENT_BYTES = 1 << 25  # of one request to the hub
_PEER_WINDOW = 4  # reads under way from one neighbour
_SPARE_BYTES = 64 * 2**20
_CHECK_S = 20.0  # for comparing with the hub; what could not be compared by then is shown as unverified

Wants = Mapping[str, Iterable[Span]]  # file: bytes


class Transfer:
  """Everything about fetching one model's bytes into `folder`. Use as an async context manager: it closes the files."""
  def __init__(
      self,
      manifest: Manifest,
      folder: Path,
      source: HubSource | None,
      hub: HubFetcher,
      neighbours: WaryNeighbours,
      meter: ProgressMeter,
      doubts: Doubts,
      *,
      quick: bool = False
  ) -> None:
    """`source` None: there is no hub to ask for bytes of this very list of files."""
    self.manifest, self._folder, self._source = manifest, folder, source
    self._hub, self._neighbours, self.meter, self._quick = hub, neighbours, meter, quick
    self.doubts = doubts
    self._without: set[str] = set()  # neighbours that are not asked (any more)
    self.mended = False  # a file was whole, and false
    self._sound_blobs: dict[Path, bool] = {}
    self._open: dict[str, SparseFile] = {}
    self._held: dict[str, Mapping[str, Sequence[Span]]] | None = None
    self._coming: list[Wants] = []  # from neighbours, of which nothing may be on disk before it is written down
    self._saving = asyncio.Lock()

  async def __aenter__(self) -> Transfer:
    return self

  async def __aexit__(self, *_: object) -> None:
    files, self._open = list(self._open.values()), {}
    await in_thread(_close_all, files)

  async def file(self, name: str) -> SparseFile:
    """A file of the model, opened for writing. Raises `ModelFilesError`, `DownloadError`."""
    if name not in self._open:
      entry = self.manifest.file(name)
      if entry is None:
        raise ModelFilesError(f"{self.manifest.model_id} has no file {name}")
      path = inside(self._folder, name)
      self._open[name] = await in_thread(SparseFile, path, entry, self.manifest.identity(entry), quick=self._quick)
    return self._open[name]

  async def whole(self, names: Iterable[str]) -> None:
    await self.bring({name: [(0, (await self.file(name)).file.size)] for name in names})

  async def bring(self, wants: Wants) -> None:
    """Fetch what is missing of these spans, and verify files that are whole then.

    Raises `DownloadError` with what to do; what came stays and is not fetched again.
    """
    targets = {name: await self.file(name) for name in wants}
    await self._bring(targets, wants)
    for target in targets.values():
      if not await self._verified(target):
        await self._mend(target)

  async def _mend(self, target: SparseFile) -> None:
    """A file is whole and not what its list says: fetch each giver's bytes elsewhere until it is, at last all from the hub.

    Raises `DownloadError` where nothing makes it right.
    """
    name, givers = target.file.name, self.doubts.of(target.file.name)
    whole = {name: [(0, target.file.size)]}
    given = {giver: [target.map.digests(*span) for span in spans] for giver, spans in givers.items()}
    log(0, "%s is not what its repository says: fetching it again", name)
    self.mended = True
    for giver, spans in givers.items():
      target.forget(spans)
      self.doubts.settle(name, giver)
      self._without.add(giver)
      try:
        await self._bring({name: target}, whole)
        if await self._verified(target):
          self._neighbours.refuse(giver, f"{name} of {self.manifest.model_id} has the right hash without them")
          return
      except DownloadError as error:
        log(1, "%s does not come without %s: %s", name, giver, error)
      finally:
        self._without.discard(giver)
    target.forget()
    self.doubts.settle(name)
    await self._bring({name: target}, whole, hub_only=True)
    if not await self._verified(target):
      target.forget()
      raise DownloadError(
          f"{name} of {self.manifest.model_id} does not have the hash that its repository tells: the source is damaged. "
          "Nothing of it is used; try another HF_ENDPOINT, or later"
      )
    for giver, spans in givers.items():
      if given[giver] != [target.map.digests(*span) for span in spans]:
        self._neighbours.refuse(giver, f"{name} of {self.manifest.model_id} is another on the hub")

  # what neighbours gave

  @property
  def can_compare(self) -> bool:
    """Whether the hub could say which bytes are right."""
    return self._source is not None and not self.doubts.list_from

  async def check(self) -> bool:
    """Compare what is in doubt with the hub, where that can be; False when some of it was false and has been thrown away.

    Raises `DownloadError` of this node's own disk.
    """
    if not self.doubts.files or not self.can_compare or self._hub.is_away:
      return True
    await self._settle_whole_files()
    try:
      async with asyncio.timeout(_CHECK_S):
        caught = await false_givers(self._hub, self.manifest, self.doubts, self._open)
    except (DownloadError, RangesIgnored, TimeoutError) as error:
      if isinstance(error, TimeoutError):
        self._hub.note_away()
      log(1, "%s stays unverified, the hub cannot be asked: %s", self.manifest.model_id, str(error) or "it is slow")
      return True
    for giver in self.doubts.givers:
      if giver in caught:
        self._neighbours.refuse(giver, f"the hub has other ones in {self.manifest.model_id}")
        await self._throw_away(giver)
      for name in self.doubts.files:
        self.doubts.settle(name, giver)
    await self._save_doubts()
    return not caught

  async def _settle_whole_files(self) -> None:
    for name in self.doubts.files:
      if self.manifest.file(name) is None:
        self.doubts.settle(name)
        continue
      target = await self.file(name)
      if target.is_whole and not await self._verified(target):
        await self._mend(target)

  async def without_givers(self) -> bool:
    """After bytes that make no sense: throw away all that neighbours gave and ask them no more; False if they gave none."""
    givers = self.doubts.givers
    for giver in givers:
      log(0, "what %s gave of %s makes no sense: fetching it elsewhere", giver, self.manifest.model_id)
      await self._throw_away(giver)
      self._without.add(giver)
    return bool(givers)

  async def _throw_away(self, giver: str) -> None:
    for name in self.doubts.files:
      if (spans := self.doubts.of(name).get(giver)) and self.manifest.file(name) is not None:
        (await self.file(name)).forget(spans)
      self.doubts.settle(name, giver)

  async def _save_doubts(self) -> None:
    """One after the other, since several files come at once."""
    async with self._saving:
      coming: dict[str, list[Span]] = {}
      for wants in self._coming:
        for name, spans in wants.items():
          coming.setdefault(name, []).extend(spans)
      try:
        await in_thread(self.doubts.save, self._folder, coming)
      except OSError as error:
        raise disk_error(self._folder, error) from error

  async def _verified(self, target: SparseFile) -> bool:
    """False for a whole file that has another hash than its list tells. One that has it is in doubt no longer, unless the
    list itself is."""
    if not target.is_whole:
      return True
    if not await in_thread(target.verify):
      return False
    if target.is_hashed and not self.doubts.list_from and target.file.name in self.doubts.files:
      self.doubts.settle(target.file.name)
      await self._save_doubts()
    return True

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
        await in_thread(target.sync)

  def _missing(self, targets: Mapping[str, SparseFile], wants: Wants) -> list[Piece]:
    return [
        Piece(target, start, end) for name, target in targets.items()
        for start, end in target.missing(merged(wants[name]))
    ]

  async def _check_space(self, needed: int) -> None:
    free = await in_thread(free_disk, self._folder)
    if free is not None and free < needed + min(_SPARE_BYTES, needed):
      raise DownloadError(
          f"{self.manifest.model_id} needs {shown_bytes(needed)} more in {self._folder}, where {shown_bytes(free)} are "
          "free: make room (`exo rm MODEL`), or point EXO_HOME elsewhere"
      )

  # from this disk

  async def _copy_cached(self, pieces: list[Piece]) -> None:
    """What huggingface_hub's own cache holds already."""
    if self._source is None or not pieces:
      return
    for piece in pieces:
      blob = cached_blob(self._source, piece.file)
      if blob is not None and await self._is_sound(blob, piece):
        await in_thread(copy_span, blob, piece.target, piece.start, piece.end)

  async def _is_sound(self, blob: Path, piece: Piece) -> bool:
    """A part cannot be checked once it is here, so the whole is before it is copied; a whole is checked in any case."""
    if (piece.start, piece.end) == (0, piece.file.size):
      return True
    if blob not in self._sound_blobs:
      self._sound_blobs[blob] = await in_thread(matches, blob, piece.file)
      if not self._sound_blobs[blob]:
        log(0, "%s in huggingface_hub's cache does not have the hash that its name says: it is not used", blob.name)
    return self._sound_blobs[blob]

  async def copy(self, name: str, source: Path) -> None:
    """What is missing of a file, from an equal one of this machine."""
    target = await self.file(name)
    for start, end in target.missing([(0, target.file.size)]):
      await in_thread(copy_span, source, target, start, end)
    await in_thread(target.sync)
    if not await self._verified(target):
      target.forget()
      raise DownloadError(f"{name} does not have the hash that exo knows: the source is damaged")

  # from neighbours

  async def _from_neighbours(self, pieces: list[Piece]) -> None:
    """From all nodes that hold something of it at once; what they fail to give is left to the hub."""
    if self._held is None:  # asked once: what comes to a neighbour while we fetch is left out
      self._held = dict(await self._neighbours.held(self.manifest, self.manifest.files))
    held = {node_id: spans for node_id, spans in self._held.items() if node_id not in self._without}
    reads: dict[frozenset[str], deque[Piece]] = {}  # by the nodes that hold them
    for part in (part for piece in pieces for part in split(piece, held)):
      holders = frozenset(node_id for node_id, spans in held.items() if covers(spans, part))
      reads.setdefault(holders, deque()).extend(cut(part, max(READ_BYTES, part.target.map.block)))
    reads.pop(frozenset(), None)
    coming: dict[str, list[Span]] = {}
    for read in (read for queue in reads.values() for read in queue if read.target.pinned is None):
      coming.setdefault(read.file.name, []).append((read.start, read.end))
    if coming:  # written down before any of it is on disk
      self._coming.append(coming)
      await self._save_doubts()
    failed: set[str] = set()
    while nodes := {node_id for holders, queue in reads.items() if queue for node_id in holders} - failed:
      self.meter.status("fetching from neighbours")
      await run_all(self._read_from(node_id, reads, failed) for node_id in nodes for _ in range(_PEER_WINDOW))
    for node_id in failed:
      self._held.pop(node_id, None)
    if coming:  # where something was raised it stays: some of it may be on disk
      self._coming.remove(coming)
      await self._save_doubts()

  async def _read_from(self, node_id: str, reads: Mapping[frozenset[str], deque[Piece]], failed: set[str]) -> None:
    """Take reads that this node can serve until there are none; stop at its first failure."""
    queues = [queue for holders, queue in reads.items() if node_id in holders]
    while node_id not in failed and (queue := next((q for q in queues if q), None)) is not None:
      read = queue.popleft()
      try:
        got = await self._neighbours.read(node_id, self.manifest, read.file, read.start, read.end)
        if len(got.data) != read.end - read.start:
          raise ModelFilesError(f"{len(got.data)} bytes came where {read.end - read.start} were asked for")
        await in_thread(read.target.write, read.start, got.data, got.digests)
      except DownloadError:  # of our own disk
        raise
      except FalseBytesError as error:
        self._neighbours.refuse(node_id, str(error))
        queue.appendleft(read)
        failed.add(node_id)
        return
      except (ExoError, ValueError) as error:
        log(1, "%s gives no %s: %s", node_id, read.file.name, error)
        queue.appendleft(read)
        failed.add(node_id)
        return
      if read.target.pinned is None:
        self.doubts.add(read.file.name, node_id, read.start, read.end)
      self.meter.add(len(got.data), from_peer=True)

  # from the hub

  async def _from_hub(self, pieces: list[Piece]) -> None:
    if self._source is None:
      raise HubUnreachableError(
          f"{self.manifest.model_id} lies on another node, and no node of the ring now holds all that is missing here"
      )
    self.meter.status("fetching from the hub")
    try:
      await run_all(self._fetch(segment) for piece in pieces for segment in cut(piece, _SEGMENT_BYTES))
    except RangesIgnored:
      await self._fetch_whole_files(pieces)

  async def _fetch(self, piece: Piece) -> None:
    target = piece.target

    async def sink(at: int, data: bytes) -> None:
      await in_thread(target.write, at, data)
      self.meter.add(len(data), from_peer=False)

    await self._hub.fetch(self.manifest, piece.file, piece.start, piece.end, target.map.block, sink)

  async def _fetch_whole_files(self, pieces: list[Piece]) -> None:
    """From a server that answers a range with the whole file: begin anew and take it all."""
    for target in {id(piece.target): piece.target for piece in pieces}.values():
      if not target.missing([(0, target.file.size)]):
        continue
      log(0, "the server ignores ranges: fetching %s whole", target.file.name)
      needed = span_bytes(target.missing([(0, target.file.size)]))
      await self._check_space(needed)

      async def sink(at: int, data: bytes, target: SparseFile = target) -> None:
        await in_thread(target.write, at, data)
        self.meter.add(len(data), from_peer=False)

      await self._hub.fetch_whole(self.manifest, target.file, target.map.block, sink)


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
