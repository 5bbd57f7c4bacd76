"""Line 4 of issue 22: whatever surrounds a command, it ends with one clear line and a status, not with a traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from exo.cli.commands import COMMANDS
from test.support.nodes import ROOT, exo

DUMMY = ("--inference-engine", "dummy", "--default-model", "dummy", "--discovery-module", "none")
NOWHERE = Path("/proc/no-such-folder")  # where nobody can make anything, root included


def shell(script: str, home: Path, **env: str) -> subprocess.CompletedProcess[str]:
  """With `exo` as a function of the shell."""
  return subprocess.run(["bash", "-c", f'exo() {{ "{sys.executable}" -m exo "$@"; }}\n{script}'],
                        cwd=ROOT, env=os.environ | {"EXO_HOME": str(home), "DEBUG": "0"} | env, capture_output=True,
                        text=True, timeout=60, stdin=subprocess.DEVNULL, check=False)  # yapf: disable


@pytest.mark.parametrize(
    "words", [("run", "Hello there"), ("pull", "smollm2-135m"), ("key", "new"), ("key", "api", "new", "a"), DUMMY],
    ids=" ".join
)
def test_22_line_4_a_home_that_cannot_be_written_is_one_line(words: tuple[str, ...]) -> None:
  done = exo(NOWHERE, *words)
  assert done.returncode == 1 and done.stdout == ""
  assert done.stderr.count("\n") == 1 and done.stderr.startswith("exo: /proc/no-such-folder"), done.stderr
  assert "EXO_HOME" in done.stderr


@pytest.mark.parametrize("kind", ["nowhere", "a file"])
def test_22_line_4_doctor_fails_over_a_home_that_cannot_be_used(tmp_path: Path, kind: str) -> None:
  home = NOWHERE
  if kind == "a file":
    home = tmp_path / "file"
    home.touch()
  done = exo(home, "doctor", "--listen-port", "0", "--json")
  told = json.loads(done.stdout)
  wrong = [finding for finding in told["findings"] if finding["level"] == "fail"]
  assert done.returncode == 1 and told["ok"] is False and [finding["topic"] for finding in wrong] == ["models"]
  assert wrong[0]["text"].startswith(f"{home} cannot be written (") and "point EXO_HOME to a folder" in wrong[0]["text"]


def test_22_line_4_doctor_tells_programs_the_same_as_people(tmp_path: Path) -> None:
  told = json.loads(exo(tmp_path, "doctor", "--listen-port", "0", "--json").stdout)
  done = exo(tmp_path, "doctor", "--listen-port", "0")
  assert told["ok"] is (done.returncode == 0) is True and {f["level"] for f in told["findings"]} <= {"ok", "note"}
  shown = " ".join(done.stdout.split())
  for finding in told["findings"]:
    if finding["topic"] in ("engines", "interfaces", "firewall", "nodes"):
      assert " ".join(finding["text"].split()) in shown


def test_22_line_4_a_machine_without_loopback_is_said(tmp_path: Path) -> None:
  if os.geteuid() or shutil.which("unshare") is None:
    pytest.skip("needs root and unshare for a network of its own")
  done = shell(f"exec unshare -n {sys.executable} -m exo run Hello\\ there {' '.join(DUMMY)}", tmp_path)
  assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
  assert "bring its loopback interface up" in done.stderr and done.stderr.count("\n") == 1, done.stderr
  doctor = shell(f"exec unshare -n {sys.executable} -m exo doctor", tmp_path)
  assert doctor.returncode == 1 and "FAIL interfaces 127.0.0.1 cannot be reached" in doctor.stdout


def test_22_line_4_closed_pipes_and_full_disks(tmp_path: Path) -> None:
  commands = ["--help", "run --help", "help run", "version", "models"]
  for words in commands:
    done = shell(f"exo {words} | true; echo ${{PIPESTATUS[0]}}", tmp_path)
    assert done.stdout.strip() in ("0", "141") and done.stderr == "", (words, done.stderr)
    full = shell(f"exo {words} > /dev/full", tmp_path)
    assert full.returncode == 1 and full.stderr == "exo: what it says cannot be written: the disk is full\n", words
    assert "Error" not in shell(f"exo {words} >&-", tmp_path).stderr


@pytest.mark.parametrize("letters", ["ascii", "latin-1"])
def test_22_line_4_terminals_of_few_letters(tmp_path: Path, letters: str) -> None:
  for name in COMMANDS:
    done = exo(tmp_path, name, "--help", PYTHONIOENCODING=letters)
    assert done.returncode == 0 and done.stderr == "", (name, done.stderr)
  done = exo(tmp_path, "run", "Grüße 😀", *DUMMY, "--max-tokens", "4", PYTHONIOENCODING=letters)
  assert done.returncode == 0 and "Traceback" not in done.stderr


@pytest.fixture
def open_folder() -> Iterator[Path]:
  """One that other users reach, which those of pytest are not."""
  with tempfile.TemporaryDirectory(prefix="exo-open-") as name:
    Path(name).chmod(0o777)
    yield Path(name)


def test_22_line_4_a_user_without_home_or_entry(open_folder: Path) -> None:
  if os.geteuid():
    pytest.skip("needs root, to become a user whom nobody knows")
  code = "import os, sys; os.setgroups([]); os.setgid(12345); os.setuid(12345); sys.argv = ['exo', *sys.argv[1:]]; " \
      "sys.path.insert(0, os.getcwd()); from exo.main import run; run()"
  env = {name: value for name, value in os.environ.items() if name not in ("HOME", "EXO_HOME")} | {"DEBUG": "0"}

  def by_nobody(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Everything that this process may read is imported before the user changes."""
    early = "import exo.cli.commands, exo.cli.status_command, exo.cli.doctor_command, exo.cli.key_command, exo.cli.client; "
    return subprocess.run([sys.executable, "-c", early + code, *words], cwd=ROOT, env=env | more, capture_output=True,
                          text=True, timeout=60, stdin=subprocess.DEVNULL, check=False)  # yapf: disable

  for words in (("status", ), ("key", "new")):
    done = by_nobody(*words)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "set EXO_HOME" in done.stderr, done.stderr
  assert by_nobody("key", "new", EXO_HOME=str(open_folder / "home")).returncode == 0
  closed = open_folder / "closed"
  closed.mkdir(mode=0o700)
  done = by_nobody("key", "new", EXO_HOME=str(closed))
  assert done.returncode == 1 and done.stderr.count("\n") == 1 and "cannot be used (Permission denied)" in done.stderr
