"""What there is to say of each model before anybody opens it: how large, how much of it is here, and where."""

from __future__ import annotations

from dataclasses import dataclass

from exo.download.model_store import DUMMY_MODEL, ModelEntry, ModelStore
from exo.errors import ExoError
from exo.log import log
from exo.model_card import HubSource, ModelCard


@dataclass(frozen=True, slots=True)
class ModelState:
  """`total_bytes` and `layers` are None where nothing is known of them yet; `where` is empty for what is not here.
  `is_ours`: it lies in `EXO_HOME` and may be deleted. `verified`: whether all that is here was found to be what exo pins
  or the hub has; None for what is not here, and for files of the user's own. `changed_at`: when, as the clock tells it, a
  file of it was last written to; 0 for what is not here. `made_bytes` are those of files that engines made of it (`MadeFiles`).
  `form` is what the name stands for of a model that is known in several, "" of others; `forms` are all that may stand behind the name
  and a colon, as far as they are known.
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
  changed_at: float = 0.0
  made_bytes: int = 0
  form: str = ""
  forms: tuple[str, ...] = ()

  @property
  def is_whole(self) -> bool:
    return bool(self.where) and self.total_bytes is not None and self.held_bytes >= self.total_bytes

  @property
  def fraction(self) -> float:
    return min(1.0, self.held_bytes / self.total_bytes) if self.total_bytes else float(self.is_whole)


def model_state(store: ModelStore, entry: ModelEntry) -> ModelState:
  """Blocks on the disk; asks no network."""
  if entry.id == DUMMY_MODEL:  # it has no files, hence all of them
    return ModelState(entry.id, entry.pretty_name, 0, 0, None, "exo", "", False)
  card = entry.card
  verified: bool | None = None
  changed_at = 0.0
  held, total, where, is_ours = 0, card.total_bytes if card is not None else None, "", False
  made_bytes = 0
  quantizations: tuple[str, ...] = ()
  source = "" if card is None else getattr(card.source, "repo", None) or getattr(card.source, "package", None) or "ring"
  try:
    holding = store.holding_of_entry(entry)
    if holding is not None:
      held, total, is_ours = holding.held_bytes(), holding.manifest.total_bytes, holding.is_ours
      verified = holding.is_verified()
      quantizations = holding.manifest.quantizations
      changed_at = max((found[-1] / 1e9 for found in holding.stamp_of_content() if found), default=0.0)
      made_bytes = sum(made.n_bytes for made in store.made_of(entry))
      where = str(entry.path if card is None and entry.path is not None else holding.base)
  except (ExoError, OSError) as error:
    log(1, "%s: %s", entry.id, error)
  layers = card.layers if card else None
  return ModelState(
      entry.id, entry.pretty_name, held, total, layers, where, source, is_ours, verified, changed_at, made_bytes,
      *(_forms(card, quantizations) if card is not None and card.repos else ("", quantizations))
  )


def _forms(card: ModelCard, listed: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
  """The one that is taken and all that there are; `listed` are the quantizations that the repository says it has, where it was
  read."""
  form = card.form if isinstance(card.source, HubSource) else ""
  if form == "gguf":
    form = card.packing
  return form, (*card.repos, *listed) if listed else card.forms
