"""The OpenAPI document is true: every route is in it, and requests made from it get documented answers and no 500."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import jsonschema
import psutil
import pytest

from test.support.api_fuzz import Campaign
from test.support.nodes import NodeProcess, ring, wait_until


@pytest.fixture(scope="module", params=[1, 2], ids=["alone", "ring of two"])
def nodes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[NodeProcess]]:
  home = tmp_path_factory.mktemp("openapi")
  env = {"DEBUG": "0"}
  with ring(home, request.param, "--inference-engine", "dummy", "--default-model", "dummy", env=env) as started:
    yield started


@pytest.fixture(scope="module")
def document(nodes: list[NodeProcess]) -> Any:
  status, answer = nodes[-1].get("/openapi.json")
  assert status == 200
  return answer


def test_every_route_is_described(document: Any) -> None:
  assert document["openapi"].startswith("3.1.") and document["info"]["version"]
  for path in (
      "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages", "/v1/models",
      "/v1/models/{model}", "/v1/cancel/{id}", "/api/chat", "/api/tags", "/health", "/v1/topology", "/openapi.json"
  ):
    assert path in document["paths"], path
  for path, methods in document["paths"].items():
    for method, operation in methods.items():
      assert operation["summary"] and operation["responses"]["200"] and operation["operationId"], (method, path)
  ids = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
  assert len(set(ids)) == len(ids)


def test_its_schemas_are_schemas_and_accept_what_clients_send(document: Any) -> None:
  for schema in document["components"]["schemas"].values():
    jsonschema.Draft202012Validator.check_schema(schema)
  chat = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
  schema = chat | {"components": document["components"]}
  jsonschema.validate({"messages": [{"role": "user", "content": "hi"}], "temperature": 1, "unknown": 1}, schema)
  for wrong in ({"messages": []}, {"messages": "x"}, {"messages": [{"role": "user"}], "temperature": 3}):
    with pytest.raises(jsonschema.ValidationError):
      jsonschema.validate(wrong, schema)


def campaign(nodes: list[NodeProcess], document: Any, count: int, seed: int) -> None:
  """`count` requests, and the node as it was afterwards: no more descriptors, threads or requests, memory bounded."""
  node = nodes[-1]
  Campaign(node.url, document).run(200, seed=seed + 1000)  # everything is loaded from here on
  process = psutil.Process(node.process.pid)
  time.sleep(1)
  before, fds, threads = process.memory_info().rss, process.num_fds(), process.num_threads()
  run = Campaign(node.url, document)
  started = time.monotonic()
  run.run(count, seed=seed)
  print(
      f"{count} requests in {time.monotonic() - started:.0f} s: {dict(sorted(run.statuses.items()))}; "
      f"memory {before / 2**20:.0f} to {process.memory_info().rss / 2**20:.0f} MiB"
  )
  assert not run.wrong, f"{len(run.wrong)} wrong answers, the first:\n" + "\n".join(run.wrong[:5])
  assert run.statuses[500] == 0 and run.statuses[0] == 0 and run.statuses[200] > count // 50
  wait_until(lambda: process.num_fds() <= fds + 2, 40, "the closing of descriptors")
  assert process.num_threads() <= threads + 34  # the event loop's pool of helpers
  assert process.memory_info().rss < before + 200 * 2**20
  assert node.chat("hello", max_tokens=3)[0] == 200
  assert all(n.process.poll() is None for n in nodes)


def test_requests_made_from_it(nodes: list[NodeProcess], document: Any) -> None:
  campaign(nodes, document, 600, seed=1)


@pytest.mark.slow
def test_twenty_thousand_requests_made_from_it(nodes: list[NodeProcess], document: Any) -> None:
  campaign(nodes, document, 20_000, seed=100)
