"""`/metrics`, request ids, JSON log lines and the ring's event stream, of real nodes."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from exo.orchestration.activity import Activity
from exo.orchestration.meter import Histogram, Meter
from test.support.nodes import NodeProcess, ring, wait_until

DUMMY = ("--inference-engine", "dummy", "--default-model", "dummy")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[NodeProcess]]:
  with ring(tmp_path_factory.mktemp("metrics"), 2, *DUMMY, "--log-format", "json") as nodes:
    yield nodes


def samples(node: NodeProcess, accept: str = "") -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
  """Every sample of a scrape, by name and sorted labels."""
  request = urllib.request.Request(f"{node.url}/metrics", headers={"Accept": accept})
  with urllib.request.urlopen(request, timeout=10) as response:
    assert response.status == 200 and response.headers["Content-Type"].startswith("text/plain; version=")
    text = response.read().decode()
  families = list(text_string_to_metric_families(text))
  assert all(family.documentation and family.type != "unknown" for family in families)
  names = [family.name for family in families]
  assert len(names) == len(set(names))
  return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_metrics_count_what_happens(pair: list[NodeProcess]) -> None:
  """http_api.md 34: `/metrics`, read by prometheus_client's own parser."""
  before = [samples(node) for node in pair]
  entry = pair[0]
  assert entry.chat("hello", max_tokens=20, seed=1)[1]["usage"]["completion_tokens"] == 20
  assert entry.chat("no such", model="nothing")[0] == 404
  after = [samples(node) for node in pair]

  def grown(name: str, **labels: str) -> float:
    key = (name, tuple(sorted(labels.items())))
    return sum(a.get(key, 0) - b.get(key, 0) for a, b in zip(after, before, strict=True))

  assert grown("exo_requests_total", model="dummy", outcome="completed") == 1
  assert grown("exo_generated_tokens_total", model="dummy") == 20
  assert grown("exo_prompt_tokens_total", model="dummy") == len("user: hello\n")
  assert grown("exo_time_to_first_token_seconds_count", model="dummy") == 1
  assert grown("exo_time_between_tokens_seconds_count", model="dummy") == 19
  assert grown("exo_stage_compute_seconds_count", model="dummy") == 40  # 20 steps on two stages
  assert grown("exo_step_seconds_count", model="dummy") == 20
  assert grown("exo_hop_seconds_count", model="dummy") == 20
  assert grown("exo_batch_sequences_sum", model="dummy") == 40
  assert grown("exo_http_requests_total", route="/v1/chat/completions", method="POST", status="404") == 1
  first = after[0]
  assert first["exo_peers", ()] == 1 and first["exo_healthy", ()] == 1
  assert first["exo_peer_events_total", (("event", "joined"), )] >= 1
  assert sum(a.get(("exo_layers", (("model", "dummy"), )), 0) for a in after) == 8
  capacity = ("exo_kv_cache_capacity_tokens", (("model", "dummy"), ))
  assert sum(a.get(capacity, 0) for a in after) > 0
  assert any(name.startswith("process_") for name, _ in first)


def test_histograms_are_cumulative_and_end_with_inf(pair: list[NodeProcess]) -> None:
  pair[0].chat("again", max_tokens=5)
  buckets = {
      dict(labels)["le"]: value
      for (name, labels), value in samples(pair[0]).items() if name == "exo_time_to_first_token_seconds_bucket"
  }
  values = [buckets[le] for le in sorted(buckets, key=float)]
  assert values == sorted(values) and "+Inf" in buckets


def test_strangers_cannot_make_up_labels(pair: list[NodeProcess]) -> None:
  for i in range(5):
    pair[0].get(f"/made/up/{i}")
  routes = {dict(labels).get("route") for name, labels in samples(pair[0]) if name == "exo_http_requests_total"}
  assert "none" in routes and not any("made" in (route or "") for route in routes)


def test_every_answer_has_a_request_id_and_so_have_the_log_lines(pair: list[NodeProcess]) -> None:
  node = pair[0]

  def ask(path: str, given: str | None = None, body: object = None) -> str:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | ({"X-Request-Id": given} if given else {})
    try:
      with urllib.request.urlopen(urllib.request.Request(node.url + path, data, headers), timeout=20) as response:
        response.read()
        return str(response.headers["x-request-id"])
    except urllib.error.HTTPError as error:
      return str(error.headers["x-request-id"])

  made = ask("/healthcheck")
  assert re.fullmatch(r"req-[0-9a-f]{32}", made) and ask("/healthcheck") != made
  assert ask("/nowhere").startswith("req-") and ask("/").startswith("req-")
  body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "stream": True}
  assert ask("/v1/chat/completions", "trace-42/a", body) == "trace-42/a"
  assert ask("/healthcheck", "bad id <script>").startswith("req-")

  def lines() -> list[dict[str, object]]:
    return [json.loads(line) for line in node.log.splitlines()]

  wait_until(lambda: any(line.get("request_id") == "trace-42/a" for line in lines()), 5, "a line with the id")
  line = next(line for line in lines() if line.get("request_id") == "trace-42/a")
  assert re.search(r"request chatcmpl-[0-9a-f]{32}: \d+ prompt tokens", str(line["message"]))
  assert set(line) == {"time", "level", "message", "request_id"}
  assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(line["time"])) for line in lines())


def test_the_stream_shows_a_node_come_and_go(tmp_path: Path) -> None:
  with ring(tmp_path, 2, *DUMMY) as (one, other):
    with urllib.request.urlopen(f"{one.url}/v1/topology/stream", timeout=10) as response:
      assert response.headers["Content-Type"].startswith("text/event-stream")

      def until(condition: object) -> dict[str, object]:
        for raw in response:
          if raw.startswith(b"data: {"):
            event = json.loads(raw[6:])
            if condition(event):  # type: ignore[operator]
              return dict(event)
        raise AssertionError("the stream ended")

      event = until(lambda e: len(e["nodes"]) == 2 and e["links"] and e["links"][0]["rtt_ms"] > 0)
      link = event["links"][0]  # type: ignore[index]
      assert link["nodes"] == ["node0", "node1"] and link["interface"]
      one.chat("a secret question", max_tokens=4)
      event = until(lambda e: e["rings"])
      stages = event["rings"][0]["stages"]  # type: ignore[index]
      assert [(s["start_layer"], s["end_layer"]) for s in stages] == [(0, 3), (4, 7)]
      assert "secret" not in json.dumps(event)
      other.kill()
      until(lambda e: list(e["nodes"]) == ["node0"])


def test_a_histogram_puts_bounds_into_their_own_bucket() -> None:
  histogram = Histogram((1.0, 2.0))
  for value in (0.5, 1.0, 1.5, 2.0, 9.0):
    histogram.observe(value)
  histogram.observe(2.0, 3)
  assert histogram.counts == [2, 5, 1] and histogram.cumulative() == [2, 7, 8] and histogram.sum == 20.0


def test_load_is_the_part_of_the_last_seconds_that_was_computed() -> None:
  now = [100.0]
  meter = Meter(lambda: now[0])
  assert meter.load == 0
  for _ in range(40):
    now[0] += 0.1
    meter.stage_computed("m", 1, 1, 50.0)
    meter.load  # noqa: B018 - reading takes the samples
  assert 0.45 < meter.load < 0.55
  now[0] += 3
  meter.load  # noqa: B018
  now[0] += 2.5
  assert meter.load == 0


def test_requests_end_as_what_they_were() -> None:
  meter = Meter()
  activity = Activity(meter)
  with activity.request("a", "m", "title", 3, 1) as watched:
    assert activity.running == [watched]
    watched.said(0, "x", 1, False)
    watched.said(0, "y", 2, True)
  with activity.request("b", "m", "", 3, 1):
    pass  # the client went away
  with pytest.raises(RuntimeError), activity.request("c", "m", "", 3, 1):
    raise RuntimeError
  assert meter.requests == {("m", "completed"): 1, ("m", "cancelled"): 1, ("m", "failed"): 1}
  assert watched.tail == "xy" and watched.tokens == 3 and not activity.running
  for i in range(30):
    with activity.request(str(i), "m", "", 1, 1):
      pass
  assert len(activity.recent) <= 9
