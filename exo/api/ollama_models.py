"""Ollama's routes about models: what is here, what is loaded, fetching, deleting, other names."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web
from msgspec import Struct

import exo
from exo.api.asked_model import asked_model
from exo.api.errors import json_response
from exo.api.handlers import WithNode
from exo.api.ndjson import Pieces, ndjson
from exo.api.schema import read_body
from exo.download.model_state import model_state
from exo.download.model_store import ModelEntry
from exo.errors import InvalidRequestError, ModelNotFoundError, NotDoneError, without_paths
from exo.inference.fill_in import fill_in_of
from exo.orchestration.listed_model import ListedModel
from exo.orchestration.model_catalog import ModelInfo
from exo.orchestration.model_list import list_models
from exo.orchestration.model_profile import ModelProfile
from exo.orchestration.node import Node
from exo.sampling_defaults import SamplingDefaults

_LOOK_S = 0.2
_STAYS = timedelta(days=365 * 100)  # as Ollama shows what is never unloaded by itself


class OllamaModelRequest(Struct):
  """`name` is what older clients say for `model`."""
  model: str | None = None
  name: str | None = None
  stream: bool | None = None

  @property
  def wanted(self) -> str:
    """Raises `InvalidRequestError` where there is none."""
    if not (name := self.model or self.name):
      raise InvalidRequestError("model: which one?", "model")
    return name.removesuffix(":latest")


class OllamaCopyRequest(Struct):
  source: str
  destination: str


def add_routes(router: web.UrlDispatcher, with_node: WithNode) -> None:
  router.add_get("/api/tags", with_node(tags))
  router.add_get("/api/ps", with_node(ps))
  router.add_post("/api/show", with_node(show))
  router.add_post("/api/pull", with_node(pull))
  router.add_post("/api/copy", with_node(copy))
  router.add_delete("/api/delete", with_node(delete))
  router.add_post("/api/create", with_node(create))
  router.add_post("/api/push", with_node(push))
  router.add_get("/api/version", with_node(version))


async def tags(request: web.Request, node: Node) -> web.Response:
  """The models that can be answered now, and other names that were given to them."""
  listed = await list_models(node, everything=False)
  known = {model.id: model for model in listed}
  copies = [
      _tag(known[target]) | {"name": name, "model": name} for name, target in node.aliases.listed().items()
      if target in known and name not in known
  ]
  return json_response({"models": [*map(_tag, listed), *copies]})


def _tag(model: ListedModel) -> dict[str, Any]:
  return {
      "name": model.id, "model": model.id, "modified_at": _when(model.state.changed_at), "size": model.state.total_bytes
      or 0, "digest": _digest(model.id, model.profile), "details": _details(model.profile)
  }


def _when(seconds: float) -> str:
  return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _digest(model_id: str, profile: ModelProfile) -> str:
  """What tells these files from others: another one for other weights, as far as anything is known of them."""
  return hashlib.sha256(f"{model_id} {profile.file.key}".encode()).hexdigest()


def _details(profile: ModelProfile) -> dict[str, Any]:
  family = "" if profile.facts is None else profile.facts.model_type
  weights = 0 if profile.size is None else profile.size.n_weights
  return {
      "parent_model": "", "format": profile.format, "family": family, "families": [family] if family else [],
      "parameter_size": _count(weights), "quantization_level": profile.packing
  }


def _count(weights: int) -> str:
  """"8.0B", "135M", "" for few."""
  if weights >= 10**9:
    return f"{weights / 10**9:.1f}B"
  return f"{weights / 10**6:.0f}M" if weights >= 10**6 else ""


async def ps(request: web.Request, node: Node) -> web.Response:
  """What is loaded in the ring now."""
  rooms = {room.model_id: room for _, room in node.rooms}
  listed = await list_models(node, everything=True) if rooms else []
  models = []
  for model in listed:
    if model.id in rooms:
      tag = _tag(model)
      del tag["modified_at"]
      on_gpu = not any(worker.name == "cpu" for worker in node.workers)
      models.append(
          tag | {
              "expires_at": _until(node, model.id), "size_vram": tag["size"] if on_gpu else 0, "context_length": rooms[
                  model.id].max_context
          }
      )
  return json_response({"models": models})


def _until(node: Node, model_id: str) -> str:
  """When it will be unloaded if nobody asks it anything."""
  left_s = node.keep_alive.left_s(model_id)
  return (datetime.now(UTC) +
          (_STAYS if left_s is None else timedelta(seconds=left_s))).isoformat().replace("+00:00", "Z")


async def show(request: web.Request, node: Node) -> web.Response:
  """One model: its template, parameters, capabilities and sizes."""
  model = await asked_model(node, (await read_body(request, OllamaModelRequest)).wanted)
  config = model.checkpoint.config
  entry = await node.catalog.find(model.id)
  profile = await asyncio.to_thread(node.profiles.look, entry)
  state = await asyncio.to_thread(model_state, node.catalog.store, entry)
  family = config.model_type
  weights = 0 if profile.size is None else profile.size.n_weights
  return json_response({
      "modelfile": f"FROM {model.id}\n", "parameters": _parameters(model.sampling.at(node.config.default_temp)),
      "template": model.tokenizer.chat_template or "", "details": _details(profile),
      "capabilities": _capabilities(model, profile), "modified_at": _when(state.changed_at), "model_info": {
          "general.architecture": family, "general.parameter_count": weights,
          f"{family}.context_length": config.max_context, f"{family}.embedding_length": config.hidden_size,
          f"{family}.block_count": config.n_layers
      }
  })


def _parameters(defaults: SamplingDefaults) -> str:
  """A line each, as in a modelfile."""
  return "\n".join(
      f"{'repeat_penalty' if name == 'repetition_penalty' else name:<30} {value:g}"
      for name, value in defaults.said.items()
  )


def _capabilities(model: ModelInfo, profile: ModelProfile) -> list[str]:
  """`insert`: it has tokens to fill gaps with. Vectors can be had of every model here."""
  return [*profile.capabilities, *(["insert"] if fill_in_of(model.tokenizer) else []), "embedding"]


async def pull(request: web.Request, node: Node) -> web.StreamResponse:
  """Fetch a model onto this node, and tell how far it is."""
  body = await read_body(request, OllamaModelRequest)
  entry = await node.catalog.store.find_anywhere(await node.meant(body.wanted))
  node.catalog.store.vouch(entry.id)
  if body.stream is False:
    await node.catalog.store.fetch(entry)
    return json_response({"status": "success"})
  return await ndjson(request, _pulling(node, entry))


async def _pulling(node: Node, entry: ModelEntry) -> Pieces:
  yield {"status": "pulling manifest"}
  digest = hashlib.sha256(entry.id.encode()).hexdigest()
  fetching = asyncio.create_task(node.catalog.store.fetch(entry), name=f"pull {entry.id}")
  told = None
  try:
    while not fetching.done():
      await asyncio.wait({fetching}, timeout=_LOOK_S)
      progress = node.sharing.downloads.get(entry.id)
      if progress is not None and progress != told and progress.total_bytes:
        told = progress
        yield {
            "status": f"pulling {digest[:12]}", "digest": f"sha256:{digest}", "total": progress.total_bytes,
            "completed": min(progress.downloaded_bytes, progress.total_bytes)
        }
    await fetching
  finally:
    fetching.cancel()
    await asyncio.gather(fetching, return_exceptions=True)
  yield {"status": "verifying sha256 digest"}
  yield {"status": "success"}


async def copy(request: web.Request, node: Node) -> web.Response:
  """Give a model another name on this node."""
  body = await read_body(request, OllamaCopyRequest)
  if not body.source:
    raise InvalidRequestError("source: which model is to have another name?", "source")
  source = (await node.catalog.find(await node.meant(body.source.removesuffix(":latest")))).id
  name = body.destination.removesuffix(":latest")
  try:
    taken = (await node.catalog.find(name)).id
  except (ModelNotFoundError, InvalidRequestError):
    taken = None
  if taken is not None:
    raise InvalidRequestError(f"there is a model {taken} already: choose another name", "destination")
  await asyncio.to_thread(node.aliases.add, name, source)
  return web.Response()


async def delete(request: web.Request, node: Node) -> web.Response:
  """Delete a model from this node, or a name that was given to one."""
  name = (await read_body(request, OllamaModelRequest)).wanted
  if not await asyncio.to_thread(node.aliases.remove, name):
    removed = await node.delete_model(name)
    if removed.stays:
      raise InvalidRequestError(without_paths(removed.stays))
  return web.Response()


async def create(request: web.Request, node: Node) -> web.Response:
  """Refused: models are files here."""
  raise NotDoneError(
      "exo makes no models of a modelfile: put a GGUF file or a model's folder where --model-dir says, give another name by "
      "/api/copy, and system prompts and parameters with each request (or --system-prompt)"
  )


async def push(request: web.Request, node: Node) -> web.Response:
  """Refused: exo publishes nothing."""
  raise NotDoneError("exo publishes no models: `hf upload` brings files to the Hugging Face hub")


async def version(request: web.Request, node: Node) -> web.Response:
  """The version of exo."""
  return json_response({"version": exo.__version__})
