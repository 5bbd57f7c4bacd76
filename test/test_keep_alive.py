"""How long a model stays loaded, as Ollama's clients say it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from exo.api.ollama_request import duration_s
from exo.errors import InvalidRequestError
from test.support.nodes import NodeProcess, ring, wait_until

ASKED: dict[str, Any] = {
    "model": "dummy", "messages": [{"role": "user", "content": "hello"}], "options": {"num_predict": 3}, "stream": False
}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
  with ring(tmp_path_factory.mktemp("stays"), 1, "--inference-engine", "dummy", "--default-model", "dummy") as started:
    yield started[0]


def loaded(node: NodeProcess) -> list[Any]:
  return list(node.get("/api/ps")[1]["models"])


def test_21_line_6_durations() -> None:
  durations: list[str | float] = ["5m", "1h30m", "300ms", 0, "0", "0s", 12.5, "24h"]
  assert [duration_s(value) for value in durations] == [300, 5400, 0.3, 0, 0, 0, 12.5, 86400]
  assert duration_s(-1) is None and duration_s("-1m") is None and duration_s(1e300) is None
  for wrong in ("soon", "5 minutes", "m5", "", "-", "--1", "nan m"):
    with pytest.raises(InvalidRequestError):
      duration_s(wrong)


def test_21_line_6_a_model_stays_for_as_long_as_was_said(node: NodeProcess) -> None:
  node.post("/api/chat", ASKED)
  assert loaded(node)[0]["expires_at"] > "2100"  # as long as nobody wants its room
  node.post("/api/chat", ASKED | {"keep_alive": "10m"})
  assert "2020" < loaded(node)[0]["expires_at"] < "2100"
  node.post("/api/chat", ASKED | {"keep_alive": -1})
  assert loaded(node)[0]["expires_at"] > "2100"
  node.post("/api/generate", {"model": "dummy", "keep_alive": "400ms"})
  wait_until(lambda: not loaded(node), 20, "the model's unloading after a while")
  assert node.post("/api/chat", ASKED)[0] == 200 and loaded(node)[0]["expires_at"] > "2100"
  assert node.post("/api/chat", ASKED | {"keep_alive": 0})[0] == 200 and not loaded(node)
