"""The library of llama.cpp that is used: the first in order that a process of its own could load, and that lived through a trial."""

from __future__ import annotations

import functools
import json
import re
import signal
import subprocess
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from exo.child_process import child_command
from exo.config import named_llama_cpp
from exo.errors import EngineUnavailableError
from exo.inference.llama_cpp.library_file import LibraryFile, library_files
from exo.log import log

_CHILD = "exo.inference.llama_cpp.library_child"
REPACKED, PLAIN = "repacked", "plain"  # how weights are held in a trial
_TIMEOUT_S = 60.0  # it takes a fifth of a second
_TURNS = 2
_SAID = 300  # of what a library says at its end
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Library:
  """`missing` says, as a sentence, why a library cannot be used; "" where it can. `version` is llama.cpp's own, `instructions` those of
  the processor that it was built to use, in GGML's names. `plain` says why it only lives with weights as they lie in files, and not laid
  out anew for this processor; "" where it lives with these."""
  file: LibraryFile
  missing: str = ""
  version: str = ""
  instructions: tuple[str, ...] = ()
  plain: str = ""


@dataclass(frozen=True, slots=True)
class LibrarySpeed:
  """Tokens per second, with two layers of a 1B model in Q4_K_M on one core."""
  prompt: float
  decode: float


_usable: dict[tuple[LibraryFile, int, int, int], Library] = {}


def libraries() -> Iterator[Library]:
  """Those that are here, in the order of choice, each tried when it is asked for. Blocks; raises `ConfigError`."""
  for file in library_files(named_llama_cpp()):
    yield tried(file)


def chosen_library() -> Library:
  """The one of `libraries` that is used. Blocks, the first time for a fraction of a second, or some where two are measured.

  Raises `EngineUnavailableError`, whose message follows a name, with what is wrong with each.
  """
  library, aside = choose(libraries())
  if library is not None:
    for why in aside:
      _tell(f"is put aside: {why}")
    if library.plain:
      _tell(
          f"is used with weights as they lie in files, since it does not work with such as are laid out anew: {library.plain}"
      )
    return library
  if not aside:
    raise EngineUnavailableError("is not installed (pip install xllamacpp)")
  raise EngineUnavailableError(f"has no library that works: {'; '.join(aside)}")


def choose(found: Iterable[Library]) -> tuple[Library | None, list[str]]:
  """The first that can be used, and what is wrong with those that are put aside for it. One that can only be used plain is not taken if the
  next decodes faster. Blocks, for seconds where two are measured."""
  aside: list[str] = []
  plain: Library | None = None
  for library in found:
    if library.missing:
      aside.append(library.missing)
    elif plain is not None:
      return (library, [*aside, plain.plain]) if _is_faster(library, plain) else (plain, aside)
    elif library.plain:
      plain = library
    else:
      return library, aside
  return plain, aside


@functools.cache
def _is_faster(one: Library, other: Library) -> bool:
  mine, its = compared((one, other))
  return mine is not None and (its is None or mine.decode > its.decode)


@functools.cache
def _tell(what: str) -> None:
  log(0, "a library of llama.cpp %s", what)


def tried(file: LibraryFile) -> Library:
  """What is wrong is looked at again each time: somebody may have mended it."""
  try:
    stat = file.path.stat()
  except OSError as error:
    return Library(file, f"{file.origin} is to be {file.path}: {error.strerror}")
  key = file, stat.st_size, stat.st_mtime_ns, stat.st_ino
  with _lock:  # who asks at the same time waits for the same answer
    library = _usable.get(key) or _try(file)
    if not library.missing:
      _usable[key] = library
    return library


def _try(file: LibraryFile) -> Library:
  found, missing = _look(file, REPACKED)
  plain = ""
  if missing and "version" in found:  # a kernel for weights that are laid out anew may be what fails
    found, still_missing = _look(file, PLAIN)
    missing, plain = (missing, "") if still_missing else ("", missing)
  named = re.findall(r"(\w+) = 1\b", found.get("info", ""))
  return Library(file, missing, found.get("version", ""), tuple(named), plain)


def _look(file: LibraryFile, how: str) -> tuple[dict[str, Any], str]:
  """What it says, and what is wrong with it."""
  found, end = _ask("look", how, file)
  return found, str(found.get("refused", "")) or ("" if "lives" in found else _why_ended(file, "version" in found, end))


def compared(libraries: Sequence[Library]) -> list[LibrarySpeed | None]:
  """In turns, since others may compute meanwhile, the best of each; about two seconds for each. None where one could not be measured."""
  best: list[LibrarySpeed | None] = [None] * len(libraries)
  for _ in range(_TURNS):
    for i, library in enumerate(libraries):
      found, _ = _ask("measure", PLAIN if library.plain else REPACKED, library.file)
      old = best[i] or LibrarySpeed(0.0, 0.0)
      if "decode" in found:
        best[i] = LibrarySpeed(max(old.prompt, found["prompt"]), max(old.decode, found["decode"]))
  return best


def _why_ended(file: LibraryFile, in_trial: bool, end: str) -> str:
  return f"{file.path.name} ({file.origin}) {'ended its process in a trial' if in_trial else 'ended its process'}: {end}"


def _ask(what: str, how: str, file: LibraryFile) -> tuple[dict[str, Any], str]:
  """What the process wrote, and how it ended."""
  command = child_command(_CHILD, (what, how, str(file.path)))
  try:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, check=False)
  except subprocess.TimeoutExpired as error:
    return _lines(error.stdout or b""), f"it has not answered within {_TIMEOUT_S:.0f} s"
  except OSError as error:
    return {}, f"no process can be started: {error.strerror}"
  lines = done.stderr.decode(errors="replace").strip().splitlines()
  said = [line for line in lines if "GGML_ASSERT" in line] or lines  # ggml shows its stack after it
  ended = signal.strsignal(-done.returncode) if done.returncode < 0 else f"status {done.returncode}"
  return _lines(done.stdout), f"{ended}{f' ({said[-1][:_SAID]})' if said else ''}"


def _lines(output: bytes) -> dict[str, Any]:
  """Libraries may write something, too."""
  found: dict[str, Any] = {}
  for line in output.splitlines():
    try:
      value = json.loads(line)
    except ValueError:
      continue
    found |= value if isinstance(value, dict) else {}
  return found
