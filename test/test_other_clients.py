"""Issue 21, it must show: programs that people run end without an error of protocol, against one node and a ring of two.

`EXO_TEST_CLIENTS` is a Python that has the PyPI ones, `EXO_TEST_AIDER` one with aider, `EXO_TEST_NPM` a folder with the npm
ones; without them they are fetched into temporary folders. The model's text means nothing, which is all the same to a protocol.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from test.support.nodes import ROOT, NodeProcess, ring
from test.support.shaped_models import LONG, write_shaped

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SCRIPTS = sorted(p for p in (ROOT / "test" / "clients" / "python").glob("*.py") if p.stem != "asked")
PYPI = (
    "llm", "litellm", "langchain-ollama", "openai-agents", "pydantic-ai-slim[openai]", "instructor", "haystack-ai",
    "llama-index-embeddings-ollama", "llama-index-llms-ollama", "dspy", "mem0ai", "schemathesis"
)
NPM = (
    "@openai/codex", "@anthropic-ai/claude-code", "opencode-ai", "@qwen-code/qwen-code", "@continuedev/cli", "ollama",
    "ai@^6 || ^7", "@ai-sdk/openai-compatible", "zod"
)
MODEL = "tiny-long"


@pytest.fixture(scope="module", params=[1, 2], ids=["alone", "ring of two"])
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
  home = tmp_path_factory.mktemp("clients")
  write_shaped(home / "models" / f"{MODEL}.gguf", LONG, "Q8_0")
  flags = (
      "--model-dir", str(home / "models"), "--default-model", MODEL, "--max-generate-tokens", "400"
  )  # greedy noise has no end
  with ring(home, request.param, *flags, own_sampling=True) as started:
    yield started[-1]


def installed(command: Sequence[str], cwd: Path, what: str) -> None:
  try:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=800)
  except subprocess.TimeoutExpired:
    pytest.skip(f"{what}: installing them takes too long")
  if done.returncode:
    pytest.skip(f"{what} cannot be installed here: {done.stderr[-300:]}")


def python_with(given: str | None, folder: Path, packages: Sequence[str]) -> Path:
  if given:
    return Path(given)
  venv.create(folder, with_pip=True)
  python = folder / "bin" / "python"
  installed([str(python), "-m", "pip", "install", "-q", *packages], folder, ", ".join(packages))
  return python


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
  return python_with(os.environ.get("EXO_TEST_CLIENTS"), tmp_path_factory.mktemp("pypi"), PYPI)


@pytest.fixture(scope="session")
def aider(tmp_path_factory: pytest.TempPathFactory) -> Path:
  return python_with(os.environ.get("EXO_TEST_AIDER"), tmp_path_factory.mktemp("aider"), ("aider-chat", )).parent


@pytest.fixture(scope="session")
def npm(tmp_path_factory: pytest.TempPathFactory) -> Path:
  if given := os.environ.get("EXO_TEST_NPM"):
    return Path(given)
  if shutil.which("npm") is None or shutil.which("node") is None:
    pytest.skip("npm or node is not installed")
  folder = tmp_path_factory.mktemp("npm")
  installed(["npm", "install", "--no-audit", "--no-fund", *NPM], folder, "the npm packages")
  for package, script in (("@anthropic-ai/claude-code", "install.cjs"), ("opencode-ai", "postinstall.mjs")):
    if (folder / "node_modules" / package / script).exists():  # which npm may have left out
      subprocess.run(["node", script], cwd=folder / "node_modules" / package, capture_output=True, timeout=300)
  return folder


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_21_it_must_show_libraries_end_without_an_error(
    node: NodeProcess, python: Path, script: Path, tmp_path: Path
) -> None:
  env = os.environ | {
      "EXO_TEST_URL": node.url, "EXO_TEST_MODEL": MODEL, "HOME": str(tmp_path), "MEM0_TELEMETRY": "False"
  }
  done = subprocess.run([str(python), str(script)], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


# What a document of types cannot say: it depends on the model, on what is kept, or on the meaning of a text.
BEYOND = re.compile(
    "the context of|prompt is too long|this is no PDF|vectors of .* have|is not from 0 to|knows only the tokens|cannot fill gaps|nothing of this kind is kept|"
    "have the same name|there is no function|is a text that is no JSON|the schema false allows nothing|the last message must be|cannot be used|cannot be followed|regular expression|grammar"
)


def test_21_line_11_schemathesis_finds_nothing_but_what_no_schema_says(python: Path, tmp_path: Path) -> None:
  """With all of its checks. Of each address that has two names, with and without /v1, one is asked."""
  write_shaped(tmp_path / "models" / f"{MODEL}.gguf", LONG, "Q8_0")
  flags = (
      "--model-dir", str(tmp_path / "models"), "--default-model", MODEL, "--context", "256"
  )  # asked for a million tokens
  with ring(tmp_path / "home", 1, *flags) as (node, ):
    command = [
        str(python.with_name("schemathesis")), "run", f"{node.url}/openapi.json", "--max-examples", "4",
        "--request-timeout", "60", "--phases", "examples,coverage,fuzzing", "--include-path-regex", "^/(v1|v2|api)/",
        "--exclude-path-regex", "topology/stream|/download|/delete|/pull"
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1500)
  found = re.findall(r"^- (ST\d+ .*)$", done.stdout, re.MULTILINE)
  refused = re.findall(r"^ +`(\{.*\})`$", done.stdout, re.MULTILINE)
  assert "Test cases:" in done.stdout and " Errors:" not in done.stdout, done.stdout[-6000:] + done.stderr
  assert all("Schema-valid request rejected" in what for what in found), done.stdout[-6000:]
  assert all(BEYOND.search(answer) for answer in refused) and len(refused) == len(found), done.stdout[-6000:]


def test_21_it_must_show_ollama_js(node: NodeProcess, npm: Path) -> None:
  script = npm / "ollama_js.mjs"
  shutil.copy(ROOT / "test" / "clients" / "ollama_js.mjs", script)  # beside what it imports
  env = os.environ | {"EXO_TEST_URL": node.url, "EXO_TEST_MODEL": MODEL}
  done = subprocess.run(["node", str(script)], env=env, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr


def launched(node: NodeProcess, folder: Path, path: Path, name: str, *arguments:
             str) -> subprocess.CompletedProcess[str]:
  """`exo launch` in an empty repository, by a user who has configured nothing."""
  (folder / "work").mkdir()
  subprocess.run(["git", "init", "-q"], cwd=folder / "work", check=True)
  env = os.environ | {
      "EXO_HOME": str(node.home), "HOME": str(folder), "PATH": f"{path}{os.pathsep}{os.environ['PATH']}",
      "PYTHONPATH": str(ROOT)
  }
  command = [sys.executable, "-m", "exo", "launch", name, "--model", MODEL, "--", *arguments]
  return subprocess.run(
      command, cwd=folder / "work", env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=400
  )


@pytest.mark.parametrize(("name", "arguments"), [
    ("codex", ("exec", "--skip-git-repo-check", "Hello")), ("claude", ("-p", "Hello")), ("opencode", ("run", "Hello")),
    ("qwen", ("-p", "Hello"))
])  # yapf: disable
def test_21_it_must_show_agents_end_without_an_error(
    node: NodeProcess, npm: Path, tmp_path: Path, name: str, arguments: tuple[str, ...]
) -> None:
  done = launched(node, tmp_path, npm / "node_modules" / ".bin", name, *arguments)
  assert done.returncode == 0 and done.stdout.strip(), done.stdout[-2000:] + done.stderr[-4000:]


AIDER = (
    "--message", "Hello", "--yes-always", "--no-auto-lint", "--no-check-update", "--map-tokens", "0", "--no-gitignore"
)


def test_21_it_must_show_aider(node: NodeProcess, aider: Path, tmp_path: Path) -> None:
  done = launched(node, tmp_path, aider, "aider", *AIDER)
  assert done.returncode == 0 and "APIError" not in done.stdout, done.stdout[-3000:] + done.stderr[-2000:]


def test_21_it_must_show_aider_by_ollamas_routes(node: NodeProcess, aider: Path, tmp_path: Path) -> None:
  env = os.environ | {"HOME": str(tmp_path), "OLLAMA_API_BASE": node.url}
  command = [str(aider / "aider"), "--model", f"ollama_chat/{MODEL}", "--no-show-model-warnings", "--no-git", *AIDER]
  done = subprocess.run(
      command, cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
  )
  assert done.returncode == 0 and "APIError" not in done.stdout, done.stdout[-3000:] + done.stderr[-2000:]


def test_21_it_must_show_continue(node: NodeProcess, npm: Path, tmp_path: Path) -> None:
  (tmp_path / "config.yaml").write_text(
      "name: exo\nversion: 0.0.1\nschema: v1\nmodels:\n"
      f"  - {{name: exo, provider: openai, model: {MODEL}, apiBase: {node.url}/v1, apiKey: none, roles: [chat]}}\n"
  )
  env = os.environ | {"HOME": str(tmp_path), "CONTINUE_TELEMETRY_ENABLED": "0"}
  command = [str(npm / "node_modules" / ".bin" / "cn"), "--config", str(tmp_path / "config.yaml"), "-p", "Hello"]
  done = subprocess.run(
      command, cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
  )
  assert done.returncode == 0 and done.stdout.strip(), done.stdout[-2000:] + done.stderr[-4000:]
