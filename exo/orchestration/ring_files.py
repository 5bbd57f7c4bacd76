"""The one file of a model that requests of this node's clients run, chosen from those that the nodes of its ring hold."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from exo.download.model_store import ModelEntry
from exo.errors import ExoError, UnsupportedModelError, one_line
from exo.log import log
from exo.model_card import HubSource, NeighbourSource, WheelSource
from exo.model_file import ModelFile
from exo.models import Registry
from exo.networking.mesh import PeerStatus
from exo.oldest import forget_oldest
from exo.orchestration.file_choice import Candidate, FileChoice, all_can_read, choose
from exo.orchestration.held_model import HeldModel
from exo.orchestration.model_catalog import ModelCatalog, ModelInfo
from exo.orchestration.model_fit import RingWorker
from exo.orchestration.ring_models import RingModels
from exo.tasks import TaskOwner

_ASKED_EVERY_S = 10.0
_MOST_KNOWN = 256


@dataclass(frozen=True, slots=True)
class _Known:
  """A choice for a ring of these other nodes, where the file that is here has the key `own`."""
  choice: FileChoice
  ring: frozenset[tuple[str, int]]
  own: str
  at: float


class RingFiles:
  """`workers` are those of the ring, this node's, `here`, included."""
  def __init__(
      self, here: str, catalog: ModelCatalog, held: RingModels, peers: Callable[[], Mapping[str, PeerStatus]],
      workers: Callable[[], tuple[RingWorker, ...]], tasks: TaskOwner
  ) -> None:
    self._here, self._catalog, self._held, self._tasks = here, catalog, held, tasks
    self._peers, self._workers = peers, workers
    self._known: dict[str, _Known] = {}
    self._asking: set[str] = set()

  def why(self, model_id: str, file: ModelFile) -> str:
    """Why these files are run; "" where this node did not choose them."""
    known = self._known.get(model_id)
    return known.choice.why if known is not None and known.choice.file == file else ""

  async def model(self, model_id: str) -> ModelInfo:
    """The model with the files that its plans are to run, its head fetched where it is missing.

    Raises `ModelNotFoundError`, `DownloadError`, and `UnsupportedModelError` where neither this node nor another has files of it
    that exo reads.
    """
    own: ModelInfo | None = None
    try:
      own = await self._catalog.info(model_id)
    except UnsupportedModelError:
      if not await self._choose(model_id, None):
        raise
    if own is not None:
      await self._choose(model_id, own)
    known = self._known[model_id]
    file = known.choice.file
    if own is not None and own.file == file:
      return own
    try:
      return await self._catalog.info(model_id, file)
    except ExoError as error:
      if own is None:
        raise
      choice = FileChoice(own.file, f"{file} cannot be had here: {one_line(error.message)}")
      log(1, "%s: %s is run: %s", model_id, choice.file, choice.why)
      self._known[model_id] = replace(known, choice=choice)  # until the others are asked again
      return own

  async def _choose(self, model_id: str, own: ModelInfo | None) -> bool:
    """See to it that there is a choice; False where there are no files to choose from."""
    ring = frozenset((node_id, peer.hello.incarnation) for node_id, peer in self._peers().items())
    key = own.file.key if own is not None else ""
    known = self._known.get(model_id)
    if known is None or (known.ring, known.own) != (ring, key):
      return await self._ask(model_id, own, ring, key)
    if time.monotonic() - known.at > _ASKED_EVERY_S and model_id not in self._asking:
      self._asking.add(model_id)
      self._tasks.spawn(self._ask_again(model_id, own, ring, key), f"ask for files of {model_id}")
    return True

  async def _ask_again(self, model_id: str, own: ModelInfo | None, ring: frozenset[tuple[str, int]], key: str) -> None:
    try:
      await self._ask(model_id, own, ring, key)
    except ExoError as error:
      log(1, "%s: which file is run was not found out again: %s", model_id, error)
    finally:
      self._asking.discard(model_id)

  async def _ask(self, model_id: str, own: ModelInfo | None, ring: frozenset[tuple[str, int]], key: str) -> bool:
    entry = await self._catalog.store.find_anywhere(model_id)
    candidates = [] if own is None else [_own(entry, own, self._here)]
    if _has_others(entry, own):
      candidates = _with(candidates, entry, await self._held.of(model_id))
    workers = self._workers()
    for name in _formats(entry, self._catalog.store.registry):
      if not any(all_can_read(model_id, candidate, workers) for candidate in candidates):
        candidates = _with(candidates, entry, await self._whole(name))
    if not candidates:
      return False
    before = self._known.pop(model_id, None)
    in_use = before.choice.file if before is not None and before.own == key else None
    choice = choose(model_id, candidates, workers, in_use)
    self._known[model_id] = _Known(choice, ring, key, time.monotonic())
    forget_oldest(self._known, _MOST_KNOWN)
    if before is None or before.choice != choice:
      log(1, "%s: %s is run: %s", model_id, choice.file, choice.why)
    return True

  async def _whole(self, model_id: str) -> dict[str, HeldModel]:
    """By node, this one included, where all of a model is on disk."""
    held, own = dict(await self._held.of(model_id)), await self._held.of_here(model_id)
    if own is not None:
      held[self._here] = own
    return {node_id: model for node_id, model in held.items() if model.is_whole}


def _has_others(entry: ModelEntry, own: ModelInfo | None) -> bool:
  """Whether other files may be this model: none of one without files, or whose file exo knows by its hash."""
  if entry.card is not None and isinstance(entry.card.source, WheelSource):
    return False
  return own is None or bool(own.file.hashes or own.file.sample)


def _own(entry: ModelEntry, own: ModelInfo, here: str) -> Candidate:
  holders = (here, ) if entry.path is not None else ()
  return Candidate(own.file, own.facts, holders, is_first=not _is_copy(entry))


def _is_copy(entry: ModelEntry) -> bool:
  """Of what lies in a folder of another node's user, and may have changed there."""
  return entry.card is not None and isinstance(entry.card.source, NeighbourSource)


def _with(own: Iterable[Candidate], entry: ModelEntry, held: Mapping[str, HeldModel]) -> list[Candidate]:
  """Also what other nodes hold, if it is the same model, comes from where this node would take it, and can be had."""
  found = list(own)
  shape = found[0].file.shape if found else None
  for node_id, model in sorted(held.items()):
    file, facts = model.profile.file, model.profile.facts
    if facts is None or shape not in (None, file.shape) or not _may_be(entry, file):
      continue
    new = Candidate(file, facts, (node_id, ) if model.is_whole else (), is_first=_is_copy(entry) and model.is_own)
    same = next((i for i, known in enumerate(found) if known.file.is_same(file) is not False), None)
    if same is not None:
      known = found[same]
      found[same] = replace(
          known, holders=tuple(sorted({*known.holders, *new.holders})), is_first=known.is_first or new.is_first
      )
    elif new.holders or file.source:
      found.append(new)
  return found


def _formats(entry: ModelEntry, registry: Registry) -> list[str]:
  """By which names the registry knows a model in other formats."""
  card = entry.card
  if card is None or card.id not in registry.cards:
    return []
  return [f"{card.id}:{name}" for name in card.repos if name != card.format or isinstance(card.source, WheelSource)]


def _may_be(entry: ModelEntry, file: ModelFile) -> bool:
  """What a name means that a hub knows is not for other nodes to say."""
  if entry.card is None or not isinstance(entry.card.source, HubSource):
    return True
  return file.source in {source.repo for source in entry.card.sources if isinstance(source, HubSource)}
