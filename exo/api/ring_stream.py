"""GET /v1/topology/stream: the ring as server-sent events, one whenever something in it has changed."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

from aiohttp import web

from exo.api.caller import caller
from exo.api.errors import json_response
from exo.api.sse import event_stream
from exo.errors import NotAllowedError
from exo.inference.shard import Shard
from exo.log import kept
from exo.model_file import ModelFile
from exo.networking.peer_messages import PlanRoom, ShardMemory
from exo.orchestration.node import Node
from exo.orchestration.ring_view import NodeView, RingView, WorkerView, ring_view
from exo.topology.weight_memory import StageBytes

_TICK_S = 0.2
_MB = 2**20


async def ring_stream(request: web.Request, node: Node) -> web.StreamResponse:
  """Each event is the whole picture, so that a reader may come and go. Never carries a prompt or an answer."""
  async with event_stream(request) as (stream, response):
    last: dict[str, Any] | None = None
    while True:
      value = ring_json(node)
      if value != last:
        await stream.send(value | {"time": time.time()})
        last = value
      await asyncio.sleep(_TICK_S)
  return response


async def node_log(request: web.Request, node: Node) -> web.Response:
  """The last lines of this node's log, for admins."""
  if not caller().is_admin:
    raise NotAllowedError("a node's log is for admins: for its own machine, or with an admin's API key")
  return json_response({"object": "list", "node_id": node.node_id, "data": kept()})


def ring_json(node: Node) -> dict[str, Any]:
  """What the page and `exo status --json` show."""
  view, warnings = ring_view(node), node.sense.warnings()
  return {
      "node_id": node.node_id,
      "active_node_id": view.active_node_id,
      "default_model": node.config.default_model,
      "exact": node.config.exact,
      "nodes": {n.node_id: _node_json(n)
                for n in view.nodes},
      "links": [{
          "nodes": list(link.node_ids), "rtt_ms": round(link.rtt_ms, 2), "interface": link.interface,
          "bytes_per_s": round(link.bytes_per_s)
      } for link in view.links],
      "rings": [{
          "model": chain.model_id, "stages": [
              _shard_json(stage.shard) | {"node_id": stage.node_id, "worker": stage.worker} for stage in chain.stages
          ]
      } for chain in view.chains],
      "files": [{"model": of.model_id} | file_json(of.file, of.why) for of in view.files],
      "requests": _requests_json(view),
      "loaded": [room_json(node_id, room) for node_id, room in view.rooms],
      "refused_models": dict(view.refused),
      "known_deviations": {
          room.model_id: told
          for _, room in view.rooms if (told := node.catalog.known_deviations(room.model_id))
      },
      "warnings": {of.model_id: warnings[of.file.key]
                   for of in view.files if of.file.key in warnings},
      "unverified": {model: list(givers)
                     for model, givers in sorted(node.catalog.store.unverified.items())},
      "total": {"memory": view.memory_mb, "tflops": round(view.tflops, 2)},
  }


def _node_json(view: NodeView) -> dict[str, Any]:
  flops = view.capabilities.flops
  return {
      "name": view.name,
      "model": view.capabilities.model,
      "chip": view.capabilities.chip,
      "memory": view.memory_mb,
      "used_memory": view.used_mb,
      "free_memory": view.free_mb,
      "flops": {"fp32": flops.fp32, "fp16": flops.fp16, "int8": flops.int8},
      "engine": view.engine,
      "device": view.device,
      "version": view.version,
      "address": view.address,
      "load": round(view.load, 2),
      "temperature_c": view.temperature_c or None,
      "power_w": view.power_w or None,
      "frames": view.frames,
      "layers": [_shard_json(shard) | {"model": shard.model_id} for shard in view.shards],
      "ailments": [{"model": a.model_id, "reason": a.reason, "worker": a.worker} for a in view.ailments],
      "workers": [worker_json(worker) for worker in view.workers],
  }


def worker_json(view: WorkerView) -> dict[str, Any]:
  """One device of a node; `problem` is "" while it can compute."""
  return {
      "name": view.name,
      "device": view.device,
      "engines": list(view.engines),
      "memory": view.memory_mb,
      "used_memory": view.used_mb,
      "free_memory": view.free_mb,
      "layers": [_shard_json(shard) | {"model": shard.model_id} for shard in view.shards],
      "loaded": [
          _shard_json(shard) | {"model": shard.model_id, "engine": memory.engine} | _memory_json(memory)
          for shard, memory in zip(view.shards, view.memory, strict=False)
      ],
      "problem": view.problem,
      "loading": {model_id: round(done, 3)
                  for model_id, done in view.loading},
  }


def planned_json(memory: StageBytes) -> dict[str, int]:
  """What a stage's plan says of its memory, in MB."""
  return {"loading": math.ceil(memory.loading / _MB), "held": math.ceil(memory.held / _MB)}


def _memory_json(memory: ShardMemory) -> dict[str, Any]:
  """In MB: the most while it was loaded, and what was held when it was (planned: with its caches)."""
  return {
      "planned_memory": {"loading": memory.planned_loading_mb, "held": memory.planned_held_mb},
      "measured_memory": {"loading": memory.loading_mb, "held": memory.held_mb},
  }


def room_json(node_id: str, room: PlanRoom) -> dict[str, Any]:
  """A loaded model: what it was loaded for, null being what fits, and what there is room for, in numbers and in words."""
  return {
      "model": room.model_id,
      "plan_id": room.plan_id,
      "node_id": node_id,
      "loaded_for": {"context": room.loaded_for.context, "parallel": room.loaded_for.parallel},
      "room": {"context": room.max_context, "parallel": room.max_sequences, "kv_tokens": room.max_kv_tokens},
      "kept": room.kept,
      "words": str(room),
  }


def file_json(file: ModelFile, why: str) -> dict[str, Any]:
  """What a plan runs: `key` tells it from other files, `repository` is "" for files of a user's own."""
  return {
      "name": file.name, "repository": file.source, "revision": file.revision, "size": file.size, "key": file.key,
      "why": why
  }


def _shard_json(shard: Shard) -> dict[str, Any]:
  return {"start_layer": shard.start_layer, "end_layer": shard.end_layer, "n_layers": shard.n_layers}


def _requests_json(view: RingView) -> dict[str, Any]:
  counts = view.requests
  return {
      "own": counts.own, "running": counts.running, "waiting": counts.waiting,
      "tokens_per_s": round(counts.tokens_per_s, 1)
  }
