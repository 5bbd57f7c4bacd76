"""Line 2 of issue 22: install.sh, whoever runs it, whatever ends it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from test.support.nodes import ROOT

SHELLS = ("bash", "zsh", "dash", "sh")
STAMP = "cat pyproject.toml requirements.lock | cksum"


def needs(shell: str) -> None:
  if shutil.which(shell) is None:
    pytest.skip(f"{shell} is not installed")


def checkout(folder: Path, *names: str) -> Path:
  """What install.sh needs, in a folder with a blank in its name."""
  folder.mkdir(parents=True)
  for name in (
      "install.sh", "pyproject.toml", "requirements.lock", "scripts/install.py", "scripts/requirements.py", *names
  ):
    (folder / name).parent.mkdir(exist_ok=True)
    if (ROOT / name).is_dir():
      shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    else:
      shutil.copy(ROOT / name, folder / name)
  return folder


def by(shell: str, script: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
  needs(shell)
  own = {"PATH": os.environ["PATH"], "HOME": str(folder), "EXO_PYTHON": sys.executable} | env
  return subprocess.run([shell, "-c", script], cwd=folder, env=own, capture_output=True, text=True, timeout=120,
                        check=False)  # yapf: disable


@pytest.fixture
def installed(tmp_path: Path) -> Path:
  """A checkout whose `.venv` is complete, as install.sh sees it."""
  folder = checkout(tmp_path / "my exo")
  subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
  stamp = subprocess.run(STAMP, shell=True, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
  (folder / ".venv" / ".exo-installed").write_text(f"{stamp} ")
  return folder


@pytest.mark.parametrize("shell", SHELLS)
def test_22_line_2_every_shell_sources_and_executes_it(shell: str, installed: Path) -> None:
  for how in (". ./install.sh", f". '{installed}/install.sh'"):
    done = by(shell, f"{how}; echo status=$? $VIRTUAL_ENV; set | grep -c ^_exo", installed)
    assert done.stdout.startswith(f"status=0 {installed / '.venv'}\n"), done.stderr
    assert done.stderr == "" and done.stdout.endswith("\n0\n"), done.stdout  # nothing of it stays in the shell
  assert by(shell, "./install.sh", installed).returncode == 0
  elsewhere = by(shell, f"cd / && {shell} '{installed}/install.sh'", installed)
  assert elsewhere.returncode == 0 and elsewhere.stderr == ""


@pytest.mark.parametrize("shell", SHELLS)
def test_22_line_2_mistakes_are_errors_and_change_nothing(shell: str, installed: Path) -> None:
  for word, message in (("nonsense", "there is no extra nonsense: choose from bench, clients"),
                        ("--fast", "there is no option --fast")):
    done = by(shell, f"{shell} install.sh {word}; echo status=$?", installed)
    assert done.stdout == "status=1\n" and message in done.stderr and done.stderr.count("\n") == 1
  assert sorted(path.name for path in installed.iterdir() if path.name.startswith(".")) == [".venv"]


def test_22_line_2_sourced_where_a_shell_does_not_tell_where_it_is(installed: Path) -> None:
  done = by("dash", f"cd / && . '{installed}/install.sh'; echo status=$?", installed)
  assert done.stdout == "status=1\n" and "cd into exo's folder, then . ./install.sh" in done.stderr


@pytest.fixture
def script(tmp_path: Path) -> ModuleType:
  """scripts/install.py of a checkout of its own, as a module."""
  folder = checkout(tmp_path / "exo")
  spec = importlib.util.spec_from_file_location("exo_install", folder / "scripts" / "install.py")
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def some(folder: Path, stamp: str = "", name: str = "x") -> None:
  folder.mkdir()
  (folder / name).touch()
  if stamp:
    (folder / ".exo-installed").write_text(stamp)


def test_22_line_2_what_an_interrupted_run_left_is_healed(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setattr(script, "_starts", lambda folder: True)
  some(script.NEW)  # in the middle of it
  some(script.VENV, "old")
  assert not script.heal("new") and (script.VENV / "x").exists() and not script.NEW.exists()
  script.VENV.rename(script.OLD)  # between two renames
  some(script.NEW, "new", "y")
  assert script.heal("new") and (script.VENV / "y").exists() and not script.OLD.exists()
  script.VENV.rename(script.OLD)
  some(script.NEW)  # never complete, and the old one is put back
  assert not script.heal("newer") and (script.VENV / "y").exists() and not script.NEW.exists()


def test_22_line_2_no_two_run_at_once(script: ModuleType) -> None:
  process = subprocess.Popen(["sleep", "60"])
  try:
    script.LOCK.write_text(str(process.pid))
    with pytest.raises(script.Failed, match=f"process {process.pid}"):
      script.hold()
  finally:
    process.kill()
    process.wait()
  script.hold()  # whose holder is gone
  assert script.LOCK.read_text() == str(os.getpid())


def test_22_line_2_sizes_are_told(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
  log = tmp_path / "log"
  log.write_text(
      "Collecting mlx\n  Downloading mlx-0.30-py3.whl (64.5 MB)\n  Downloading a-1.whl (12 kB)\nInstalling collected packages: a, b\nno"
  )
  end = script.Progress().read(log, 0)
  assert capsys.readouterr().err == "  downloading mlx 64.5 MB, 64 MB so far\n  installing 2 packages, 65 MB so far\n"
  assert log.read_bytes()[end:] == b"no"


def those_of(folder: Path) -> list[str]:
  """Processes that have the folder in their command line."""
  found = []
  for process in psutil.process_iter():
    try:
      line = " ".join(process.cmdline())
    except psutil.Error:
      continue
    if str(folder) in line:
      found.append(line)
  return found


@pytest.mark.slow
def test_22_line_2_interrupted_at_ten_moments_it_leaves_nothing_and_then_it_works(tmp_path: Path) -> None:
  folder = checkout(tmp_path / "exo", "exo", "README.md", "LICENSE")
  env = os.environ | {"EXO_PYTHON": sys.executable}
  env.pop("VIRTUAL_ENV", None)
  for i, moment in enumerate((0.05, 0.3, 1.0, 3.0, 6.0, 9.0, 13.0, 18.0, 25.0, 35.0)):
    process = subprocess.Popen([("bash", "dash")[i % 2], str(folder / "install.sh")], env=env, start_new_session=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)  # yapf: disable
    time.sleep(moment)
    if i % 3 == 2:
      process.send_signal(signal.SIGTERM)  # the shell alone, as `kill` does
    else:
      os.killpg(process.pid, signal.SIGINT)  # all of them, as a terminal does
    process.communicate(timeout=30)
    deadline = time.monotonic() + 15
    while those_of(folder) and time.monotonic() < deadline:
      time.sleep(0.1)
    assert those_of(folder) == []
    venv = folder / ".venv"
    assert not venv.exists() or (venv / ".exo-installed").exists()
  done = subprocess.run(["bash", str(folder / "install.sh")], env=env, capture_output=True, text=True, check=False)
  assert done.returncode == 0 and 'exo run "What is the capital of Japan?"' in done.stderr, done.stderr
  said = subprocess.run([folder / ".venv" / "bin" / "exo", "version"],
                        cwd="/",
                        capture_output=True,
                        text=True,
                        check=True)
  assert said.stdout.startswith("exo ")
  left = {path.name for path in folder.iterdir() if path.name.startswith(".venv")}
  assert left == {".venv"} and b".venv.new" not in (folder / ".venv" / "bin" / "exo").read_bytes()
  assert ".venv.new" not in (folder / ".venv" / "bin" / "activate").read_text()
