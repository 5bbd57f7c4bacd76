"""Codex itself against a ring: the run ends as one against OpenAI does, whatever the model says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from test.support.nodes import NodeProcess, ring

# what connects it; the rest makes its prompt fit into the dummy engine's context
CONFIG = """
model = "dummy"
model_provider = "exo"
model_instructions_file = "{folder}/instructions.md"

[model_providers.exo]
name = "exo"
base_url = "{url}/v1"
wire_api = "responses"

[features]
multi_agent = false
goals = false
"""


@pytest.fixture(scope="module", params=[1, 2], ids=["alone", "ring of two"])
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
  if shutil.which("codex") is None:
    pytest.skip("codex is not installed: npm install -g @openai/codex")
  home = tmp_path_factory.mktemp("codex")
  with ring(home, request.param, "--inference-engine", "dummy", "--default-model", "dummy") as started:
    yield started[-1]


@pytest.mark.clients
def test_21_line_1_requirement_39_codex_runs_to_its_end(node: NodeProcess, tmp_path: Path) -> None:
  home, work = tmp_path / "codex", tmp_path / "work"
  home.mkdir()
  work.mkdir()
  (home / "config.toml").write_text(CONFIG.format(folder=home, url=node.url))
  (home / "instructions.md").write_text("You are a coding agent.")
  command = ["codex", "exec", "--json", "--skip-git-repo-check", "--sandbox", "read-only", "Say hello"]
  run = subprocess.run(
      command,
      cwd=work,
      env=os.environ | {"CODEX_HOME": str(home)},
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
      timeout=120,
      check=False
  )
  events = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
  assert run.returncode == 0, run.stdout + run.stderr
  assert events[-1]["type"] == "turn.completed" and events[-1]["usage"]["output_tokens"] > 0, events
  assert not [event for event in events if event["type"] in ("error", "turn.failed")], events
