"""The model that a request means, for whoever may ask for it."""

from __future__ import annotations

import contextlib

from exo.api.caller import caller
from exo.download.model_store import ModelEntry
from exo.errors import ModelNotFoundError, NotAllowedError
from exo.orchestration.model_catalog import ModelInfo
from exo.orchestration.node import Node


async def asked_model(node: Node, name: str | None) -> ModelInfo:
  """As `Node.model`. Raises `NotAllowedError` where this node would have to fetch it for a key that may not ask that."""
  if name and not caller().may_fetch:
    with contextlib.suppress(ModelNotFoundError):  # `Node.model` says so
      meant = await node.meant(name)
      if meant != node.config.default_model:
        await _check_reach(node, await node.catalog.store.find_anywhere(meant))
  return await node.model(name)


async def asked_entry(node: Node, name: str) -> ModelEntry:
  """The same model before anything of it is opened or fetched. Raises as `asked_model` does, of what needs no fetching."""
  meant = await node.meant(name)
  entry = await node.catalog.store.find_anywhere(meant)
  is_known = entry.card is None or entry.card.kind is not None  # what there is to say of it needs no hub
  if not is_known and meant != node.config.default_model and not caller().may_fetch:
    await _check_reach(node, entry)
  node.catalog.store.vouch(meant)
  return entry


async def _check_reach(node: Node, entry: ModelEntry) -> None:
  if not await node.catalog.store.is_within_reach(entry):
    raise NotAllowedError(
        f"{entry.id} is not here yet, and fetching it is for admins (`exo pull`): this API key has the role user"
    )
