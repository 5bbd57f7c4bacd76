"""Issue 21: `exo launch` starts programs of others with this node behind them. `test_agents.py` runs the real ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exo.cli.agents import AGENTS, Served
from test.support.nodes import ROOT, NodeProcess, exo, wait_until

SERVED = Served("http://127.0.0.1:52415", "key", "org/model", 4096)
# stands in for a program: tells how it was started, and ends as it is told
FAKE = """#!{python}
import json, os, signal, sys, time
if "wait" in sys.argv:  # before anybody hears that it runs
  signal.signal(signal.SIGINT, lambda *_: sys.exit(5))
told = {{"arguments": sys.argv[1:], "environment": dict(os.environ)}}
open(os.environ["TOLD"] + ".new", "w").write(json.dumps(told))
os.rename(os.environ["TOLD"] + ".new", os.environ["TOLD"])
if "wait" in sys.argv:
  time.sleep(60)
sys.exit(3)
"""


@pytest.fixture(scope="module")
def node(model_home: Path) -> Iterator[NodeProcess]:
  started = NodeProcess(model_home, "--discovery-module", "none", node_id="launch")
  yield started.wait_ready()
  started.stop()


@pytest.fixture
def programs(tmp_path: Path) -> dict[str, str]:
  """Fakes of all of them, alone on the PATH, beside what has them do something else."""
  folder = tmp_path / "bin"
  folder.mkdir()
  for agent in AGENTS.values():
    (folder / agent.program).write_text(FAKE.format(python=sys.executable))
    (folder / agent.program).chmod(0o755)
  return {"PATH": str(folder), "TOLD": str(tmp_path / "told"), "ANTHROPIC_API_KEY": "of another"}


def launch(node: NodeProcess, env: dict[str, str], *arguments: str) -> tuple[subprocess.CompletedProcess[str], Any]:
  done = exo(node.home, "launch", *arguments, **env)
  told = Path(env["TOLD"])
  return done, json.loads(told.read_text()) if told.exists() else None


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_21_it_must_show_each_is_started_with_the_node_behind_it(
    node: NodeProcess, programs: dict[str, str], name: str
) -> None:
  done, told = launch(node, programs, name, "--model", "smollm2-135m", "--", "more", "--of", "it")
  assert done.returncode == 3, done.stderr
  assert told["arguments"][-3:] == ["more", "--of", "it"] and name in done.stderr
  everything = json.dumps(told["arguments"]) + json.dumps(told["environment"])
  assert node.url in everything and "smollm2-135m" in everything
  if name == "claude":
    assert "ANTHROPIC_API_KEY" not in told["environment"] and told["environment"]["ANTHROPIC_BASE_URL"] == node.url


def test_21_it_must_show_settings_are_of_the_forms_that_programs_read() -> None:
  codex = AGENTS["codex"].start(SERVED)
  settings = tomllib.loads("\n".join(codex.arguments[1::2]))
  assert set(codex.arguments[::2]) == {"-c"} and settings["model_providers"]["exo"]["wire_api"] == "responses"
  assert settings["model_providers"]["exo"]["base_url"] == "http://127.0.0.1:52415/v1" and settings["model"
                                                                                                    ] == "org/model"
  opencode = json.loads(AGENTS["opencode"].start(SERVED).environment["OPENCODE_CONFIG_CONTENT"])
  assert opencode["model"] == "exo/org/model" and "org/model" in opencode["provider"]["exo"]["models"]


def test_21_it_must_show_a_model_that_can_use_tools_is_chosen(node: NodeProcess, programs: dict[str, str]) -> None:
  """SmolLM2 was not made for them: it is not taken unasked, and is when it is named."""
  done, told = launch(node, programs, "codex")
  assert done.returncode == 1 and told is None and "--model" in done.stderr and "exo pull" in done.stderr
  done, told = launch(node, programs, "codex", "--model", "smollm2-135m")
  assert done.returncode == 3 and "was not made for calling tools" in done.stderr
  done, told = launch(node, programs, "aider")
  assert done.returncode == 3 and "openai/smollm2-135m" in told["arguments"]
  done, _ = launch(node, programs, "codex", "--model", "nosuch-model")
  assert done.returncode == 1 and "nosuch-model" in done.stderr


def test_21_it_must_show_what_is_not_installed_is_told(node: NodeProcess, tmp_path: Path) -> None:
  for name, agent in AGENTS.items():
    done = exo(node.home, "launch", name, PATH=str(tmp_path))
    assert done.returncode == 127 and agent.install in done.stderr and len(done.stderr.splitlines()) == 1
  done = exo(node.home, "launch", "nothing", PATH=str(tmp_path))
  assert done.returncode == 2 and "claude" in done.stderr


def test_21_it_must_show_the_command_can_be_shown(node: NodeProcess, tmp_path: Path) -> None:
  done = exo(node.home, "launch", "claude", "--model", "smollm2-135m", "--print", PATH=str(tmp_path))
  assert done.returncode == 0 and done.stdout.startswith("env -u ANTHROPIC_API_KEY"
                                                         ) and done.stdout.rstrip().endswith("claude")
  assert f"ANTHROPIC_BASE_URL={node.url}" in done.stdout


def test_21_it_must_show_ctrl_c_is_the_programs(node: NodeProcess, programs: dict[str, str]) -> None:
  env = os.environ | programs | {"EXO_HOME": str(node.home)}
  command = [sys.executable, "-m", "exo", "launch", "aider", "--", "wait"]
  process = subprocess.Popen(
      command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
  )
  try:
    wait_until(lambda: Path(programs["TOLD"]).exists(), 30, "the program to start")
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(30) == 5
  finally:
    process.kill()
