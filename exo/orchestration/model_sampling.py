"""What a model's answers are drawn with where nobody says anything else: its files before exo's registry, and that before what suits most."""

from __future__ import annotations

from functools import cache

from exo.download.model_library import version_in
from exo.model_card import HubSource, parse_repo
from exo.models import CARDS
from exo.sampling_defaults import SILENT, SamplingDefaults

SUITS_MOST = SamplingDefaults(temperature=0.7, top_p=0.95)


def model_sampling(model_id: str, said: SamplingDefaults) -> SamplingDefaults:
  """Of a model whose files say `said`. Decided by its name alone, so that every node of a ring finds the same."""
  return said.over(_registered(version_in(model_id)[0])).over(SUITS_MOST)


def _registered(name: str) -> SamplingDefaults:
  """A known name means the same whichever of its repositories is asked for, and so does the repository itself."""
  if (card := CARDS.get(name.partition(":")[0])) is not None:
    return card.sampling
  repo = parse_repo(name)
  return SILENT if repo is None else _by_repository().get(repo.repo, SILENT)


@cache
def _by_repository() -> dict[str, SamplingDefaults]:
  return {
      source.repo: card.sampling
      for card in CARDS.values()
      for source in card.sources if isinstance(source, HubSource)
  }
