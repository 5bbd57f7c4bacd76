"""The models that this machine knows: what each name means, and what of it lies where. Nothing here writes or fetches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from exo.download import hub
from exo.download.content_sample import KnownContents
from exo.download.disk_stamp import Stamp, stamp_of
from exo.download.doubts import DOUBTS, Doubts
from exo.download.local_folders import describe, model_files, models_in
from exo.download.manifest import Manifest, RepoFile, check_file_name, inside, manifest_from_json
from exo.download.model_names import neighbour_card, version_in
from exo.download.sparse_file import held_spans
from exo.download.user_models import registry_in
from exo.errors import ExoError, ModelFilesError, ModelNotFoundError
from exo.gguf_names import is_of_quantization, model_stem, quantization_of
from exo.inference.weights.block_map import BlockMap, map_path, span_bytes
from exo.log import log
from exo.model_card import HubSource, ModelCard, Source, WheelSource
from exo.models import nearest

DUMMY_MODEL = "dummy"
MANIFEST = ".exo/manifest.json"
LOCAL = "local"  # the source of what lies in folders of the user's own
_MAX_MANIFEST_BYTES = 16 * 2**20

# of a card's sources those that engines here can run, what is to be taken first in front
Choice = Callable[[ModelCard], Sequence[Source]]


@dataclass(frozen=True, slots=True)
class ModelEntry:
  """A model by the name that users and peers know it by. `path` is there for models that are whole on this machine.

  `card` is None for a folder or file of the user's own; those are never written to. `stamp` is another one when other
  files lie there than before; what a download adds to them does not change it.
  """
  id: str
  pretty_name: str
  path: Path | None
  card: ModelCard | None
  stamp: Stamp = ()


@dataclass(frozen=True, slots=True)
class Holding:
  """Files of a model on this machine, to read. `base` is their folder; `is_ours` when they lie where exo puts them, and
  `by_hand` when somebody else has put them there.
  """
  manifest: Manifest
  base: Path
  is_ours: bool = True
  by_hand: bool = False

  def path(self, name: str) -> Path:
    """Of one file. Raises `ModelFilesError` for a name that leads out of the folder."""
    return inside(self.base, name) if self.is_ours else self.base / check_file_name(name)

  @property
  def openable(self) -> Path:
    """What `open_checkpoint` takes."""
    weights = self.manifest.weights
    one = self.manifest.is_gguf and len({model_stem(file.name) for file in weights}) == 1
    return self.path(min(file.name for file in weights)) if one else self.base

  def held_bytes(self) -> int:
    return sum(span_bytes(held_spans(self.path(file.name))) for file in self.manifest.files)

  def is_sound(self) -> bool:
    """Every file is there at its full length, though perhaps with holes."""
    paths = [(self.path(file.name), file.size) for file in self.manifest.files]
    return all(path.is_file() and path.stat().st_size == size for path, size in paths)

  def is_whole(self) -> bool:
    return self.held_bytes() == self.manifest.total_bytes

  def is_verified(self) -> bool | None:
    """Whether all that is here has been found to be what exo pins or the hub has; None for the user's own, which nobody
    else could know."""
    if not self.is_ours:
      return None
    return not self.by_hand and not Doubts.read(self.base) and all(map(self._is_checked, self.manifest.files))

  def _is_checked(self, file: RepoFile) -> bool:
    """False for a whole file of which nobody has taken the hash since somebody else wrote to it."""
    path = self.path(file.name)
    blocks = BlockMap.beside(path)
    if blocks is None or not blocks.is_whole:
      return True
    return blocks.verified and blocks.synced_ns == path.stat().st_mtime_ns

  def stamp(self) -> Stamp:
    """As of `ModelEntry`. Downloads write to files, so there it is the list of files and which they are that counts."""
    files = [self.path(file.name) for file in self.manifest.files]
    manifest = self.base / MANIFEST
    if not self.is_ours or self.by_hand:
      return stamp_of(files)
    return stamp_of([manifest]) + stamp_of(files, times=False)

  def stamp_of_content(self) -> Stamp:
    """Another one also when something was written to a file or its map."""
    files = [self.path(file.name) for file in self.manifest.files]
    return stamp_of([self.base / MANIFEST, *files, *(map_path(file) for file in files)])


class ModelLibrary:
  """Finds models by name, in folders of the user's own, in `home`, in huggingface_hub's cache, in the registry.

  A name of the registry stands for files of one form: of one that is here, else of the one that `prefer` has put first.
  """
  def __init__(self, home: Path, model_dirs: Iterable[Path] = (), models: Iterable[Path] = ()) -> None:
    self._home = home
    self.registry = registry_in(home)
    self._choice: Choice = lambda card: card.sources
    self._model_dirs, self._models = tuple(model_dirs), tuple(models)
    self._manifests: dict[Path, tuple[Stamp, Manifest]] = {}
    self._whole: dict[Path, Stamp] = {}
    self.contents = KnownContents()

  def prefer(self, choice: Choice) -> None:
    """From now on names stand for what the engines here can run."""
    self._choice = choice

  # names

  def local_models(self) -> dict[str, Path]:
    """Models of the user's own folders, by name."""
    return models_in(self._model_dirs, self._models)

  def listed(self) -> list[ModelEntry]:
    """Every model that can be asked for by name: the user's own, those that have been fetched, those of the registry."""
    entries = {name: _local_entry(name, path) for name, path in self.local_models().items()}
    folders = self._folders()
    meant = [self._meant(card, folders) for card in self.registry.cards.values()]
    for card in (*self._fetched_cards({card.source.folder for card in meant}), *meant):
      if card.id not in entries:
        entries[card.id] = self.entry(card)
    return list(entries.values())

  def _fetched_cards(self, known: Collection[str]) -> list[ModelCard]:
    """Models in `home`, but for those in folders that are known."""
    cards = []
    for file in sorted(self._home.glob(f"*/{MANIFEST}")):
      folder = file.parents[1]
      if folder.name in known:
        continue
      try:
        manifest = self._manifest(folder)
      except ModelFilesError as error:
        log(1, "%s: %s", folder.name, error)
        continue
      named = self.registry.card_of(manifest.model_id) or neighbour_card(manifest.model_id)
      for card in (named, self.registry.card_of_folder(folder.name)):
        if card is not None and card.source.folder == folder.name:
          cards.append(replace(card, id=f"{card.id}:{card.form}") if card.id in self.registry.cards else card)
          break
    return cards

  def _folders(self) -> frozenset[str]:
    """What lies in `home`."""
    try:
      return frozenset(path.name for path in self._home.iterdir())
    except OSError:
      return frozenset()

  def _meant(self, card: ModelCard, folders: Collection[str]) -> ModelCard:
    """With the source that its name stands for on this machine as it is now: what is here whole, else what has been begun,
    else what is to be taken first."""
    wanted: Sequence[Source] = (card.source, )
    if card.id in self.registry.cards:
      wanted = self._choice(card) or card.sources[:1]
    begun: list[ModelCard] = []
    for form, holding in self._forms_here(card, wanted, folders):
      if self._is_whole(holding):
        return form
      begun.append(form)
    return begun[0] if begun else card.taken_from(wanted[0])

  def _forms_here(self, card: ModelCard, wanted: Iterable[Source],
                  folders: Collection[str]) -> Iterator[tuple[ModelCard, Holding]]:
    """What of these sources is here, in their order."""
    for source in wanted:
      for kept in self._kept_as(source, card, folders):
        form = card.taken_from(kept)
        with suppress(OSError, ExoError):
          if (holding := self.holding_of(form)) is not None:
            yield form, holding

  def _kept_as(self, source: Source, card: ModelCard, folders: Collection[str]) -> Iterator[Source]:
    """The source itself, and others under which the same files may lie here: a repository's GGUF file is fetched by the
    name of its quantization, or by that of the repository."""
    yield source
    if not isinstance(source, HubSource):
      return
    whole = replace(source, variant=None)
    if source.variant is not None and whole.folder in folders:
      with suppress(ModelFilesError, OSError):
        weights = self._manifest(self._home / whole.folder).weights
        if weights and is_of_quantization(weights[0].name, source.variant):
          yield whole
    elif card.id.partition(":")[0] in self.registry.cards and source == card.repos.get("gguf"):
      for folder in sorted(name for name in folders if name.startswith(whole.folder + "+")):
        yield replace(source, variant=folder.removeprefix(whole.folder + "+"))

  def find(self, name: str) -> ModelEntry:
    """Raises `ModelNotFoundError` with the nearest names; an unknown name never becomes another model."""
    local = self.local_models()
    if name in local:
      return _local_entry(name, local[name])
    if name == DUMMY_MODEL:
      return ModelEntry(name, "Dummy", Path(name), None)
    card = self.registry.card_of(name)
    if card is None and (self._home / neighbour_card(name).source.folder / MANIFEST).is_file():
      card = neighbour_card(name)
    if card is not None:
      return self.entry(self._meant(card, self._folders()))
    close = nearest(name, [*local, *self.registry.cards])
    hint = f" Did you mean {', '.join(close)}?" if close else " `GET /v1/models?all=true` lists the known ones."
    raise ModelNotFoundError(f"there is no model {name!r}.{hint}", model=name)

  def entry(self, card: ModelCard) -> ModelEntry:
    path: Path | None = None
    stamp: Stamp = ()
    try:
      holding = self.holding_of(card)
      if holding is not None:
        stamp = holding.stamp()
        path = holding.openable if self._is_whole(holding) else None
    except (OSError, ExoError) as error:
      log(1, "%s: %s", card.id, error)
    return ModelEntry(card.id, card.pretty_name, path, card, stamp)

  def _is_whole(self, holding: Holding) -> bool:
    """Maps are read again only when something has been written since."""
    stamp = holding.stamp_of_content()
    if self._whole.get(holding.base) == stamp:
      return True
    self._whole.pop(holding.base, None)
    if whole := holding.is_whole():
      self._whole[holding.base] = stamp
    return whole

  def _manifest(self, folder: Path) -> Manifest:
    """As `read_manifest`, read once as long as the file stays what it is."""
    stamp = stamp_of([folder / MANIFEST])
    known = self._manifests.get(folder)
    if known is None or known[0] != stamp:
      self._manifests.pop(folder, None)
      known = self._manifests[folder] = (stamp, read_manifest(folder))
    return known[1]

  def named_by(self, card: ModelCard, manifest: Manifest) -> ModelCard | None:
    """The form of a card that this list of a ring's files is of, if it is one that could be run here."""
    for source in self._choice(card):
      if isinstance(source, HubSource) and source.repo == manifest.source and manifest.weights:
        variant = quantization_of(manifest.weights[0].name
                                  ) or None if card.taken_from(source).format == "gguf" else None
        return card.taken_from(replace(source, variant=variant))
    return None

  # what is here

  def holdings(self, name: str) -> list[Holding]:
    """As `holding`, and what lies here of other forms of the model, whether engines here could run them or not."""
    first = self.holding(name)
    found = [] if first is None else [first]
    if (card := self.registry.cards.get(name)) is not None:
      forms = [holding for _, holding in self._forms_here(card, card.sources, self._folders())]
      found += sorted((one for one in forms if first is None or one.base != first.base),
                      key=lambda one: not self._is_whole(one))
    return found

  def holding(self, name: str) -> Holding | None:
    """What of a model is on this machine, its head at least; a version also where it is what lies under the model's name.

    Raises `ModelNotFoundError`, `ModelFilesError`.
    """
    model, revision = version_in(name)
    if not revision:
      return self.holding_of_entry(self.find(name))
    with suppress(ModelNotFoundError):
      if (found := self.holding_of_entry(self.find(name))) is not None:
        return found
    found = self.holding_of_entry(self.find(model))
    return found if found is not None and found.manifest.revision == revision else None

  def holding_of_entry(self, entry: ModelEntry) -> Holding | None:
    """As `holding`. Raises `ModelFilesError`."""
    if entry.card is not None:
      return self.holding_of(entry.card)
    if entry.path is None or entry.id == DUMMY_MODEL:
      return None
    base = entry.path.parent if entry.path.is_file() else entry.path
    return Holding(describe(entry.id, entry.path, LOCAL, self.contents), base, False)

  def holding_of(self, card: ModelCard) -> Holding | None:
    folder = self._home / card.source.folder
    if (folder / MANIFEST).is_file():
      manifest = self._manifest(folder)
      if not isinstance(card.source, WheelSource) or manifest.files == wheel_manifest(card.id, card.source).files:
        return Holding(manifest, folder)
      log(1, "%s: what lies in %s is not the file that exo knows", card.id, folder)
    if isinstance(card.source, WheelSource):  # put there by hand, or by an earlier version
      file = folder / card.source.file_name
      whole = file.is_file() and not map_path(file).is_file()
      if whole and file.stat().st_size == card.source.member_bytes:
        return Holding(wheel_manifest(card.id, card.source), folder, by_hand=True)
    if isinstance(card.source, HubSource) and card.source.variant is None:
      snapshot = hub.cached_snapshot(card.source)
      if snapshot is not None:
        manifest = describe(card.id, snapshot, card.source.repo, self.contents, snapshot.name)
        return Holding(manifest, snapshot, False)
    return None

  def sound_holding(self, card: ModelCard) -> Holding | None:
    """None also where files of it are gone or cut off since, and for a file put there by hand, whose hash nobody took."""
    holding = self.holding_of(card)
    return holding if holding is not None and holding.is_sound() and not holding.by_hand else None

  def doubted(self) -> dict[str, tuple[str, tuple[str, ...]]]:
    """By the folder of each model of which something is in doubt, its name and who gave that. Blocks."""
    found = {}
    for folder in (file.parents[1] for file in self._home.glob(f"*/{DOUBTS}")):
      try:
        if doubts := Doubts.read(folder):
          found[folder.name] = (self._manifest(folder).model_id, doubts.everybody)
      except ModelFilesError as error:
        log(1, "%s: %s", folder.name, error)
    return found


def _local_entry(name: str, path: Path) -> ModelEntry:
  return ModelEntry(name, name, path, None, stamp_of(model_files(path)))


def wheel_manifest(model_id: str, source: WheelSource) -> Manifest:
  file = RepoFile(source.file_name, source.member_bytes, source.member_sha256)
  return Manifest(model_id, f"pypi:{source.package}", source.version, (file, ))


def read_manifest(folder: Path) -> Manifest:
  path = folder / MANIFEST
  try:
    if path.stat().st_size > _MAX_MANIFEST_BYTES:
      raise ModelFilesError(f"{path} is implausibly large")
    return manifest_from_json(path.read_text("utf-8"))
  except (OSError, UnicodeDecodeError) as error:
    raise ModelFilesError(f"{path} cannot be read: {error}") from error
