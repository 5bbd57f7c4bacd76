"""Builds `.venv.new` and renames it to `.venv`, in which exo is then. Run by install.sh: `install.py EXTRAS STAMP`.

Whatever ends it, nothing of it goes on, `.venv` is what it was or is complete, and the next run heals what is left. It needs only the
standard library, since it runs before anything is installed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV, NEW, OLD = ROOT / ".venv", ROOT / ".venv.new", ROOT / ".venv.old"
STAMP = ".exo-installed"
LOCK = ROOT / ".venv.lock"
TICK_S = 0.2
TOLD_MB = 5  # smaller files are not worth a line


class Failed(Exception):
  """The installation cannot go on; the sentence says why."""


def say(text: str) -> None:
  sys.stderr.write(f"install.sh: {text}\n")
  sys.stderr.flush()


class Stop:
  """Whether somebody wants this to end. Asked between steps, so that no program is started and then forgotten."""
  wanted = False

  @classmethod
  def want(cls, number: int, frame: object) -> None:
    cls.wanted = True

  @classmethod
  def check(cls) -> None:
    if cls.wanted:
      raise KeyboardInterrupt


class Children:
  """Programs that are run one at a time, each in a group of its own, which is ended with this process."""
  def __init__(self, log: Path) -> None:
    self.log = log
    self._parent = os.getppid()
    self._progress = Progress()

  def run(self, command: Sequence[str | Path]) -> int:
    """The exit status; what it says goes to the log."""
    Stop.check()
    with self.log.open("ab") as log:
      begin = log.tell()
      process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
      while process.poll() is None:
        Stop.wanted |= os.getppid() != self._parent  # install.sh itself was killed
        Stop.check()
        begin = self._progress.read(self.log, begin)
        time.sleep(TICK_S)
      return process.returncode
    finally:
      self._progress.clear()
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
      process.wait()


class Progress:
  """What pip is at: one line that changes on a terminal, a line for each large file elsewhere."""
  def __init__(self) -> None:
    self._terminal = sys.stderr.isatty()
    self._mb = 0.0

  def read(self, log: Path, begin: int) -> int:
    with log.open("rb") as file:
      file.seek(begin)
      new = file.read()
    whole = new[:new.rfind(b"\n") + 1].decode(errors="replace")
    for line in whole.splitlines():
      found = re.match(
          r"\s*(Collecting|Downloading|Using cached|Installing collected packages:|Building wheel for) ?([^ ,]+)(.*)",
          line
      )
      if found is not None:
        self._show(*found.groups())
    return begin + len(whole.encode())

  def _show(self, what: str, name: str, rest: str) -> None:
    size = re.search(r"\(([\d.]+) (kB|MB|GB)\)", rest)
    mb = float(size[1]) * {"kB": 1e-3, "MB": 1, "GB": 1e3}[size[2]] if size else 0.0
    name = name.rpartition("/")[2]
    if what == "Downloading":
      self._mb += mb
    told = f"installing {1 + rest.count(',')} packages" if what.startswith(
        "Installing"
    ) else f"{what.lower()} {name.split('-')[0]}"
    text = told + (f" {size[1]} {size[2]}" if size else "") + (f", {self._mb:.0f} MB so far" if self._mb else "")
    if self._terminal:
      width = shutil.get_terminal_size().columns - 3
      sys.stderr.write(f"\r\033[K  {text[:width]}")
    elif mb >= TOLD_MB or what.startswith("Installing"):
      sys.stderr.write(f"  {text}\n")
    sys.stderr.flush()

  def clear(self) -> None:
    if self._terminal:
      sys.stderr.write("\r\033[K")
      sys.stderr.flush()


def checked(extras: list[str]) -> None:
  known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
  unknown = [name for name in extras if name not in known]
  if unknown:
    raise Failed(f"there is no extra {unknown[0]}: choose from {', '.join(sorted(known))}, or none")


def hold() -> None:
  """No two at once. One that was killed holds nothing."""
  while True:
    try:
      descriptor = os.open(LOCK, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
      text = LOCK.read_text() if LOCK.exists() else ""
      if text.isdigit() and _runs(int(text)):
        raise Failed(f"another install.sh (process {text}) is at it: wait until it has ended") from None
      LOCK.unlink(missing_ok=True)
      continue
    os.write(descriptor, str(os.getpid()).encode())
    os.close(descriptor)
    return


def _runs(pid: int) -> bool:
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    return True
  return True


def heal(stamp: str) -> bool:
  """Put in order what an earlier run left; whether that was all there is to do."""
  if not VENV.exists() and _stamp(NEW) == stamp:  # it ended between two renames
    NEW.rename(VENV)
  if not VENV.exists() and OLD.exists():
    OLD.rename(VENV)
  for folder in (NEW, OLD):
    if folder.exists():
      shutil.rmtree(folder)
  return _stamp(VENV) == stamp and _starts(VENV)


def _stamp(folder: Path) -> str:
  file = folder / STAMP
  return file.read_text() if file.is_file() else ""


def _starts(folder: Path) -> bool:
  """Whether its Python and exo do."""
  try:
    done = subprocess.run([folder / "bin" / "python", "-c", "import exo.main, pip"],
                          cwd="/",
                          capture_output=True,
                          check=False)
  except OSError:
    return False
  return done.returncode == 0


def build(children: Children, extras: list[str], stamp: str) -> None:
  """A complete environment in `.venv.new`; one that is there is copied and brought up to date."""
  if _stamp(VENV) and _starts(VENV):
    say("bringing .venv up to date")
    shutil.copytree(VENV, NEW, symlinks=True, copy_function=copied)
    (NEW / STAMP).unlink()
  else:
    say(f"setting up .venv with {sys.executable}")
    if children.run([sys.executable, "-m", "venv", "--prompt", ".venv", NEW]):
      raise Failed(f"{sys.executable} could not make a virtual environment: {last_error(children.log)}")
  named = f"[{','.join(extras)}]" if extras else ""
  say(f"installing exo{named} and what it needs (a few minutes the first time)")
  install(children, named)
  relocate()
  (NEW / STAMP).write_text(stamp)


def copied(source: str, target: str) -> object:
  Stop.check()
  return shutil.copy2(source, target)


def install(children: Children, named: str) -> None:
  """An engine whose wheel this platform lacks is left out; everything else must install."""
  python, left_out = NEW / "bin" / "python", list[str]()
  lock = ["-c", str(ROOT / "requirements.lock")]

  def pip(*words: str) -> int:
    return children.run([python, "-m", "pip", "--disable-pip-version-check", "install", *lock, *words])

  def must(*words: str) -> None:
    if pip(*words):
      raise Failed(f"installing failed: {last_error(children.log)} ({children.log.name} has the rest)")

  must("pip")
  if not pip("-e", f"{ROOT}{named}"):
    return
  say("not everything could be installed at once; trying without the engines that have no wheel for this platform")

  def requirements(kind: str) -> list[str]:
    command = [python, ROOT / "scripts" / "requirements.py", kind, named]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()

  must(*requirements("core"))
  for requirement in requirements("engines"):
    if pip("--only-binary=:all:", requirement):
      left_out.append(requirement)
  must("--no-deps", "-e", str(ROOT))
  for name in left_out:
    say(f"left out, this platform has no wheel of it: {name}")


def last_error(log: Path) -> str:
  lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
  errors = [line for line in lines if re.match(r"(ERROR|Error|OSError|error):?", line)]
  return (errors or lines or ["it said nothing"])[-1].strip()


def relocate() -> None:
  """Let its programs and `activate` name the place where it will be."""
  for file in (*(NEW / "bin").iterdir(), NEW / "pyvenv.cfg"):
    if file.is_symlink() or not file.is_file():
      continue
    data = file.read_bytes()
    if str(NEW).encode() in data and b"\0" not in data:
      mode, part = file.stat().st_mode, file.with_name(f".{file.name}.part")
      part.write_bytes(data.replace(str(NEW).encode(), str(VENV).encode()))
      part.chmod(mode)
      part.replace(file)


def swap() -> None:
  Stop.check()
  if VENV.exists():
    VENV.rename(OLD)
  NEW.rename(VENV)
  shutil.rmtree(OLD, ignore_errors=True)


def main(extras_text: str, stamp: str) -> int:
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, Stop.want)
  extras = [name for name in extras_text.split(",") if name]
  held = False
  try:
    checked(extras)
    hold()
    held = True
    if not heal(stamp):
      log = ROOT / ".venv.log"
      log.write_bytes(b"")
      build(Children(log), extras, stamp)
      swap()
      log.replace(VENV / "install.log")
    return 0
  except Failed as error:
    say(str(error))
    return 1
  except (OSError, shutil.Error, subprocess.SubprocessError) as error:
    say(f"installing failed: {error}")
    return 1
  except KeyboardInterrupt:
    say("interrupted: nothing of it goes on, and the next run begins where it has to")
    return 130
  finally:
    if held:
      LOCK.unlink(missing_ok=True)


if __name__ == "__main__":
  sys.exit(main(*sys.argv[1:]))
