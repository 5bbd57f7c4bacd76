"""The profiles of models by their names: files are looked at once, and anew when other ones lie there."""

from __future__ import annotations

from exo.download.disk_stamp import Stamp
from exo.download.model_store import DUMMY_MODEL, ModelEntry, ModelStore
from exo.errors import ExoError, in_words
from exo.log import log
from exo.oldest import forget_oldest
from exo.orchestration.file_identity import file_of
from exo.orchestration.model_catalog import open_model
from exo.orchestration.model_profile import ModelProfile, profile_of_card, profile_of_checkpoint

_MOST_KNOWN = 1024


class ModelProfiles:
  """`look` blocks on the disk, asks no network, and may be called from any thread."""
  def __init__(self, store: ModelStore) -> None:
    self.store = store
    self._known: dict[str, tuple[Stamp, ModelProfile]] = {}

  def look(self, entry: ModelEntry) -> ModelProfile:
    """Of what lies on this machine, its head at least; else what exo's registry says."""
    if not entry.stamp and entry.id != DUMMY_MODEL:
      return _unopened(entry)
    known = self._known.get(entry.id)
    if known is None or known[0] != entry.stamp:  # two who look at the same time both look
      known = entry.stamp, self._open(entry)
      self._known[entry.id] = known
      forget_oldest(self._known, _MOST_KNOWN)
    return known[1]

  def _open(self, entry: ModelEntry) -> ModelProfile:
    try:
      path = entry.path
      if path is None and entry.card is not None:
        holding = self.store.sound_holding(entry.card)
        path = None if holding is None else holding.openable
      if path is None:
        return _unopened(entry)
      checkpoint = open_model(entry, path)
      try:
        holding = self.store.holding_of_entry(entry)
        file = file_of(checkpoint, holding, self.store.contents, whole=entry.path is not None)
        return profile_of_checkpoint(checkpoint, file)
      finally:
        checkpoint.close()
    except (ExoError, OSError) as error:
      log(1, "%s cannot be looked at: %s", entry.id, in_words(error))
      return ModelProfile(flaw=error.message if isinstance(error, ExoError) else in_words(error))


def _unopened(entry: ModelEntry) -> ModelProfile:
  return ModelProfile() if entry.card is None else profile_of_card(entry.card)
