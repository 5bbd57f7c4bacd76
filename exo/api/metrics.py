"""GET /metrics: what this node has done and how it is, in Prometheus' text format.

Names follow Prometheus' conventions: base units, `_total` for counters, everything under `exo_`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from aiohttp import web

from exo.orchestration.meter import Histogram
from exo.orchestration.node import Node
from exo.orchestration.ring_view import ring_view

if TYPE_CHECKING:
  from prometheus_client.core import Metric

_MB = 2**20


async def metrics(request: web.Request, node: Node) -> web.Response:
  from prometheus_client import CollectorRegistry, ProcessCollector  # imported when first asked for: 60 ms
  from prometheus_client.exposition import choose_encoder
  registry = CollectorRegistry(auto_describe=False)
  registry.register(_NodeCollector(node))
  ProcessCollector(registry=registry)
  encode, content_type = choose_encoder(request.headers.get("Accept", ""))
  return web.Response(body=encode(registry), headers={"Content-Type": content_type})


class _NodeCollector:
  """Made for one scrape."""
  def __init__(self, node: Node) -> None:
    self._node = node

  def collect(self) -> Iterable[Metric]:
    yield from self._identity()
    yield from self._clients()
    yield from self._stage()
    yield from self._queues()
    yield from self._ring()
    yield from self._downloads()

  def _identity(self) -> Iterable[Metric]:
    hello = self._node.hello
    yield _gauge(
        "exo_build_info", "Always 1; its labels tell what runs here.", ("version", "node", "engine", "device"),
        {(hello.version, hello.node_id, hello.engine, hello.device): 1}
    )
    yield _gauge("exo_healthy", "1 while this node can serve.", (), {(): float(self._node.unhealthy is None)})

  def _clients(self) -> Iterable[Metric]:
    meter = self._node.meter
    yield _counter(
        "exo_http_requests", "HTTP requests answered, by the route's pattern.", ("route", "method", "status"),
        meter.http_requests
    )
    yield _counter(
        "exo_requests",
        "Generations asked for at this node, by how they ended: completed, cancelled, failed, rejected.",
        ("model", "outcome"), meter.requests
    )
    yield _gauge(
        "exo_requests_in_progress", "Generations under way for this node's clients.", (),
        {(): len(self._node.activity.running)}
    )
    yield _counter("exo_prompt_tokens", "Prompt tokens of this node's clients.", ("model", ), meter.prompt_tokens)
    yield _counter(
        "exo_generated_tokens", "Tokens generated for this node's clients.", ("model", ), meter.generated_tokens
    )
    yield _histogram(
        "exo_time_to_first_token_seconds", "From a request's submission to its first token.", meter.first_token_s
    )
    yield _histogram(
        "exo_time_between_tokens_seconds", "From one token of an answer to its next.", meter.between_tokens_s
    )
    yield _counter(
        "exo_failovers", "Generations that went on elsewhere after a node was lost, by outcome.", ("outcome", ),
        meter.failovers
    )

  def _stage(self) -> Iterable[Metric]:
    meter = self._node.meter
    yield _counter("exo_frames", "Frames computed by this node's stages.", (), {(): meter.frames})
    yield _histogram("exo_stage_compute_seconds", "What this node's stage took for one frame.", meter.compute_s)
    yield _histogram("exo_step_seconds", "One frame through all its stages, seen from the first.", meter.step_s)
    yield _histogram(
        "exo_hop_seconds", "One hop of a frame, queueing included: a step less its stages' compute, by its hops.",
        meter.hop_s
    )
    yield _histogram("exo_batch_sequences", "Sequences computed together in one frame.", meter.batch_sequences)
    yield _histogram("exo_batch_tokens", "Tokens computed together in one frame.", meter.batch_tokens)
    yield _gauge("exo_compute_load_ratio", "Part of the last seconds spent computing.", (), {(): meter.load})

  def _queues(self) -> Iterable[Metric]:
    waiting: dict[tuple[str, ...], float] = {}
    running: dict[tuple[str, ...], float] = {}
    used: dict[tuple[str, ...], float] = {}
    room: dict[tuple[str, ...], float] = {}
    for driver in self._node.plans.drivers:
      counts, key = driver.scheduler.counts, (driver.plan.model_id, )
      waiting[key] = waiting.get(key, 0) + counts.waiting
      running[key] = running.get(key, 0) + counts.running
      used[key] = used.get(key, 0) + counts.reserved_kv_tokens
      room[key] = room.get(key, 0) + driver.scheduler.room.lease
    label = ("model", )
    yield _gauge("exo_queue_requests", "Requests that wait at the first stage here.", label, waiting)
    yield _gauge("exo_running_sequences", "Sequences that the first stage here keeps going.", label, running)
    yield _gauge("exo_kv_cache_used_tokens", "Tokens of KV cache promised to running sequences.", label, used)
    yield _gauge("exo_kv_cache_capacity_tokens", "Tokens that the KV cache may hold now.", label, room)

  def _ring(self) -> Iterable[Metric]:
    node, view = self._node, ring_view(self._node)
    here = view.nodes[0]
    yield _gauge("exo_peers", "Other nodes that this one is linked to.", (), {(): len(view.nodes) - 1})
    yield _counter("exo_peer_events", "Nodes that joined or left.", ("event", ), node.meter.peer_events)
    yield _gauge(
        "exo_peer_round_trip_seconds", "Round trip of the last heartbeat.", ("peer", ),
        {(peer, ): status.rtt_ms / 1e3
         for peer, status in node.mesh.peers().items()}
    )
    yield _gauge("exo_memory_offered_bytes", "Memory offered to the ring.", (), {(): here.memory_mb * _MB})
    yield _gauge("exo_weights_loaded_bytes", "Memory that loaded weights take.", (), {(): here.used_mb * _MB})
    yield _gauge("exo_memory_free_bytes", "What is left of the offer.", (), {(): here.free_mb * _MB})
    yield _gauge(
        "exo_layers", "Layers held by this node.", ("model", ),
        {(shard.model_id, ): shard.end_layer - shard.start_layer + 1
         for shard in here.shards}
    )

  def _downloads(self) -> Iterable[Metric]:
    downloads = list(self._node.sharing.downloads.values())
    yield _gauge(
        "exo_downloads_in_progress", "Models being fetched by this node.", (), {(): sum(not d.ended for d in downloads)}
    )
    yield _gauge(
        "exo_download_downloaded_bytes", "Bytes of a model that are here, of those fetched since the start.",
        ("model", ), {(d.model_id, ): d.downloaded_bytes
                      for d in downloads}
    )
    yield _gauge(
        "exo_download_size_bytes", "Bytes of a model in all, 0 while unknown.", ("model", ),
        {(d.model_id, ): d.total_bytes
         for d in downloads}
    )


F = TypeVar("F")
Values = Mapping[Any, float]  # by one label's value, or by a tuple of them


def _gauge(name: str, text: str, labels: tuple[str, ...], values: Values) -> Metric:
  from prometheus_client.core import GaugeMetricFamily
  return _filled(GaugeMetricFamily(name, text, labels=labels), values)


def _counter(name: str, text: str, labels: tuple[str, ...], values: Values) -> Metric:
  from prometheus_client.core import CounterMetricFamily
  return _filled(CounterMetricFamily(name, text, labels=labels), values)


def _filled(family: F, values: Values) -> F:
  for key, value in values.items():
    family.add_metric([key] if isinstance(key, str) else list(key), value)  # type: ignore[attr-defined]
  return family


def _histogram(name: str, text: str, by_model: Mapping[str, Histogram]) -> Metric:
  from prometheus_client.core import HistogramMetricFamily
  family = HistogramMetricFamily(name, text, labels=("model", ))
  for model, histogram in by_model.items():
    bounds = [*(repr(bound) for bound in histogram.bounds), "+Inf"]
    family.add_metric([model], list(zip(bounds, map(float, histogram.cumulative()), strict=True)), histogram.sum)
  return family
