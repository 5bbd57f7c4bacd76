"""Which list of a model's files a download goes by: what exo pins, what the hub says, and only then what neighbours say.

The hashes in that list decide what is taken for the model, so a list by a neighbour vouches for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from exo.download import hub
from exo.download.manifest import MAX_AUXILIARY_BYTES, Manifest, RepoFile
from exo.log import log
from exo.model_card import HubSource

_MOST_AUXILIARY_BYTES = 2 * MAX_AUXILIARY_BYTES  # all that is not weights together
_MOST_AUXILIARY_FILES, _MOST_WEIGHT_FILES = 1024, 1024
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Listing:
  """`given_by`: the node whose word the list is, "" for one that exo pins or that the hub gave."""
  manifest: Manifest
  given_by: str = ""


def of_neighbours(model_id: str, found: Mapping[str, Manifest]) -> Listing | None:
  """Where nodes hold different versions of a model, the one that most of them hold; None where none has a usable list."""
  usable = {
      node_id: replace(manifest, model_id=model_id)  # the same files may bear another name there
      for node_id, manifest in found.items() if _is_usable(model_id, node_id, manifest)
  }
  versions: dict[tuple[str, str], list[str]] = {}
  for node_id, manifest in sorted(usable.items()):
    versions.setdefault((manifest.source, manifest.revision), []).append(node_id)
  if not versions:
    return None
  chosen, holders = max(versions.items(), key=lambda item: (len(item[1]), item[0]))
  if len(versions) > 1:
    others = ", ".join(n for version, nodes in versions.items() if version != chosen for n in nodes)
    log(0, "%s: %s holds another version than %s", model_id, others, ", ".join(holders))
  return Listing(usable[holders[0]], holders[0])


def _is_usable(model_id: str, node_id: str, manifest: Manifest) -> bool:
  """Whether an honest node could hold this: weights, and no more beside them than any model has."""
  small = manifest.auxiliary
  if (
      manifest.weights and all("/" not in file.name and file.size <= MAX_AUXILIARY_BYTES for file in small)
      and sum(file.size for file in small) <= _MOST_AUXILIARY_BYTES and len(small) <= _MOST_AUXILIARY_FILES
      and len(manifest.weights) <= _MOST_WEIGHT_FILES
  ):
    return True
  log(1, "%s gives a list of files of %s that no model has: it is not used", node_id, model_id)
  return False


async def of_hub(model_id: str, source: HubSource, theirs: Manifest) -> Manifest:
  """The hub's list, of the version that the ring holds where that is one of the branch, else of the newest. One attempt;
  raises as `hub.hub_manifest` does."""
  newest = await hub.hub_manifest(model_id, source)
  if agrees(theirs, newest):
    return newest
  older = theirs.revision if is_commit_of(theirs, source.repo) and theirs.revision != newest.revision else None
  if older is not None and await hub.has_commit(source, older):
    hubs = await hub.hub_manifest(model_id, replace(source, revision=older))
    if hubs.revision == older and agrees(theirs, hubs):
      log(1, "%s: the ring holds an older version of %s, and so it stays", model_id, source.repo)
      return hubs
  log(
      0, "%s: what the ring holds under this name is not what %s holds on the hub, which is used", model_id, source.repo
  )
  return newest


def agrees(theirs: Manifest, hubs: Manifest) -> bool:
  """Whether every file of a list is one of the hub's; a hash that their list lacks contradicts nothing."""
  return not false_files(theirs, hubs)


def false_files(theirs: Manifest, hubs: Manifest) -> list[RepoFile]:
  """Those files of a list that the hub does not have, or has otherwise."""
  return [file for file in theirs.files if not _is_same(file, hubs.file(file.name))]


def _is_same(theirs: RepoFile, hubs: RepoFile | None) -> bool:
  if hubs is None or theirs.size != hubs.size:
    return False
  return theirs.sha256 in (None, hubs.sha256) and theirs.git_oid in (None, hubs.git_oid)


def is_commit_of(manifest: Manifest, repo: str) -> bool:
  """Whether a list claims to be of some commit of this repository."""
  return manifest.source == repo and _COMMIT.fullmatch(manifest.revision) is not None


def narrowed(hubs: Manifest, theirs: Manifest) -> Manifest:
  """The hub's list with those weight files only that are in theirs."""
  names = {file.name for file in theirs.weights}
  return replace(hubs, files=tuple(file for file in hubs.files if not file.is_weights or file.name in names))
