"""The models that exo knows by name, and how a name becomes a card.

Shapes, types, contexts, counts, sampling and repositories are as they are remembered from what is published: no file here shows
that they are right, and nothing compares them with the hub. (The default model's file is known by its hash.) They serve lists and first
guesses, what fits and how large a download would be, until a model's own files are read, which count from then on. The number of
weights, hence sizes, is computed from shapes (`model_card.Shape`) where our sum covers the architecture. Repositories are meant to be
those that anyone may read where such exist. The cards themselves are in `registry/`, a file for each maker or kind.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from exo.model_card import HubSource, ModelCard, WheelSource, parse_repo
from exo.registry.catalogue import CARDS
from exo.sampling_defaults import SILENT, SamplingDefaults

__all__ = ["BUILT_IN", "CARDS", "HubSource", "ModelCard", "Registry", "WheelSource", "card_of", "is_repo_id", "nearest"]


@dataclass(frozen=True)
class Registry:
  """Cards by the names that users type. `notes` are what is wrong with the user's own (`user_models.py`), in sentences."""
  cards: Mapping[str, ModelCard]
  notes: tuple[str, ...] = ()

  def card_of(self, name: str) -> ModelCard | None:
    """The card of a known name (`id:mlx`, `id:Q8_0` for another form of it), or one made up for a Hugging Face id
    (`org/name@revision:Q4_K_M`); None for anything else."""
    if name in self.cards:
      return self.cards[name]
    known, _, form = name.partition(":")
    if known in self.cards:
      card = self.cards[known].taken_as(form)
      return replace(card, id=name) if card else None
    repo = parse_repo(name)
    return ModelCard(name, repo.repo.partition("/")[2], repo) if repo else None

  def card_of_folder(self, folder: str) -> ModelCard | None:
    """The card of the form that is kept in a folder of this name (`HubSource.folder`); None for what no card names."""
    repo, _, variant = folder.partition("+")
    known = self._by_folder.get(repo)
    if known is None:
      return None
    card_id, name = known
    if not variant:
      return self.card_of(f"{card_id}:{name}")
    return self.card_of(f"{card_id}:{variant}") if name == "gguf" else None

  def is_registered(self, source: HubSource) -> bool:
    """Whether a card names this repository."""
    return source.repo in self._repos

  def sampling_of(self, name: str) -> SamplingDefaults:
    """A known name means the same whichever of its repositories is asked for, and so does the repository itself."""
    if (card := self.cards.get(name.partition(":")[0])) is not None:
      return card.sampling
    repo = parse_repo(name)
    return SILENT if repo is None else self._sampling_by_repo.get(repo.repo, SILENT)

  @cached_property
  def _sampling_by_repo(self) -> dict[str, SamplingDefaults]:
    cards = self.cards.values()
    return {source.repo: card.sampling for card in cards for source in card.sources if isinstance(source, HubSource)}

  @cached_property
  def _by_folder(self) -> dict[str, tuple[str, str]]:
    return {source.folder: (card.id, name) for card in self.cards.values() for name, source in card.repos.items()}

  @cached_property
  def _repos(self) -> frozenset[str]:
    sources = (source for card in self.cards.values() for source in card.sources)
    return frozenset(source.repo for source in sources if isinstance(source, HubSource))


BUILT_IN = Registry(CARDS)


def is_repo_id(name: str) -> bool:
  """Whether a name has the form of a Hugging Face repository: `org/name`, no dots that climb."""
  return parse_repo(name) is not None


def card_of(name: str) -> ModelCard | None:
  """As `Registry.card_of`, of what exo knows by itself."""
  return BUILT_IN.card_of(name)


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
  """The known names that look most like `name`."""
  by_lower = {k.lower(): k for k in known}
  close = difflib.get_close_matches(name.lower(), by_lower, count, cutoff=0.5)
  return [by_lower[k] for k in close]
