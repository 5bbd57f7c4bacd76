"""What nodes say of themselves, greetings and heartbeats, to protobuf and back; strings and lists of others are bounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from typing import Annotated, Any

import msgspec

from exo import __version__
from exo.bounds import (
    MAX_FINGERPRINT,
    MAX_LAYERS,
    MAX_MODEL_ID,
    MAX_PLAN_ID,
    MAX_STAGES,
    MAX_WORKERS,
    is_node_id,
    is_worker_name,
    real,
)
from exo.errors import ProtocolError, one_line
from exo.inference.engine_news import MAX_ENGINES, MAX_NAME, MAX_REASON, EngineNews
from exo.inference.offer import EngineOffer
from exo.inference.shard import Shard
from exo.networking import messages as m
from exo.networking.grpc import node_service_pb2 as pb
from exo.networking.peer_messages import (
    Ailment,
    Heartbeat,
    Hello,
    PeerLink,
    PlanPace,
    PlanRoom,
    Rumour,
    ShardMemory,
    WorkerBeat,
    WorkerOffer,
)
from exo.node_names import name_in
from exo.topology.device_capabilities import DeviceCapabilities, DeviceFlops
from exo.topology.loaded_for import LoadedFor
from exo.topology.weight_memory import WeightMemory

STREAM_KINDS = ("data", "control", "heartbeat", "bulk")
_MAX_LINKS = 256
_MAX_PACES = 64
_MOST_OFFERED = 2**16  # bytes of a worker's engines: a few hundred types of models for each
_ALWAYS_SAID = ("encodings", )  # what this version can read by default need not be what another can
_OFFERS = msgspec.msgpack.Decoder(Annotated[tuple[EngineOffer, ...], msgspec.Meta(max_length=MAX_ENGINES)])
_NEWS, _MOST_NEWS = msgspec.msgpack.Decoder(EngineNews), 2**15
_MAX_KEYS = 8
_MAX_ENCODINGS, _MOST_FIXED = 64, 2**40
_MAX_AILMENTS = 64  # as many as a worker remembers of itself
_MAX_SHARDS = 256
_MAX_LOCAL_MODELS = 256
_MOST_MB, _MOST_MS, _MOST_S, _MOST_TFLOPS = 2**40, 1e9, 1e12, 1e9
_MOST_BYTES_S, _MOST_C, _MOST_W = 1e13, 1e3, 1e6


class OtherProtocolError(ProtocolError):
  """A node, `node` by its greeting, of a version that cannot be linked with this one."""


def shard_out(shard: Shard) -> pb.Shard:
  return pb.Shard(
      model_id=shard.model_id, start_layer=shard.start_layer, end_layer=shard.end_layer, n_layers=shard.n_layers
  )


def shard_in(shard: pb.Shard) -> Shard:
  if len(shard.model_id) > MAX_MODEL_ID or shard.n_layers > MAX_LAYERS:
    raise ProtocolError(f"a part of a model with {shard.n_layers} layers, or with an endless name")
  try:
    return Shard(shard.model_id, shard.start_layer, shard.end_layer, shard.n_layers)
  except ValueError as error:
    raise ProtocolError(str(error)) from error


def _capabilities_out(c: DeviceCapabilities) -> pb.DeviceCapabilities:
  return pb.DeviceCapabilities(
      model=c.model, chip=c.chip, memory=c.memory, fp32=c.flops.fp32, fp16=c.flops.fp16, int8=c.flops.int8
  )


def _capabilities_in(c: pb.DeviceCapabilities) -> DeviceCapabilities:
  flops = DeviceFlops(*(real(number, _MOST_TFLOPS) for number in (c.fp32, c.fp16, c.int8)))
  return DeviceCapabilities(c.model[:200], c.chip[:200], max(0, c.memory), flops)


def _weights_in(told: WeightMemory) -> WeightMemory:
  return replace(
      told,
      plain=_bounded(told.plain),
      packed=_bounded(told.packed),
      each=tuple((one_line(name)[:MAX_NAME], _bounded(held)) for name, held in told.each[:_MAX_ENCODINGS]),
      beside=_bounded(told.beside),
      copies=_bounded(told.copies),
      fixed_bytes=min(max(0, told.fixed_bytes), _MOST_FIXED),
      rows=_bounded(told.rows),
      cache=_bounded(told.cache)
  )


def _bounded(part: float) -> float:
  return part if 0 <= part <= 16 else 0.0  # also not a number


def hello_out(hello: Hello, stream: str) -> pb.Item:
  body = pb.Hello(
      node_id=hello.node_id,
      incarnation=hello.incarnation,
      stream=stream,
      port=hello.port,
      capabilities=_capabilities_out(hello.capabilities),
      workers=[_offer_out(worker) for worker in hello.workers],
      version=hello.version,
      local_models=hello.local_models,
      protocol=m.PROTOCOL_VERSION,
      name=hello.name
  )
  return pb.Item(hello=body)


def hello_in(item: pb.Item) -> tuple[Hello, str]:
  """(who it is, which kind of stream this is). Raises `OtherProtocolError`, in words that are as true on the other side."""
  h, own = item.hello, m.PROTOCOL_VERSION
  if h.protocol != own:  # what else its greeting says may be written otherwise, too
    who = h.node_id if is_node_id(h.node_id) else "a node"
    raise OtherProtocolError(
        f"{who} speaks protocol {h.protocol} (exo {one_line(h.version[:40]) or 'of no version'}), which cannot be linked "
        f"with protocol {own} (exo {__version__}): update the nodes of protocol {min(h.protocol, own)}",
        node=who
    )
  if not is_node_id(h.node_id) or h.port > 65535 or h.stream not in STREAM_KINDS:
    raise ProtocolError("a stream began with a malformed greeting")
  capabilities, workers = _capabilities_in(h.capabilities), tuple(map(_offer_in, h.workers[:MAX_WORKERS + 1]))
  _check_workers(workers, capabilities.memory)
  hello = Hello(
      h.node_id, h.incarnation, h.port, capabilities, workers, h.version[:40],
      tuple(name[:MAX_MODEL_ID] for name in h.local_models[:_MAX_LOCAL_MODELS]), name_in(h.name)
  )
  return hello, h.stream


def _offer_out(worker: WorkerOffer) -> pb.WorkerOffer:
  engines = msgspec.msgpack.encode([_without_defaults(offer) for offer in worker.engines])
  return pb.WorkerOffer(name=worker.name, engines=engines, memory_mb=worker.memory_mb)


def _offer_in(w: pb.WorkerOffer) -> WorkerOffer:
  return WorkerOffer(w.name, _engines_in(w.engines), max(0, w.memory_mb))


def _without_defaults(value: Any) -> Any:
  """A greeting tells of engines many times: whoever reads it knows what is not said."""
  if not is_dataclass(value):
    return value
  said = {one.name: getattr(value, one.name) for one in fields(value)}
  return {
      one.name: _without_defaults(said[one.name])
      for one in fields(value) if one.name in _ALWAYS_SAID or said[one.name] !=
      (one.default if one.default_factory is MISSING else one.default_factory())
  }


def _engines_in(data: bytes) -> tuple[EngineOffer, ...]:
  if len(data) > _MOST_OFFERED:
    raise ProtocolError("a greeting tells endlessly of engines")
  try:
    offers = _OFFERS.decode(data)
  except (msgspec.MsgspecError, ValueError, RecursionError) as error:  # a string that is no UTF-8 is a ValueError
    raise ProtocolError("a greeting tells of engines in no known form") from error
  return tuple(
      replace(
          offer,
          name=one_line(offer.name)[:MAX_NAME],
          device=one_line(offer.device)[:MAX_NAME],
          reason=one_line(offer.reason)[:MAX_REASON],
          version=one_line(offer.version)[:MAX_NAME],
          missing=one_line(offer.missing)[:MAX_REASON],
          weights=_weights_in(offer.weights)
      ) for offer in offers
  )


def _news_out(news: EngineNews) -> bytes:
  return msgspec.msgpack.encode(news) if news.speeds or news.broken or news.settled else b""


def _news_in(data: bytes) -> EngineNews:
  if not data:
    return EngineNews()
  if len(data) > _MOST_NEWS:
    raise ProtocolError("a heartbeat tells endlessly of engines")
  try:
    news = _NEWS.decode(data)
  except (msgspec.MsgspecError, ValueError, RecursionError) as error:
    raise ProtocolError("a heartbeat tells of engines in no known form") from error
  return replace(news, broken={name: one_line(why) for name, why in news.broken.items()})


def _check_workers(workers: tuple[WorkerOffer, ...], memory_mb: int) -> None:
  """Raises `ProtocolError` for workers that cannot be those of one node."""
  names = {worker.name for worker in workers}
  if not 0 < len(workers) <= MAX_WORKERS or len(names) < len(workers) or not all(map(is_worker_name, names)):
    raise ProtocolError("a greeting names no workers, too many, or some that cannot be")
  if not all(worker.engines for worker in workers):
    raise ProtocolError("a greeting names a worker without an engine")
  if sum(worker.memory_mb for worker in workers) > memory_mb:
    raise ProtocolError("the workers of a greeting offer more memory than their node")


def _state_out(worker: WorkerBeat) -> pb.WorkerBeat:
  return pb.WorkerBeat(
      name=worker.name,
      usable_mb=worker.usable_mb,
      used_mb=worker.used_mb,
      loaded=[shard_out(s) for s in worker.loaded],
      problem=worker.problem,
      news=_news_out(worker.news),
      pinned=[pb.WorkerBeat.Pinned(model_id=name, mb=mb) for name, mb in worker.pinned],
      loading=[pb.WorkerBeat.Loading(model_id=name, done=done) for name, done in worker.loading],
      memory=[
          pb.WorkerBeat.Memory(
              engine=x.engine,
              planned_loading_mb=x.planned_loading_mb,
              planned_held_mb=x.planned_held_mb,
              loading_mb=x.loading_mb,
              held_mb=x.held_mb
          ) for x in worker.memory
      ]
  )


def _states_in(told: Sequence[pb.WorkerBeat]) -> tuple[WorkerBeat, ...]:
  """Raises `ProtocolError` for workers that cannot be those of one node."""
  names = {worker.name for worker in told[:MAX_WORKERS + 1]}
  if len(told) > MAX_WORKERS or len(names) < len(told) or not all(map(is_worker_name, names)):
    raise ProtocolError("a heartbeat names too many workers, or some that cannot be")
  return tuple(map(_state_in, told))


def _state_in(w: pb.WorkerBeat) -> WorkerBeat:
  return WorkerBeat(
      w.name, int(real(w.usable_mb, _MOST_MB)), int(real(w.used_mb, _MOST_MB)),
      tuple(shard_in(s) for s in w.loaded[:_MAX_SHARDS]), one_line(w.problem[:MAX_REASON]), _news_in(w.news),
      tuple((pinned.model_id[:MAX_MODEL_ID], int(real(pinned.mb, _MOST_MB))) for pinned in w.pinned[:_MAX_SHARDS]),
      tuple((one_line(of.model_id[:MAX_MODEL_ID]), real(of.done, 1.0)) for of in w.loading[:_MAX_SHARDS]),
      tuple(map(_memory_in, w.memory[:_MAX_SHARDS]))
  )


def _memory_in(x: pb.WorkerBeat.Memory) -> ShardMemory:
  figures = (x.planned_loading_mb, x.planned_held_mb, x.loading_mb, x.held_mb)
  return ShardMemory(one_line(x.engine[:MAX_NAME]), *(int(real(mb, _MOST_MB)) for mb in figures))


def heartbeat_out(message: Heartbeat) -> dict[str, Any]:
  return {
      "heartbeat": pb.Heartbeat(
          number=message.number,
          is_answer=message.is_answer,
          active=message.active,
          workers=[_state_out(worker) for worker in message.workers],
          load=message.load,
          frames=message.frames,
          links=[
              pb.PeerLink(node_id=p.node_id, rtt_ms=p.rtt_ms, interface=p.interface, bytes_per_s=p.bytes_per_s)
              for p in message.links
          ],
          cpu_s=message.cpu_s,
          rss_mb=message.rss_mb,
          paces=[_pace_out(p) for p in message.paces],
          leaving=message.leaving,
          data_bytes=message.data_bytes,
          data_read_bytes=message.data_read_bytes,
          link_keys=message.link_keys,
          retired=message.retired,
          ailments=[
              pb.Ailment(model_id=a.model_id, fingerprint=a.fingerprint, reason=a.reason, worker=a.worker)
              for a in message.ailments
          ],
          rumours=[
              pb.Rumour(node_id=r.node_id, incarnation=r.incarnation, beat=r.beat, address=r.address)
              for r in message.rumours
          ],
          rooms=[_room_out(room) for room in message.rooms],
          temperature_c=message.temperature_c,
          power_w=message.power_w
      )
  }


def heartbeat_in(h: pb.Heartbeat) -> Heartbeat:
  return Heartbeat(
      h.number, h.is_answer, h.active, _states_in(h.workers), real(h.load, 1.0), h.frames,
      tuple(
          PeerLink(p.node_id, real(p.rtt_ms, _MOST_MS), p.interface[:40], real(p.bytes_per_s, _MOST_BYTES_S))
          for p in h.links[:_MAX_LINKS] if is_node_id(p.node_id)
      ), real(h.cpu_s, _MOST_S), h.rss_mb, tuple(_pace_in(p) for p in h.paces[:_MAX_PACES]), h.leaving,
      tuple(
          Rumour(r.node_id, r.incarnation, r.beat, r.address[:80]) for r in h.rumours[:_MAX_LINKS]
          if is_node_id(r.node_id)
      ), h.data_bytes, h.data_read_bytes, tuple(key[:64] for key in h.link_keys[:_MAX_KEYS]),
      tuple(
          Ailment(
              one_line(a.model_id[:MAX_MODEL_ID]), a.fingerprint[:MAX_FINGERPRINT], one_line(a.reason[:MAX_REASON]),
              a.worker
          ) for a in h.ailments[:_MAX_AILMENTS] if is_worker_name(a.worker)
      ), tuple(map(_room_in, h.rooms[:_MAX_PACES])), h.retired, real(h.temperature_c, _MOST_C),
      real(h.power_w, _MOST_W)
  )


def _room_out(r: PlanRoom) -> pb.PlanRoom:
  return pb.PlanRoom(
      plan_id=r.plan_id,
      model_id=r.model_id,
      context=r.loaded_for.context or 0,
      parallel=r.loaded_for.parallel or 0,
      max_sequences=r.max_sequences,
      max_context=r.max_context,
      max_kv_tokens=r.max_kv_tokens,
      kept=r.kept
  )


def _room_in(r: pb.PlanRoom) -> PlanRoom:
  return PlanRoom(
      r.plan_id[:MAX_PLAN_ID], one_line(r.model_id[:MAX_MODEL_ID]), LoadedFor(r.context or None, r.parallel or None),
      r.max_sequences, r.max_context, r.max_kv_tokens, r.kept
  )


def _pace_out(p: PlanPace) -> pb.PlanPace:
  return pb.PlanPace(
      plan_id=p.plan_id,
      lap_ms=p.lap_ms,
      compute_ms=p.compute_ms,
      wait_ms=p.wait_ms,
      hop_ms=p.hop_ms,
      hop_p99_ms=p.hop_p99_ms,
      transport_ms=p.transport_ms,
      laps=p.laps,
      drafted=p.drafted,
      accepted=p.accepted,
      wasted=p.wasted
  )


def _pace_in(p: pb.PlanPace) -> PlanPace:
  def ms(number: float) -> float:
    return real(number, _MOST_MS)

  return PlanPace(
      p.plan_id[:MAX_PLAN_ID], ms(p.lap_ms), tuple(map(ms, p.compute_ms[:MAX_STAGES])),
      tuple(map(ms, p.wait_ms[:MAX_STAGES])), ms(p.hop_ms), ms(p.hop_p99_ms), ms(p.transport_ms), p.laps, p.drafted,
      p.accepted, real(p.wasted, 1.0)
  )
