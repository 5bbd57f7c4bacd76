"""The HTTP server of a node: OpenAI's routes, those of older versions, and the web page."""

from __future__ import annotations

import asyncio
import errno
import functools
import secrets
import time
from collections.abc import Callable
from typing import Any

from aiohttp import web

from exo.api import (
    cancel,
    chat,
    completions,
    conversations,
    documents,
    downloads,
    embeddings,
    infill,
    messages,
    metrics,
    models,
    ollama,
    ollama_embed,
    ollama_models,
    openapi,
    page,
    ranking,
    responses,
    ring_stream,
    server_tools,
)
from exo.api.caller import TrustedProxies
from exo.api.connections import ConnectionTable
from exo.api.errors import error_middleware, json_response
from exo.api.exact import add_exact
from exo.api.guard import Guard
from exo.api.handlers import Handler, NodeHandler
from exo.api.kept_answers import KEPT_ANSWERS, KeptAnswers
from exo.api.keys import ApiKeys, ApiKeyStore
from exo.api.protocol import ApiProtocol
from exo.api.request_id import add_request_id, count_requests, request_id_middleware
from exo.api.told_headers import add_told
from exo.config import DEFAULT_API_PORT
from exo.errors import ConfigError
from exo.networking.address_rule import parse_address
from exo.networking.peer_messages import PlanPace
from exo.orchestration.node import Node
from exo.orchestration.ring_view import worker_views
from exo.topology.device_capabilities import DeviceCapabilities

MAX_BODY_BYTES = 16 * 2**20
# from the connection, or the answer before, until the next request's headers are complete
HEADER_TIMEOUT_S = 30.0

_SHOWN_REFUSALS = 20


class ChatGPTAPI:
  """Serves one node. `start` binds, `stop` closes; requests under way are cancelled with their connections.

  Clients have the same labels on all nodes with the same `label_salt`.
  """
  def __init__(
      self, node: Node, stop_node: Callable[[], None], local_token: str = "", label_salt: bytes | None = None
  ) -> None:
    self._node, self._stop_node = node, stop_node
    self._runner: web.AppRunner | None = None
    self._server: asyncio.Server | None = None
    self.port = 0
    keys = ApiKeys(node.config.api_key, ApiKeyStore(node.config.state_dir))
    self._guard = Guard(node.config, keys, local_token, label_salt or secrets.token_bytes(32))
    proxies = TrustedProxies(node.config.trusted_proxies)
    self.connections = ConnectionTable(many_clients=lambda host: proxies.trusts(parse_address(host)))
    middlewares = [
        error_middleware, self.connections.middleware, request_id_middleware,
        count_requests(node.meter), error_middleware, self._guard.middleware
    ]
    self.app = web.Application(middlewares=middlewares, client_max_size=MAX_BODY_BYTES)
    self._kept_answers = self.app[KEPT_ANSWERS] = KeptAnswers()
    self.app.on_response_prepare.append(add_request_id)
    self.app.on_response_prepare.append(add_exact)
    self.app.on_response_prepare.append(add_told)
    self.app.on_response_prepare.append(self._guard.add_cors_headers)
    self._add_routes()

  def _add_routes(self) -> None:
    router = self.app.router
    for prefix in ("", "/v1"):
      router.add_post(f"{prefix}/chat/completions", self._with_node(chat.chat_completions))
      router.add_get(f"{prefix}/chat/completions/{{id}}/stream", self._with_node(chat.stream_again))
      router.add_post(f"{prefix}/completions", self._with_node(completions.completions))
      router.add_post(f"{prefix}/chat/token/encode", self._with_node(chat.token_encode))
      router.add_get(f"{prefix}/models", self._with_node(models.models))
      router.add_get(f"{prefix}/models/{{model:.+}}", self._with_node(models.model))
      router.add_get(f"{prefix}/topology", self._topology)
      router.add_post(f"{prefix}/embeddings", self._with_node(embeddings.embeddings))
      router.add_post(f"{prefix}/documents/text", self._with_node(documents.document_text))
      responses.add_routes(router, prefix, self._with_node)
      conversations.add_routes(router, prefix, self._with_node)
      router.add_post(f"{prefix}/messages", self._with_node(messages.messages))
      router.add_post(f"{prefix}/messages/count_tokens", self._with_node(messages.count_tokens))
      router.add_post(f"{prefix}/cancel/{{id}}", self._with_node(cancel.cancel))
    for routes in (ollama, ollama_models, ollama_embed, ranking, infill, server_tools):
      routes.add_routes(router, self._with_node)
    router.add_get("/openapi.json", self._openapi)
    downloads.add_routes(router, self._with_node)
    router.add_post("/quit", self._quit)
    router.add_get("/healthcheck", self._health)
    router.add_get("/health", self._health)
    router.add_get("/v1/topology/stream", self._with_node(ring_stream.ring_stream))
    router.add_get("/v1/log", self._with_node(ring_stream.node_log))
    router.add_get("/metrics", self._with_node(metrics.metrics))
    router.add_get("/", page.page)
    router.add_get("/static/{name}", page.page)

  @property
  def keyed(self) -> bool:
    """Clients need a key."""
    return self._guard.keys.required

  def _with_node(self, handler: NodeHandler) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
      return await handler(request, self._node)

    handle.__doc__ = handler.__doc__
    return handle

  async def start(self) -> None:
    """Raises `ConfigError` when a port that was asked for is taken; where none was, any free one will do."""
    self._runner = web.AppRunner(self.app, handler_cancellation=True, shutdown_timeout=1.0)
    await self._runner.setup()
    server = self._runner.server
    assert server is not None
    loop = asyncio.get_running_loop()
    protocol = functools.partial(
        ApiProtocol,
        server,
        loop=loop,
        access_log=None,  # type: ignore[arg-type]
        keepalive_timeout=HEADER_TIMEOUT_S,
        lingering_time=2.0,
        auto_decompress=False
    )
    config = self._node.config
    host, wanted = config.chatgpt_api_host, config.chatgpt_api_port
    # so many are accepted in one turn of the loop, before those that make way for them are gone
    backlog = max(100, self.connections.limit // 4)
    for port in (DEFAULT_API_PORT, 0) if wanted is None else (wanted, ):
      try:
        self._server = await loop.create_server(
            self.connections.factory(protocol), host, port, reuse_address=True, backlog=backlog
        )
      except OSError as error:
        if error.errno == errno.EADDRINUSE and wanted is None and port:
          continue
        raise ConfigError(
            f"the API cannot listen on {host}:{port} ({error.strerror}): choose another --chatgpt-api-port, or leave it out"
        ) from error
      self.port = self._server.sockets[0].getsockname()[1]
      return

  async def stop(self) -> None:
    if self._server is not None:
      self._server.close()
      self._server = None
    await self._kept_answers.close()
    if self._runner is not None:
      await self._runner.cleanup()
      self._runner = None

  # the ring

  async def _topology(self, request: web.Request) -> web.Response:
    """`nodes`, `peer_graph` and `active_node_id` as ever, with engines, addresses, plans, layers and times beside them."""
    node, view = self._node, self._node.topology()
    peers = node.mesh.peers()
    mine, names = node.heartbeat(), node.names()
    nodes: dict[str, Any] = {}
    paces = {pace.plan_id: pace for pace in mine.paces}
    for node_id, capabilities in view.all_nodes():
      peer = peers.get(node_id)
      beat = mine if node_id == node.node_id else peer.heartbeat if peer else None
      hello = (peer.hello if peer else node.hello).since(beat)
      nodes[node_id] = {"name": names.get(node_id, node_id)} | _capabilities(capabilities) | {
          "engine": hello.engine, "device": hello.device, "version": hello.version
      }
      nodes[node_id]["workers"] = [ring_stream.worker_json(worker) for worker in worker_views(hello, beat)]
      if beat is not None:
        nodes[node_id] |= {"cpu_s": round(beat.cpu_s, 2), "rss_mb": beat.rss_mb}
        paces |= {pace.plan_id: pace for pace in beat.paces}
      if peer is not None:
        nodes[node_id] |= {
            "rtt_ms": round(peer.rtt_ms, 3), "address": peer.address, "interface": peer.interface,
            "suspect": peer.suspect, "codec_ms": round(peer.codec_ms, 3)
        }
    graph: dict[str, list[dict[str, str]]] = {node_id: [] for node_id in view.nodes}
    for edge in sorted(view.connections, key=lambda e: (e.from_id, e.to_id)):
      graph[edge.from_id].append({"from_id": edge.from_id, "to_id": edge.to_id, "description": edge.description})
    plans = [{
        "plan_id": plan.plan_id,
        "model": plan.model_id,
        "sequences": node.plans.sequences(plan.plan_id),
        "stages": [{
            "node_id": s.node_id, "worker": s.worker, "start_layer": s.shard.start_layer,
            "end_layer": s.shard.end_layer, "n_layers": s.shard.n_layers,
            "planned_memory": ring_stream.planned_json(s.memory)
        } for s in plan.stages],
        "file": ring_stream.file_json(plan.file, node.files.why(plan.model_id, plan.file)),
    } | _times(paces.get(plan.plan_id)) for plan in node.plans.plans]
    engine = {"name": node.engine.name, "device": node.engine.device, "reason": node.engine.reason}
    return json_response({
        "nodes": nodes, "peer_graph": graph, "active_node_id": view.active_node_id, "node_id": node.node_id,
        "ailments": [
            {"node_id": node_id, "worker": ailment.worker, "model": ailment.model_id, "reason": ailment.reason}
            for node_id, told in node.planner.left_out().items() for ailment in told
        ], "refused_models": node.planner.refused.told(), "loading": node.loading, "loading_bytes": node.loading_bytes,
        "loaded": [ring_stream.room_json(node_id, room) for node_id, room in node.rooms], "engine": engine,
        "plans": plans, "refused": node.refusals()[-_SHOWN_REFUSALS:], "problems": node.problems()[-_SHOWN_REFUSALS:],
        "time": time.time()
    })

  async def _openapi(self, request: web.Request) -> web.Response:
    """This API, described for machines."""
    return json_response(openapi.document(self.app.router))

  async def _quit(self, request: web.Request) -> web.Response:
    """End the node as SIGTERM does: what runs is finished first."""
    self._stop_node()
    return json_response({"status": "ok", "message": "this node finishes what runs and ends"})

  async def _health(self, request: web.Request) -> web.Response:
    if (reason := self._node.unhealthy) is not None:
      return json_response({"status": "unavailable", "reason": reason}, 503)
    ailments = {a.model_id: a.reason for a in self._node.plans.ailments()}
    return json_response({"status": "ok"} | ({"ailments": ailments} if ailments else {}))


def _capabilities(capabilities: DeviceCapabilities) -> dict[str, Any]:
  flops = capabilities.flops
  return {
      "model": capabilities.model, "chip": capabilities.chip, "memory": capabilities.memory,
      "flops": {"fp32": flops.fp32, "fp16": flops.fp16, "int8": flops.int8}
  }


def _times(pace: PlanPace | None) -> dict[str, Any]:
  """Of recent steps of decodes, once there are some; see `PlanPace`."""
  if pace is None:
    return {}
  return {
      "times": {
          "lap_ms": pace.lap_ms, "compute_ms": pace.compute_ms, "wait_ms": pace.wait_ms, "hop_ms": pace.hop_ms,
          "hop_p99_ms": pace.hop_p99_ms, "transport_ms": pace.transport_ms, "laps": pace.laps, "drafted": pace.drafted,
          "accepted": pace.accepted, "wasted": round(pace.wasted, 4)
      }
  }
