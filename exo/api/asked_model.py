"""The model that a request means, for whoever may ask for it."""

from __future__ import annotations

from exo.api.caller import caller
from exo.errors import ModelNotFoundError, NotAllowedError
from exo.orchestration.model_catalog import ModelInfo
from exo.orchestration.node import Node


async def asked_model(node: Node, name: str | None) -> ModelInfo:
  """As `Node.model`. Raises `NotAllowedError` where this node would have to fetch it for a key that may not ask that."""
  if name and name != node.config.default_model and not caller().may_fetch:
    store = node.catalog.store
    try:
      entry = await store.find_anywhere(name)
    except ModelNotFoundError:
      return await node.model(name)  # which says so, or knows the name as another's
    if not await store.is_within_reach(entry):
      raise NotAllowedError(
          f"{entry.id} is not here yet, and fetching it is for admins (`exo pull`): this API key has the role user"
      )
  return await node.model(name)
