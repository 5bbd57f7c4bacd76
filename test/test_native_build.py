"""Building llama.cpp for this processor: what it needs, what it leaves, and what is said where it fails."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from exo.inference.llama_cpp.binding import NATIVE
from exo.inference.llama_cpp.library_file import library_files
from exo.inference.llama_cpp.processor_instructions import processor_instructions
from test.support.nodes import ROOT, wait_until

pytestmark = pytest.mark.skipif(next(library_files(), None) is None, reason="xllamacpp is not installed")

WHEEL = next((file for file in library_files() if file.origin == "xllamacpp"), None)


def own_environment(tmp_path: Path, name: str = "env") -> Path:
  """An interpreter of an environment of its own, in which something may be installed, with all that this one has."""
  subprocess.run([sys.executable, "-m", "venv", tmp_path / name], check=True)
  python = tmp_path / name / "bin" / "python"
  code = "import sysconfig; print(sysconfig.get_path('platlib'))"
  folder = Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
  (folder / "all.pth").write_text(f"{sysconfig.get_path('platlib')}\n{ROOT}\n")
  return python


def path_without_compilers(tmp_path: Path) -> str:
  """The tools that a shell script takes, and nothing to build with."""
  (tmp_path / "bin").mkdir()
  for tool in ("sh", "bash", "cat", "cksum", "dirname", "sed", "tail", "tr", "grep", "rm"):
    (tmp_path / "bin" / tool).symlink_to(shutil.which(tool) or "/bin/sh")
  return str(tmp_path / "bin")


def test_engine_build_without_a_compiler_is_a_sentence(tmp_path: Path) -> None:
  python, env = own_environment(tmp_path), {
      "PATH": path_without_compilers(tmp_path), "EXO_HOME": str(tmp_path / "home")
  }
  done = subprocess.run([python, "-m", "exo", "engine", "build", "--again"],
                        cwd=tmp_path,
                        env=env,
                        capture_output=True,
                        text=True,
                        check=False)
  assert done.returncode == 1 and done.stdout == ""
  assert done.stderr.count("\n") == 1 and "a C++ compiler is needed" in done.stderr and "install g++" in done.stderr


def test_install_native_builds_after_all_is_installed_and_its_failure_is_a_sentence(tmp_path: Path) -> None:
  """Of an installation that is complete: what is left is the build, which finds no compiler."""
  own_environment(tmp_path, ".venv")
  for name in ("install.sh", "pyproject.toml", "requirements.lock"):
    shutil.copy(ROOT / name, tmp_path / name)
  env = {"PATH": path_without_compilers(tmp_path), "HOME": str(tmp_path), "EXO_HOME": str(tmp_path / "home")}
  wanted = subprocess.run(["bash", "-c", "cat pyproject.toml requirements.lock | cksum"],
                          cwd=tmp_path,
                          capture_output=True,
                          text=True,
                          check=True).stdout.strip()
  (tmp_path / ".venv" / ".exo-installed").write_text(f"{wanted} ")

  def install(how: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", how], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

  done = install("source install.sh; echo status=$? $VIRTUAL_ENV")
  assert done.stdout == f"status=0 {tmp_path / '.venv'}\n" and done.stderr == ""
  if WHEEL is not None and next(library_files()).is_native:
    pytest.skip("this environment has a native library already")
  done = install("source install.sh --native; echo status=$? $VIRTUAL_ENV")
  assert done.stdout == f"status=1 {tmp_path / '.venv'}\n"
  assert "building llama.cpp for this processor" in done.stderr and "a C++ compiler is needed" in done.stderr
  assert done.stderr.count("\n") == 2
  assert install("bash install.sh --native").returncode == 1
  assert "there is no option --fast" in install("bash install.sh --fast").stderr


def build(python: Path, tmp_path: Path, **more: str) -> subprocess.Popen[str]:
  (tmp_path / "scratch").mkdir(exist_ok=True)
  env = os.environ | {"EXO_HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "scratch")} | more
  return subprocess.Popen([python, "-m", "exo", "engine", "build", "--again"],
                          cwd=tmp_path,
                          env=env,
                          stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT,
                          text=True)


def test_a_build_that_fails_says_why_and_where_the_log_is_and_changes_nothing(tmp_path: Path) -> None:
  """pip finds no sources: its index is a folder without any."""
  if shutil.which("c++") is None:
    pytest.skip("there is no C++ compiler")
  python = own_environment(tmp_path)
  (tmp_path / "index").mkdir()
  process = build(python, tmp_path, PIP_INDEX_URL=f"file://{tmp_path / 'index'}", PIP_EXTRA_INDEX_URL="", PIP_FIND_LINKS="",
                  PIP_CONFIG_FILE=os.devnull)  # yapf: disable
  output, _ = process.communicate(timeout=120)
  assert process.returncode == 1
  last = output.splitlines()[-1]
  log = tmp_path / "home" / ".exo" / "engine_build.log"
  assert last.startswith(f"exo: llama-cpp-python=={NATIVE} could not be built: ") and "No matching distribution" in last
  assert last.endswith(f"(the whole log: {log}); nothing else has changed") and log.is_file()
  assert not list((tmp_path / "scratch").iterdir())
  assert not list((tmp_path / "env").rglob("llama_cpp"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_engine_build_builds_a_library_for_this_processor(tmp_path: Path) -> None:
  """The whole of it, with cmake from the package index; before that it is interrupted once, which leaves nothing."""
  if shutil.which("c++") is None:
    pytest.skip("there is no C++ compiler")
  python = own_environment(tmp_path)
  with build(python, tmp_path) as process:
    assert process.stdout is not None
    while "compiling" not in (line := process.stdout.readline()):
      assert line, "it ended"
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
  assert not list((tmp_path / "scratch").iterdir())

  def compilers() -> int:
    done = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return sum(str(tmp_path / "scratch") in line for line in done.stdout.splitlines())

  wait_until(lambda: compilers() == 0, 10, "the end of the compilers")
  output, _ = build(python, tmp_path).communicate(timeout=3400)
  assert re.search(r"^ *\d+ %  compiling \d+ of \d+$", output, re.MULTILINE), output
  assert f"llama.cpp is llama-cpp-python {NATIVE}, built for this processor" in output
  assert "measured here on one core" in output or WHEEL is None
  code = "from exo.inference.llama_cpp.library_choice import chosen_library as c; l = c(); print(l.file.path, l.instructions)"
  used = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
  assert used.startswith(str(tmp_path / "env"))
  assert all(name in used for name in processor_instructions())
