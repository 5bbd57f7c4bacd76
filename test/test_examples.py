"""The examples and what the documentation promises, run as they are written."""

from __future__ import annotations

import json
import os
import plistlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest

from test.support.nodes import ROOT, NodeProcess, ring

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def nodes(model_home: Path) -> Iterator[list[NodeProcess]]:
  with ring(model_home, 2) as nodes:
    yield nodes


def run(*command: str, url: str = "") -> subprocess.CompletedProcess[str]:
  return subprocess.run(
      command, capture_output=True, text=True, timeout=120, cwd=ROOT, env=os.environ | {"EXO_URL": url}, check=False
  )


def test_curl(nodes: list[NodeProcess]) -> None:
  if shutil.which("curl") is None:
    pytest.skip("curl is not installed")
  done = run("bash", "examples/curl.sh", nodes[0].url)
  assert done.returncode == 0, done.stdout + done.stderr
  assert done.stdout.count("--- ") == 4 and "data: [DONE]" in done.stdout and '"chat.completion"' in done.stdout
  wrong = run("bash", "examples/curl.sh", nodes[0].url, "no-such-model")
  assert wrong.returncode != 0 and "model_not_found" in wrong.stdout


@pytest.mark.parametrize(
    "command", [[sys.executable, "examples/chat.py"], ["node", "examples/chat.mjs"]], ids=["python", "javascript"]
)
def test_chat(nodes: list[NodeProcess], command: list[str]) -> None:
  if shutil.which(command[0]) is None:
    pytest.skip(f"{command[0]} is not installed")
  done = run(*command, "What is the sea?", url=nodes[0].url)
  assert done.returncode == 0, done.stderr
  said = nodes[1].chat("What is the sea?", max_tokens=60)[1]["choices"][0]["message"]["content"]
  assert done.stdout.startswith(said.strip()[:20].lstrip()) or said.strip() in done.stdout


def test_tools(nodes: list[NodeProcess]) -> None:
  done = run(sys.executable, "examples/tools.py", url=nodes[0].url)
  assert done.returncode == 0, done.stderr
  assert re.match(r"the model calls weather\(\{'city': '(Lisbon|Oslo|Nairobi)'\}\)\n.+", done.stdout)


def test_ring_check(nodes: list[NodeProcess]) -> None:
  done = run(sys.executable, "examples/ring_check.py", *(node.url for node in nodes))
  assert done.returncode == 0, done.stdout + done.stderr
  assert "sees node0, node1" in done.stdout and re.search(r"runs over node\d 0-14, node\d 15-29", done.stdout)
  assert "every node answers: " in done.stdout
  nobody = run(sys.executable, "examples/ring_check.py", "http://127.0.0.1:9")
  assert nobody.returncode == 1 and "cannot be reached" in nobody.stderr


def test_the_dashboard_asks_only_for_metrics_that_exist(nodes: list[NodeProcess]) -> None:
  nodes[0].chat("hello", max_tokens=3)
  text = "".join(node.metrics() for node in nodes)
  known = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
  board = json.loads((ROOT / "docs" / "grafana.json").read_text())
  asked = {name for panel in board["panels"] for t in panel["targets"] for name in re.findall(r"exo_\w+", t["expr"])}
  assert len(board["panels"]) >= 12 and len(asked) >= 15
  assert {re.sub(r"_(bucket|total)$", "", name) for name in asked} <= {re.sub(r"_total$", "", name) for name in known}
  operating = (ROOT / "docs" / "operating.md").read_text()
  named = set(re.findall(r"`(exo_\w+)`", operating))
  assert named and {re.sub(r"_total$", "", name) for name in named} <= {re.sub(r"_total$", "", name) for name in known}


def blocks(language: str) -> list[str]:
  text = (ROOT / "docs" / "operating.md").read_text()
  return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def flags_known() -> set[str]:
  done = subprocess.run([sys.executable, "-m", "exo", "--help"], capture_output=True, text=True, check=True, cwd=ROOT)
  return set(re.findall(r"--[a-z-]+", done.stdout))


def test_the_services_are_well_formed_and_use_flags_that_exist() -> None:
  unit = ConfigParser(strict=False, interpolation=None)
  unit.optionxform = str  # type: ignore[assignment,method-assign]
  unit.read_string(blocks("ini")[0])
  command = unit["Service"]["ExecStart"].split()
  plist = plistlib.loads(blocks("xml")[0].encode())
  for arguments in (command[1:], plist["ProgramArguments"][1:]):
    assert {a for a in arguments if a.startswith("--")} <= flags_known()


def test_flags_named_in_the_documents_exist() -> None:
  known = flags_known() | {"--json", "--now", "--role"}
  for name in ("README.md", "docs/operating.md", "examples/README.md"):
    text = (ROOT / name).read_text()
    exo_flags = {
        flag
        for line in re.findall(r"`[^`\n]*`", text)
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", line)
    }
    assert exo_flags <= known | {"--check", "--native"}, name  # of exo key, and of install.sh


def test_links_between_documents_lead_somewhere() -> None:
  for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), EXAMPLES / "README.md"]:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
      if not target.startswith(("http", "#", "mailto")):
        assert (path.parent / target.partition("#")[0]).exists(), f"{path.name}: {target}"
