"""Models of this machine that can be fetched and deleted: heads, shards or whole, each byte at most once."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from exo.download.doubts import Doubts
from exo.download.file_lock import locked
from exo.download.hub import NotThereError
from exo.download.local_folders import model_name
from exo.download.manifest import Manifest
from exo.download.model_fetcher import DownloadOptions, ModelFetcher
from exo.download.model_index import ModelIndex
from exo.download.model_library import DUMMY_MODEL, MANIFEST, Holding, ModelEntry, ModelLibrary
from exo.download.model_names import name_of_files, neighbour_card
from exo.download.neighbours import Neighbours
from exo.download.progress import DownloadProgress, ProgressCallback, ProgressMeter
from exo.download.publications import Publications
from exo.download.sparse_file import matches
from exo.download.transfer import Wants
from exo.download.wary import WaryNeighbours
from exo.errors import (
    CancelledRequestError,
    DownloadError,
    ExoError,
    ModelNotFoundError,
    NotDoneError,
)
from exo.log import log
from exo.made_files import MadeFile, MadeFiles, made_files_dir
from exo.model_card import HubSource, ModelCard
from exo.oldest import forget_oldest

_MOST_VOUCHED = 1024
_CHECK_EVERY_S = 60.0  # of what is in doubt, at most so often for one model

__all__ = ["DUMMY_MODEL", "DownloadOptions", "Holding", "ModelEntry", "ModelStore", "Removed", "model_name"]


@dataclass(frozen=True, slots=True)
class Removed:
  """`n_bytes` are free now; `stays` says which files of the model were not removed, and why, "" where none are left."""
  n_bytes: int
  stays: str = ""


class ModelStore(ModelLibrary):
  """Finds models by name; fetches what is missing, each byte at most once, also when processes share `home`."""
  def __init__(
      self,
      home: Path,
      model_dirs: Iterable[Path] = (),
      models: Iterable[Path] = (),
      options: DownloadOptions | None = None,
      *,
      wary: bool = False
  ) -> None:
    """`wary`: other nodes may be anybody's, and make the hub see this user's token only for what `vouch` was called for."""
    super().__init__(home, model_dirs, models)
    self.made_files = MadeFiles(made_files_dir(home))
    self._fetcher = ModelFetcher(self, home, options or DownloadOptions(), self._meter, self._note_doubts)
    self._wary, self._vouched = wary, dict[str, None]()
    self._listeners: list[ProgressCallback] = []
    self._meters: dict[str, ProgressMeter] = {}
    self._jobs: dict[str, set[asyncio.Task[None]]] = {}
    self._checks: dict[str, asyncio.Task[None]] = {}  # of what is in doubt, by model
    self._checked_at: dict[str, float] = {}
    self._on_false: list[Callable[[str], None]] = []
    self._index = ModelIndex(self.find)
    self._publications = Publications()
    self._in_doubt: dict[str, tuple[str, tuple[str,
                                               ...]]] = {}  # folder: model, and the nodes that gave what is in doubt

  def is_vouched(self, name: str) -> bool:
    """Whether a client of this node has asked for this model, or other nodes are believed anyway."""
    return not self._wary or name in self._vouched

  def vouch(self, name: str) -> None:
    """A client of this node wants this model: it may be fetched with the user's token."""
    self._vouched.pop(name, None)
    self._vouched[name] = None
    forget_oldest(self._vouched, _MOST_VOUCHED)

  def _as_vouched(self, card: ModelCard) -> ModelCard:
    """With a source that shows the hub no token, unless exo's registry names the repository or a client of this node has."""
    source = card.source
    if not self._wary or not isinstance(source,
                                        HubSource) or card.id in self._vouched or self.registry.is_registered(source):
      return card
    return replace(card, source=replace(source, with_token=False))

  def listen(self, callback: ProgressCallback) -> None:
    """Hear of the progress of every download from now on."""
    self._listeners.append(callback)

  def ask(self, neighbours: Neighbours) -> None:
    """Let other nodes be asked before the hub is."""
    self._fetcher.neighbours = WaryNeighbours(neighbours)

  def on_false(self, callback: Callable[[str], None]) -> None:
    """Hear of models of which something that was in use turned out to be false and has been thrown away."""
    self._on_false.append(callback)

  @property
  def unverified(self) -> dict[str, tuple[str, ...]]:
    """Models of which something is in doubt, and the nodes that gave it."""
    return dict(self._in_doubt.values())

  async def remember_doubts(self) -> None:
    """Fill `unverified` with what earlier runs left in doubt."""
    self._in_doubt |= await asyncio.to_thread(self.doubted)

  async def look_up(self, name: str) -> ModelEntry:
    """As `find`, off the event loop, and without the disk where the same was asked a moment ago."""
    return await self._index.find(name)

  async def find_anywhere(self, name: str) -> ModelEntry:
    """As `look_up`, and a name that only other nodes know is asked of them. Of a known model of which nothing is here, the form
    that others have, if engines here can run it."""
    try:
      entry = await self.look_up(name)
    except ModelNotFoundError:
      if not await self._fetcher.neighbours.manifests(name):
        raise
      return await asyncio.to_thread(self.entry, neighbour_card(name))
    if entry.stamp or entry.card is None or name not in self.registry.cards or not isinstance(
        entry.card.source, HubSource
    ):
      return entry
    for _, manifest in sorted((await self._fetcher.neighbours.manifests(name)).items()):
      if (theirs := self.named_by(entry.card, manifest)) is not None:
        return await asyncio.to_thread(self.entry, theirs)
    return entry

  async def is_within_reach(self, entry: ModelEntry) -> bool:
    """Whether some of it is here or on another node of the ring, so that using it begins no download from outside."""
    if entry.card is None or await asyncio.to_thread(self.holding_of, entry.card) is not None:
      return True
    return bool(await self._fetcher.neighbours.manifests(name_of_files(entry.card)))

  async def published(self, entry: ModelEntry) -> Manifest:
    """What there is to fetch of a model by the ring or the hub, asked now and then only.

    Raises `ModelNotFoundError` where the hub has no such model for this user, `DownloadError` where it cannot be asked.
    """
    if entry.card is None:
      raise ModelNotFoundError(f"{entry.id} is a model of this machine alone", model=entry.id)
    return await self._publications.find(self._as_vouched(entry.card), self._fetcher.neighbours)

  # fetching

  async def head(self, entry: ModelEntry) -> Path:
    """What an entry node needs: configuration, tokenizer, headers; where `open_checkpoint` finds them.

    Raises `DownloadError`, `ModelFilesError`, `UnsupportedModelError`. Cancelling one caller leaves it to the others.
    """
    if entry.card is None:
      return self._own(entry)
    try:
      return await self._head_of(entry.card)
    except NotThereError:
      for card in await asyncio.to_thread(self._other_forms, entry):
        with suppress(NotThereError):
          path = await self._head_of(card)
          log(0, "%s is taken as %s: what would be better is not there for this node", entry.id, card.form)
          return path
      raise

  def _other_forms(self, entry: ModelEntry) -> list[ModelCard]:
    """What else a known name could stand for, of which nothing is here."""
    assert entry.card is not None
    if entry.id not in self.registry.cards or entry.stamp:
      return []
    return [entry.card.taken_from(source) for source in self._choice(entry.card) if source != entry.card.source]

  async def _head_of(self, unvouched: ModelCard) -> Path:
    card = self._as_vouched(unvouched)
    holding = await asyncio.to_thread(self.sound_holding, card)
    if holding is None:
      try:
        await self._job(card.id, lambda: self._fetcher.head(card))
        holding = await asyncio.to_thread(self.holding_of, card)
      except DownloadError:  # perhaps because nothing can be written there
        holding = await asyncio.to_thread(self._read_only, card)
        if holding is None:
          raise
    if holding is None:
      raise DownloadError(f"{card.id} was deleted while it was fetched")
    return holding.openable

  async def bring(self, entry: ModelEntry, wants: Wants) -> None:
    """These spans of the model's files, `head` having been called. Raises as it does."""
    if entry.card is None:
      return
    card = self._as_vouched(entry.card)
    holding = await asyncio.to_thread(self.holding_of, card)
    if holding is None or not (self._home / card.source.folder / MANIFEST).is_file():
      return  # whole, in a place that is not ours to write to
    await self._job(entry.id, lambda: self._fetcher.spans(card, wants))
    self._check_later(card)

  async def fetch(self, entry: ModelEntry) -> Path:
    """The whole model, and what is in doubt compared with the hub where that can be. Raises as `head` does."""
    path = await self._all_of(entry)
    check = None if entry.card is None else self._checks.get(entry.card.source.folder)
    if check is not None:
      await asyncio.wait({check})
      path = await self._all_of(entry)  # in case that something was false
    return path

  async def _all_of(self, entry: ModelEntry) -> Path:
    path = await self.head(entry)
    if entry.id in self.registry.cards:
      entry = await self.look_up(entry.id)  # in the form in which it is here now
    if entry.card is not None and (holding := await asyncio.to_thread(self.holding_of, entry.card)) is not None:
      await self.bring(entry, {file.name: [(0, file.size)] for file in holding.manifest.files})
    return path

  def _read_only(self, card: ModelCard) -> Holding | None:
    """A file put there by hand that is the right one."""
    holding = self.holding_of(card)
    right = holding is not None and holding.by_hand and matches(holding.openable, holding.manifest.files[0])
    return holding if right else None

  # what is in doubt

  def _note_doubts(self, card: ModelCard, doubts: Doubts) -> None:
    if doubts:
      if card.source.folder not in self._in_doubt:
        log(0, "%s is unverified as long as the hub cannot be asked: %s gave it", card.id, ", ".join(doubts.everybody))
      self._in_doubt[card.source.folder] = (card.id, doubts.everybody)
    else:
      self._in_doubt.pop(card.source.folder, None)

  def _check_later(self, card: ModelCard) -> None:
    """Compare what is in doubt with the hub, now that it may be reached, while the model is used as it is."""
    folder = card.source.folder
    due = time.monotonic() - self._checked_at.get(folder, float("-inf")) > _CHECK_EVERY_S
    if folder in self._in_doubt and folder not in self._checks and due and self._fetcher.could_check(card):
      self._checked_at[folder] = time.monotonic()
      task = self._checks[folder] = asyncio.create_task(self._check(card), name=f"check {card.id}")
      task.add_done_callback(lambda _: self._checks.pop(folder, None))

  async def _check(self, card: ModelCard) -> None:
    try:
      sound = await self._fetcher.check(card)
    except (ExoError, OSError) as error:
      log(1, "%s stays unverified: %s", card.id, error)
      return
    self._index.forget(card.id)
    if not sound:
      for callback in self._on_false:
        callback(card.id)

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

  # ending

  def cancel(self, name: str) -> bool:
    """End the downloads of a model under way; what came stays. False when there are none."""
    jobs = list(self._jobs.get(name, ()))
    for job in jobs:
      job.cancel()
    return bool(jobs)

  async def removable(self, name: str) -> ModelEntry:
    """The model of that name, if `delete` may remove something of it: one that was fetched or is being fetched here, or that has files
    made of it.

    Raises `ModelNotFoundError`, and `NotDoneError` for files of the user's own, which stay.
    """
    entry = await asyncio.to_thread(self.find, name)
    if stays := await self._stays(entry):
      made = await asyncio.to_thread(self.made_of, entry)
      if not made:
        raise NotDoneError(stays)
    return entry

  async def _stays(self, entry: ModelEntry) -> str:
    """Why its files are not for `delete` to remove; "" where they are. Raises `ModelNotFoundError`."""
    if entry.card is None:
      return f"{entry.id} lies in a folder of your own, which exo does not touch: delete it there"
    if not self._jobs.get(entry.id) and not await asyncio.to_thread((self._home / entry.card.source.folder).is_dir):
      if await asyncio.to_thread(self.holding_of, entry.card) is not None:
        return f"{entry.id} lies in the cache of huggingface_hub: delete it with `hf cache rm`"
      raise ModelNotFoundError(f"{entry.id} is not on this machine", model=entry.id)
    return ""

  def made_of(self, entry: ModelEntry) -> list[MadeFile]:
    """Files that engines made of its files. Blocks."""
    where = self._where(entry)
    return [] if where is None else self.made_files.of(where)

  def _where(self, entry: ModelEntry) -> Path | None:
    if entry.card is None:
      return entry.path
    holding = self.holding_of(entry.card)
    return self._home / entry.card.source.folder if holding is None else holding.base

  async def delete(self, name: str) -> Removed:
    """Remove a model that was fetched, with what was made of it; raises what `removable` raises."""
    entry = await self.removable(name)
    removed = await self._delete(entry)
    while name in self.registry.cards and not removed.stays:  # its other forms
      entry = await asyncio.to_thread(self.find, name)
      if entry.card is None or not await asyncio.to_thread((self._home / entry.card.source.folder).is_dir):
        break
      removed = Removed(removed.n_bytes + (await self._delete(entry)).n_bytes)
    return removed

  async def _delete(self, entry: ModelEntry) -> Removed:
    where = await asyncio.to_thread(self._where, entry)
    made = 0 if where is None else await asyncio.to_thread(self.made_files.remove, where)
    if stays := await self._stays(entry):
      return Removed(made, stays)
    assert entry.card is not None
    jobs = list(self._jobs.get(entry.id, ()))
    self.cancel(entry.id)
    if (check := self._checks.get(entry.card.source.folder)) is not None:
      check.cancel()
      jobs.append(check)
    await asyncio.gather(*jobs, return_exceptions=True)
    folder = self._home / entry.card.source.folder
    if not await asyncio.to_thread(folder.is_dir):
      return Removed(made)  # its download had not begun to write
    async with locked(folder / ".lock", lambda: None):
      freed = await asyncio.to_thread(_remove, folder)
    self._meters.pop(entry.id, None)
    self._in_doubt.pop(entry.card.source.folder, None)
    self._index.forget(entry.id)
    return Removed(made + freed)

  async def close(self) -> None:
    tasks = [*self._checks.values(), *(task for jobs in self._jobs.values() for task in jobs)]
    for task in tasks:
      task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await self._fetcher.close()
    self._index.close()


def _remove(folder: Path) -> int:
  freed = sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
  shutil.rmtree(folder)
  return freed
