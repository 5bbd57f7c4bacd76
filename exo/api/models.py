"""`/v1/models`: what can be answered now, or everything that can be asked for, and what there is to say of each model."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from exo.api.asked_model import asked_entry
from exo.api.errors import json_response
from exo.errors import without_paths
from exo.orchestration.listed_model import ListedModel
from exo.orchestration.model_list import list_models, listed_model
from exo.orchestration.node import Node
from exo.topology.fit import Fit

_YES = ("", "1", "true", "yes")


async def models(request: web.Request, node: Node) -> web.Response:
  """What can be answered now, by this node or its ring; with `?all=true` every model that can be asked for by name."""
  everything = request.query.get("all", "no").lower() in _YES
  listed = await list_models(node, everything=everything)
  return json_response({"object": "list", "data": [describe(model, node.config.default_temp) for model in listed]})


async def model(request: web.Request, node: Node) -> web.Response:
  """One model, by every name by which it can be asked for. A repository that nobody here has is looked up on the hub."""
  entry = await asked_entry(node, request.match_info["model"])
  listed = await listed_model(node, entry)
  found = describe(listed, node.config.default_temp)
  if entry.card is not None and entry.card.kind is None and not listed.in_ring:
    manifest = await node.catalog.store.published(entry)
    found |= {"size": manifest.total_bytes, "format": "gguf" if manifest.is_gguf else "safetensors"}
  return json_response(found)


def describe(model: ListedModel, default_temp: float | None) -> dict[str, Any]:
  """`max_model_len` is how many tokens there is room for as things are, `context_length` for how many the model was made.
  `sampling` is what this node draws its answers with where a request says nothing.
  """
  state, profile, fit = model.state, model.profile, model.fit
  return {
      "id": model.id, "object": "model", "created": int(state.changed_at), "owned_by": "exo", "name": state.pretty_name,
      "context_length": profile.context, "max_model_len": model.max_context, "capabilities": profile.capabilities,
      "quantization": profile.packing or None, "format": profile.format or None, "size": state.total_bytes,
      "known_deviations": model.known_deviations, "warning": model.warning or None, "forms": state.forms,
      "layers": model.layers, "sampling": model.sampling.at(default_temp).said, "ready": model.is_ready, "where": {
          "here": round(state.fraction, 4), "in_ring": model.in_ring, "nodes": model.nodes, "loaded": model.loaded,
          "source": state.source or None
      }, "fit": describe_fit(fit)
  }


def describe_fit(fit: Fit) -> dict[str, Any]:
  return {"where": fit.where, "missing_mb": fit.missing_mb, "reason": without_paths(fit.reason) or None}
