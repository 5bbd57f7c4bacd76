"""Issue 22, it must show: a new user's first minutes, from the environment to the end of a chat, in every shell and size."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from test.support.nodes import ROOT

QUESTION = "What is the capital of Japan?"
READY = "READY: "
NOBODY = 65534
_BARE = {"bash": ["--norc", "--noprofile", "-i"], "zsh": ["-f", "-i"], "dash": ["-i"]}
_AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]


@pytest.fixture
def home(model_home: Path, tmp_path: Path) -> Iterator[Path]:
  """A home of one's own, in which the default model is already."""
  for folder in model_home.iterdir():
    if folder.name.lower().startswith("smollm2") or "smollm2" in folder.name.lower():
      shutil.copytree(folder, tmp_path / "exo" / folder.name, copy_function=os.link)
  yield tmp_path
  subprocess.run([sys.executable, "-m", "exo", "stop", "--now"],
                 cwd=ROOT,
                 env=environment(tmp_path),
                 timeout=60,
                 check=False)


def environment(home: Path) -> dict[str, str]:
  own = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "PYTHONPATH")}
  return own | {
      "HOME": str(home), "EXO_HOME": str(home / "exo"), "TERM": "xterm", "PS1": READY, "DEBUG": "0", "PROMPT": READY
  }


def activate() -> str:
  script = Path(sys.prefix) / "bin" / "activate"
  if not script.exists():
    pytest.skip("these tests do not run in an environment that can be activated")
  return str(script)


class Terminal:
  """A shell at which somebody sits. `rows`, `columns`: how large it is."""
  def __init__(self, shell: str, rows: int, columns: int, home: Path) -> None:
    if shutil.which(shell) is None:
      pytest.skip(f"{shell} is not installed")
    self.columns = columns
    self.child = pexpect.spawn(
        shell, _BARE[shell], cwd=str(ROOT), env=environment(home), dimensions=(rows, columns), timeout=90,
        encoding="utf-8", codec_errors="replace"
    )  # yapf: disable
    self.until(READY)
    # the prompt stays what it is in the environment, so that its end is known
    self.types(f"VIRTUAL_ENV_DISABLE_PROMPT=1; . {activate()}")

  def until(self, text: str) -> str:
    self.child.expect_exact(text)
    return str(self.child.before)

  def types(self, line: str) -> str:
    """What is shown until the next prompt, without colours, and in one line."""
    self.child.sendline(f"{line}; echo en''d")
    shown = self.until("end\r")
    self.until(READY)
    assert "Traceback" not in shown, shown
    return re.sub(r"\s+", " ", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown))


@pytest.mark.parametrize(("shell", "rows", "columns"), [
    ("bash", 24, 80), *(pytest.param(*walk, marks=pytest.mark.slow) for walk in (
        ("bash", 15, 40), ("zsh", 24, 80), ("zsh", 15, 40), ("dash", 24, 80), ("dash", 15, 40)
    ))
])  # yapf: disable
def test_22_it_must_show_the_first_minutes(shell: str, rows: int, columns: int, home: Path) -> None:
  terminal = Terminal(shell, rows, columns, home)
  assert re.search(r"exo \d+\.\d+", terminal.types("exo version"))
  assert "exo models" in terminal.types("exo list") and "exo status" in terminal.types("exo ps")
  assert "smollm2-135m" in terminal.types("exo models | head -40")
  assert "Tokyo" in terminal.types(f'exo run "{QUESTION}"')
  assert "no node of yours" in terminal.types("exo status")
  terminal.child.sendline("exo run")
  terminal.child.expect("> ")
  terminal.child.sendline("/help")
  terminal.until("/bye")
  terminal.child.expect(r"\n(\x1b\[\?2004h)?> ")
  terminal.child.sendline(QUESTION)
  terminal.until("Tokyo")
  terminal.child.expect(r"\n(\x1b\[\?2004h)?> ")
  terminal.child.sendline("/bye")
  terminal.until(READY)
  assert "no node of yours" in terminal.types("exo status")
  terminal.child.close(force=True)


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh", "dash"])
@pytest.mark.parametrize("user", ["this", "nobody"])
def test_22_it_must_show_the_first_minutes_without_a_terminal(shell: str, user: str, home: Path) -> None:
  if shutil.which(shell) is None:
    pytest.skip(f"{shell} is not installed")
  before: list[str] = []
  if user == "nobody":
    if os.geteuid() or shutil.which("setpriv") is None:
      pytest.skip("another user can be had as root alone, by setpriv")
    before = _AS_NOBODY
    if subprocess.run([*before, sys.executable, "-c", f"open({str(ROOT / 'README.md')!r})"], check=False).returncode:
      pytest.skip("another user may not read this folder")
    for path in (home, *home.rglob("*")):
      os.chown(path, NOBODY, NOBODY)
    home.parent.chmod(0o755)
  script = f'. {activate()}; exo version; exo run "{QUESTION}" | cat; echo "{QUESTION}" | exo run; exo models | head -1; exo status'
  done = subprocess.run([*before, shell, "-c", script], cwd=ROOT, env=environment(home), stdin=subprocess.DEVNULL,
                        capture_output=True, text=True, timeout=240, check=False)  # yapf: disable
  said = done.stdout + done.stderr
  assert "Traceback" not in said and done.stdout.count("Tokyo") == 2 and "no node of yours" in said, said
