"""What other nodes and the hub have of models that are not here, remembered for a while: for lists, nothing is fetched."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from weakref import WeakValueDictionary

from exo.download.hub import HubUnreachableError, hub_manifest
from exo.download.manifest import Manifest
from exo.download.neighbours import Neighbours
from exo.download.retry import Transient
from exo.errors import DownloadError, ModelFilesError, ModelNotFoundError, UnsupportedModelError
from exo.model_card import HubSource, ModelCard
from exo.oldest import forget_oldest

_REMEMBER_S = 300.0
_MOST_REMEMBERED = 256
_HUB_S = 8.0


@dataclass(frozen=True, slots=True)
class _Known:
  manifest: Manifest
  at: float


class Publications:
  """One question at a time for each model, however many ask."""
  def __init__(self) -> None:
    self._known: dict[str, _Known] = {}
    self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

  async def find(self, card: ModelCard, neighbours: Neighbours) -> Manifest:
    """Raises `ModelNotFoundError`, which is not remembered, and `DownloadError`."""
    lock = self._locks.get(card.id)
    if lock is None:
      lock = self._locks[card.id] = asyncio.Lock()
    async with lock:
      known = self._known.pop(card.id, None)
      if known is None or time.monotonic() - known.at >= _REMEMBER_S:
        known = _Known(await self._ask(card, neighbours), time.monotonic())
      self._known[card.id] = known
      forget_oldest(self._known, _MOST_REMEMBERED)
      return known.manifest

  async def _ask(self, card: ModelCard, neighbours: Neighbours) -> Manifest:
    if found := await neighbours.manifests(card.id):
      return next(iter(found.values()))
    if not isinstance(card.source, HubSource):
      raise ModelNotFoundError(f"there is no model {card.id!r} here", model=card.id)
    try:
      async with asyncio.timeout(_HUB_S):
        return await hub_manifest(card.id, card.source)
    except (HubUnreachableError, Transient, TimeoutError) as error:
      raise DownloadError(f"{card.id} is not here, and the hub cannot be asked now: {error or 'no answer'}") from error
    except (DownloadError, ModelFilesError, UnsupportedModelError) as error:
      raise ModelNotFoundError(error.message, model=card.id) from error
