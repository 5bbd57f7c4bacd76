"""What there is to say of each model before anybody opens it: how large, how much of it is here, and where."""

from __future__ import annotations

from dataclasses import dataclass

from exo.download.model_store import ModelEntry, ModelStore
from exo.errors import ExoError
from exo.log import log

# beside its weights a model needs room for KV caches and intermediate values
_ROOM = 1.1


@dataclass(frozen=True, slots=True)
class ModelState:
  """`total_bytes` and `layers` are None where nothing is known of them yet; `where` is empty for what is not here.
  `is_ours`: it lies in `EXO_HOME` and may be deleted. `verified`: whether all that is here was found to be what exo pins
  or the hub has; None for what is not here, and for files of the user's own.
  """
  id: str
  pretty_name: str
  held_bytes: int
  total_bytes: int | None
  layers: int | None
  where: str
  source: str
  is_ours: bool
  verified: bool | None = None

  @property
  def is_whole(self) -> bool:
    return bool(self.where) and self.total_bytes is not None and self.held_bytes >= self.total_bytes

  @property
  def fraction(self) -> float:
    return min(1.0, self.held_bytes / self.total_bytes) if self.total_bytes else 0.0

  def fits(self, memory_bytes: int) -> bool | None:
    """Whether so much memory holds it; None where its size is not known."""
    return None if self.total_bytes is None else self.total_bytes * _ROOM <= memory_bytes


def model_states(store: ModelStore) -> list[ModelState]:
  """Of every model that can be asked for by name. Blocks on the disk; asks no network."""
  return [model_state(store, entry) for entry in store.listed()]


def model_state(store: ModelStore, entry: ModelEntry) -> ModelState:
  card = entry.card
  verified: bool | None = None
  held, total, where, is_ours = 0, card.total_bytes if card is not None else None, "", False
  source = "" if card is None else getattr(card.source, "repo", None) or getattr(card.source, "package", None) or "ring"
  try:
    holding = store.holding(entry.id)
    if holding is not None:
      held, total, is_ours = holding.held_bytes(), holding.manifest.total_bytes, holding.is_ours
      verified = holding.is_verified()
      where = str(entry.path if card is None and entry.path is not None else holding.base)
  except (ExoError, OSError) as error:
    log(1, "%s: %s", entry.id, error)
  layers = card.layers if card else None
  return ModelState(entry.id, entry.pretty_name, held, total, layers, where, source, is_ours, verified)
