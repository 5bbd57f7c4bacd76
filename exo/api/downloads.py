"""Models on this machine: what is here, what is coming, fetching, cancelling and deleting."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from msgspec import Struct

from exo.api.errors import json_response
from exo.api.handlers import WithNode
from exo.api.models import describe_fit
from exo.api.schema import read_body
from exo.api.sse import event_stream
from exo.download.progress import DownloadProgress
from exo.errors import ModelNotFoundError
from exo.orchestration.listed_model import ListedModel
from exo.orchestration.model_list import list_models
from exo.orchestration.node import Node
from exo.topology.fit import Where


class DownloadRequest(Struct):
  """`wait`: answer when it is done, or with what went wrong."""
  model: str
  wait: bool = False


def add_routes(router: web.UrlDispatcher, with_node: WithNode) -> None:
  router.add_get("/v1/download/progress", with_node(progress))
  router.add_get("/modelpool", with_node(modelpool))
  router.add_get("/initial_models", with_node(initial_models))
  router.add_post("/download", with_node(download))
  router.add_delete("/download/{model:.+}", with_node(cancel))
  router.add_delete("/models/{model:.+}", with_node(delete))
  router.add_delete("/v1/models/{model:.+}", with_node(delete))


async def progress(request: web.Request, node: Node) -> web.Response:
  """Downloads of every node of the ring, running and done since they started."""
  nodes = {node.node_id: node.sharing.downloads, **node.sharing.remote_downloads}
  names = node.names()
  data = [
      describe(node_id, item) | {"node_name": names.get(node_id, node_id)} for node_id, items in nodes.items()
      for item in items.values()
  ]
  return json_response({"object": "list", "data": data})


def describe(node_id: str, item: DownloadProgress) -> dict[str, Any]:
  left_s = item.left_s
  return {
      "node_id": node_id, "model": item.model_id, "downloaded_bytes": item.downloaded_bytes,
      "total_bytes": item.total_bytes, "percentage": round(100 * item.fraction, 1), "done": item.done,
      "status": item.status, "error": item.error or None, "bytes_per_s": round(item.bytes_per_s),
      "left_s": None if left_s is None else round(left_s, 1), "from_peers_bytes": item.from_peers_bytes,
      "from_hub_bytes": item.from_hub_bytes
  }


async def modelpool(request: web.Request, node: Node) -> web.StreamResponse:
  """One event a model, `[DONE]` at the end."""
  listed = await list_models(node, everything=True)
  default = await node.meant(node.config.default_model)
  async with event_stream(request) as (stream, response):
    for i, model in enumerate(listed):
      await stream.send({model.id: _pool_entry(node, model, default)}, more=i + 1 < len(listed))
  return response


async def initial_models(request: web.Request, node: Node) -> web.Response:
  """The names at once, for pages that fill in the rest from `/modelpool`."""
  entries = await node.catalog.listed()
  unknown = {
      "downloaded": None, "download_percentage": None, "total_size": None, "total_downloaded": None, "loading": True
  }
  return json_response({entry.id: {"name": entry.pretty_name, **unknown} for entry in entries})


def _pool_entry(node: Node, model: ListedModel, default: str) -> dict[str, Any]:
  """`fits` is null where nobody has looked at the model yet; `fit` is as in `/v1/models`."""
  state, fit = model.state, model.fit
  latest = node.sharing.downloads.get(state.id)
  loading = latest is not None and not latest.ended
  return {
      "name": state.pretty_name, "downloaded": state.is_whole, "download_percentage": round(100 * state.fraction, 1),
      "total_size": state.total_bytes, "total_downloaded": state.held_bytes, "loading": loading, "layers": model.layers,
      "source": state.source, "fits": None if fit.where is Where.UNKNOWN else fit.runs, "fit": describe_fit(fit),
      "ready": model.is_ready, "deletable": state.is_ours, "verified": state.verified,
      "speed": round(latest.bytes_per_s) if latest is not None and loading else None,
      "left_s": latest.left_s if latest is not None and loading else None,
      "error": latest.error if latest is not None and latest.error else None, "default": model.id == default,
      "quantization": model.profile.packing or None, "forms": state.forms, "context": model.max_context,
      "loaded": model.loaded
  }


async def download(request: web.Request, node: Node) -> web.Response:
  """Begin to fetch the whole model onto this node; progress tells of the rest."""
  body = await read_body(request, DownloadRequest)
  entry = await node.catalog.store.find_anywhere(body.model)
  node.catalog.store.vouch(entry.id)
  if body.wait:
    await node.catalog.store.fetch(entry)
    givers = node.catalog.store.unverified.get(entry.id, ())
    note = f", unverified: {', '.join(givers)} gave it, and it was not compared with the hub" if givers else ""
    return json_response({"status": "success", "message": f"{entry.id} is here{note}", "model": entry.id})
  node.fetch_in_background(entry)
  return json_response({"status": "success", "message": f"fetching {entry.id}", "model": entry.id})


async def cancel(request: web.Request, node: Node) -> web.Response:
  name = request.match_info["model"]
  if not node.catalog.store.cancel(name):
    raise ModelNotFoundError(f"no download of {name!r} is under way", model=name)
  return json_response({"status": "success", "message": f"the download of {name} was cancelled", "model": name})


async def delete(request: web.Request, node: Node) -> web.Response:
  name = request.match_info["model"]
  removed = await node.delete_model(name)
  message = f"what was made of it is deleted; {removed.stays}" if removed.stays else f"{name} was deleted"
  return json_response({
      "status": "success", "message": message, "model": name, "freed_bytes": removed.n_bytes, "object": "model",
      "id": name, "deleted": not removed.stays
  })
