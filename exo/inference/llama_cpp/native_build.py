"""Building llama.cpp for this very processor: the sources of `llama-cpp-python`, of which exo uses the libraries alone.

All is made in a folder that goes away, and tried there: only what works is installed, so that a failure changes nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from exo.errors import EngineUnavailableError
from exo.inference.library_version import library_version
from exo.inference.llama_cpp.binding import NATIVE
from exo.inference.llama_cpp.library_choice import Library, tried
from exo.inference.llama_cpp.library_file import native_file, native_in
from exo.inference.llama_cpp.virtual_file import has_virtual_files
from exo.network_causes import cause_in
from exo.pip_environment import pip_environment
from exo.private_files import private_folder
from exo.system_figures import free_disk, memory, processors

_REQUIREMENT = f"llama-cpp-python=={NATIVE}"
_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")
_SILENT_S = 900.0  # the longest file takes as long on the slowest processor
_INSTALL_S = 300.0
_END_S = 60.0
_DISK_BYTES = 1 << 30
_JOB_BYTES = 1 << 30  # of memory, what a compiler takes
_STEP = re.compile(r"^\s*\[(\d+)/(\d+)\]")
_ERROR = re.compile(r": (fatal )?error: |CMake Error|^ERROR: (?!Failed)|\bKilled\b|No space left on device")
_LINES, _MOST_SAID = 3, 600
_TRIALS = 20  # steps of what cmake compiles to see whether it can


def build_native(progress: Callable[[str, float], None], log_file: Path) -> Library:
  """Build it and put it beside exo. `progress` hears what is done and how much of all, 0 to 1. Blocks for minutes.

  Raises `EngineUnavailableError`, in words that say what to install or where the whole log lies; nothing has changed then. An interrupt
  leaves nothing behind.
  """
  _check()
  private_folder(log_file.parent)
  with tempfile.TemporaryDirectory(prefix="exo-engine-") as name, log_file.open("w", errors="replace") as log:
    scratch = Path(name)
    for folder in ("tmp", "wheel"):
      (scratch / folder).mkdir()
    if free := _too_little_disk(scratch):
      raise EngineUnavailableError(free)
    progress("fetching the sources", 0.0)
    _make_wheel(scratch, log, progress)
    (wheel, ) = (scratch / "wheel").glob("*.whl")
    progress("trying it", 0.97)
    _try(wheel, scratch / "unpacked")
    progress("installing it", 0.99)
    _install(wheel, scratch, log)
  importlib.invalidate_caches()
  library_version.cache_clear()
  file = native_file()
  if file is None:
    raise EngineUnavailableError(f"pip has installed {_REQUIREMENT} where this Python does not find it ({log_file})")
  log_file.unlink(missing_ok=True)
  return tried(file)


def _check() -> None:
  if not has_virtual_files():
    raise EngineUnavailableError(
        "the llama_cpp engine needs a C library with fopencookie, as Linux has it: none is built here"
    )
  if importlib.util.find_spec("pip") is None:
    raise EngineUnavailableError(f"this Python has no pip, which builds it: run `{sys.executable} -m ensurepip` first")
  folder = sysconfig.get_path("platlib")
  if not os.access(folder, os.W_OK):
    raise EngineUnavailableError(f"{folder} is not this user's to write: build it as whoever has installed exo")
  if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
    raise EngineUnavailableError(
        "a C++ compiler is needed and none is on the PATH: install g++ (Debian, Ubuntu), gcc-c++ (Fedora) or gcc (Arch)"
    )


def _too_little_disk(folder: Path) -> str:
  free = free_disk(folder)
  if free is None or free >= _DISK_BYTES:
    return ""
  return f"{_DISK_BYTES >> 20} MB are needed in {folder.parent}, {free >> 20} MB are free: make room, or set TMPDIR"


def _make_wheel(scratch: Path, log: IO[str], progress: Callable[[str, float], None]) -> None:
  jobs = max(1, min(processors(), memory().available // _JOB_BYTES))
  settings = ("cmake.define.GGML_NATIVE=ON", "cmake.define.BUILD_SHARED_LIBS=ON", f"build.tool-args=-j{jobs}")
  # what pip may have kept can be of another machine's processor
  command = (
      *_PIP, "--no-cache-dir", "wheel", "--verbose", "--no-deps", "--no-binary", "llama-cpp-python", "--wheel-dir",
      str(scratch / "wheel"), *(f"--config-settings={setting}" for setting in settings), _REQUIREMENT
  )
  with _process(command, scratch) as (process, lines):
    while (line := _next_line(lines)) is not None:
      log.write(line)
      log.flush()
      if (step := _STEP.match(line)) and int(step[2]) > _TRIALS:
        done, of = int(step[1]), int(step[2])
        progress(f"compiling {done} of {of}", 0.1 + 0.85 * done / of)
      elif "Configuring CMake" in line:
        progress("configuring", 0.08)
    if not _went_well(process):
      raise EngineUnavailableError(f"{_REQUIREMENT} could not be built: {_why(log.name)}")


def _install(wheel: Path, scratch: Path, log: IO[str]) -> None:
  """Only this wheel: what it names as its needs is no need of exo's, which takes the libraries in it. Nothing interrupts it, since half
  of it would be worse than all or nothing."""
  command = (*_PIP, "install", "--no-deps", "--no-index", "--force-reinstall", str(wheel))
  held = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
  try:
    with _process(command, scratch) as (process, lines):
      while (line := _next_line(lines, _INSTALL_S)) is not None:
        log.write(line)
      log.flush()
      if not _went_well(process):
        raise EngineUnavailableError(f"{_REQUIREMENT} could not be installed: {_why(log.name)}")
  finally:
    for number, handler in held.items():
      signal.signal(number, handler)


@contextmanager
def _process(command: tuple[str, ...],
             scratch: Path) -> Iterator[tuple[subprocess.Popen[str], queue.Queue[str | None]]]:
  """With its lines, None after the last. It and all that it has started end with the block."""
  process = subprocess.Popen(
      command,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      errors="replace",
      env=pip_environment(scratch, scratch / "tmp"),
      start_new_session=True
  )
  lines: queue.Queue[str | None] = queue.Queue()

  def read() -> None:
    assert process.stdout is not None
    for line in process.stdout:
      lines.put(line)
    lines.put(None)

  reader = threading.Thread(target=read, name="exo-build", daemon=True)
  reader.start()
  try:
    yield process, lines
  finally:
    with suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    reader.join(5)


def _went_well(process: subprocess.Popen[str]) -> bool:
  """Of one that has said its last."""
  try:
    return process.wait(_END_S) == 0
  except subprocess.TimeoutExpired:
    return False


def _next_line(lines: queue.Queue[str | None], timeout_s: float = _SILENT_S) -> str | None:
  try:
    return lines.get(timeout=timeout_s)
  except queue.Empty:
    raise EngineUnavailableError(f"pip has said nothing for {timeout_s / 60:.0f} minutes and was ended") from None


def _try(wheel: Path, folder: Path) -> None:
  with zipfile.ZipFile(wheel) as archive:
    archive.extractall(folder)
  file = native_in(folder / "llama_cpp", NATIVE)
  if not file.path.is_file():
    raise EngineUnavailableError(f"{wheel.name} has no {file.path.name}: nothing has changed")
  if missing := tried(file).missing:
    raise EngineUnavailableError(f"what was built does not work here, so nothing has changed: {missing}")


def _why(log_name: str) -> str:
  """What the log has of the first error, or else its end, and where it is."""
  text = Path(log_name).read_text(errors="replace")
  said = cause_in(text)
  if not said:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = next((i for i, line in enumerate(lines) if _ERROR.search(line)), len(lines) - _LINES)
    if first < len(lines) and "CMake Error at" in lines[first]:  # of a file of its own, and then why
      first += 1
    said = " ".join(lines[max(0, first):][:_LINES])[:_MOST_SAID]
  return f"{said or 'pip does not say why'} (the whole log: {log_name}); nothing else has changed"
