"""By which names models are known beside those that users type: versions of one, files of one form, what only neighbours have."""

from __future__ import annotations

import re

from exo.gguf_names import quantization_of
from exo.model_card import HubSource, ModelCard, NeighbourSource, parse_repo
from exo.model_file import ModelFile

_REVISION, _COMMIT = re.compile(r"[A-Za-z0-9._-]{1,80}"), re.compile(r"[0-9a-f]{40}")
_VERSION = re.compile(r"(.+)#([A-Za-z0-9._-]{1,80})")


def name_of_version(model_id: str, card: ModelCard | None, file: ModelFile) -> str | None:
  """The name under which other files of a model are kept beside those that have its name here; None where they cannot be had
  by any."""
  for source in () if card is None else card.sources:
    if isinstance(source, HubSource) and source.repo == file.source:
      variant = (quantization_of(file.name) if card is not None and card.repos else "") or source.variant
      name = f"{source.repo}@{file.revision}{f':{variant}' if variant else ''}"
      return name if parse_repo(name) is not None else None
  return f"{model_id}#{file.revision}" if _REVISION.fullmatch(file.revision) else None


def version_in(name: str) -> tuple[str, str]:
  """What `name_of_version` has made a name of: a model's name and a revision, "" for any other name."""
  if (match := _VERSION.fullmatch(name)) is not None:
    return match[1], match[2]
  repo = parse_repo(name)
  if repo is None or not _COMMIT.fullmatch(repo.revision):
    return name, ""
  return repo.repo + (f":{repo.variant}" if repo.variant else ""), repo.revision


def name_of_files(card: ModelCard) -> str:
  """By which name every node finds these very files, whatever form of the model it would take itself."""
  source = card.source
  if not isinstance(source, HubSource) or not card.repos:
    return card.id
  revision = "" if source.revision == "main" else f"@{source.revision}"
  return source.repo + revision + (f":{source.variant}" if source.variant else "")


def neighbour_card(name: str) -> ModelCard:
  return ModelCard(name, name, NeighbourSource(name))
