"""`exo engine`: which library of llama.cpp is used, what another would bring, and building one for this processor."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from exo.cli.parser import Parser
from exo.config import Config
from exo.errors import EngineUnavailableError
from exo.inference.llama_cpp.binding import NATIVE
from exo.inference.llama_cpp.library_choice import Library, choose, chosen_library, compared, libraries
from exo.inference.llama_cpp.native_build import build_native
from exo.inference.llama_cpp.processor_instructions import processor_instructions
from exo.log import escape

_DESCRIPTION = """\
llama.cpp comes with exo as a library that runs on most processors. One that is built for this very processor is faster.

  exo engine               which library is used, for which instructions, and what the other one would bring
  exo engine build         build one here (pip fetches sources and cmake; a C++ compiler is needed; minutes). A failure
                           changes nothing. `pip uninstall llama-cpp-python` goes back to what came with exo.

EXO_LLAMA_CPP names a library of your own, or a folder with one: any build of llama.cpp whose structures exo knows."""
_PLAIN_EVERY = 10  # percent, where stderr is a file


def build_parser() -> Parser:
  parser = Parser(prog="exo engine", description=_DESCRIPTION)
  parser.add_argument("action", nargs="?", choices=["list", "build"], default="list", help="(default list)")
  parser.add_argument("--again", action="store_true", help="for build: also where there is one already")
  return parser


def engine_command(config: Config, arguments: argparse.Namespace) -> int:
  """Returns the exit status. Raises `EngineUnavailableError`."""
  if arguments.action == "build":
    return _build(config.state_dir / "engine_build.log", arguments.again)
  found = list(libraries())
  print("\n".join(escape(line) for line in (*library_lines(found), *comparison_lines(found))))
  return 0 if any(not library.missing for library in found) else 1


def library_lines(found: list[Library]) -> Iterator[str]:
  """The one that is used comes first in words, too. `found` as `libraries()` has them."""
  used, _ = choose(found)
  for library in found:
    if library.missing:
      yield f"put aside: {library.missing}"
    else:
      what = "llama.cpp is" if library is used else "also here:"
      yield f"{what} {library.file} (llama.cpp {library.version}, {library.file.path})"
      yield f"  for {', '.join(_of_processor(library)) or 'instructions that it does not tell'}"
      if library.plain:
        yield f"  without laying weights out for this processor: {library.plain}"
  if not found:
    yield "llama.cpp is not installed (pip install xllamacpp)"


def comparison_lines(found: list[Library]) -> Iterator[str]:
  """What a native library brings, measured where there are two, which takes seconds."""
  usable = [library for library in found if not library.missing]
  if len(usable) > 1:
    first, second = compared(usable[:2])
    if first is None or second is None:
      yield "  which of them is faster could not be measured"
      return
    yield (
        f"  measured here on one core: {first.decode / second.decode:.2f} times the tokens per second of {usable[1].file.origin}, "
        f"{first.prompt / second.prompt:.2f} times in prompts"
    )
  elif usable and usable[0].file.origin == "xllamacpp":
    left = [name for name in processor_instructions() if name not in usable[0].instructions]
    if left:
      yield f"  this processor also has {', '.join(left)}: what they bring is measured once `exo engine build` has built one"
    else:
      yield "  it uses what matters of this processor; `exo engine build` builds another, and then both are measured"


def _of_processor(library: Library) -> list[str]:
  """Without what it is linked with."""
  return [name for name in library.instructions if name not in ("LLAMAFILE", "OPENMP", "REPACK", "ACCELERATE")]


def _build(log_file: Path, again: bool) -> int:
  found = list(libraries())
  ready = next((library for library in found if library.file.is_native and library.file.version == NATIVE), None)
  if ready is not None and not ready.missing and not again:
    print(escape(f"llama-cpp-python {NATIVE} is built already: {ready.file.path} (--again builds it anew)"))
    return 0
  held = {number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
  progress = _Progress()
  try:
    built = build_native(progress.show, log_file)
  except OSError as error:
    raise EngineUnavailableError(
        f"llama-cpp-python could not be built ({error}): the folders of temporary files and {log_file.parent} have to be writable, "
        "with room for a GB; nothing else has changed"
    ) from error
  finally:
    progress.end()
    for number, handler in held.items():
      signal.signal(number, handler)
  print(escape(f"built {built.file.path}"))
  found = list(libraries())
  print("\n".join(escape(line) for line in (*library_lines(found), *comparison_lines(found))))
  chosen_library()  # raises where the new one does not work in its place
  return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
  raise KeyboardInterrupt


class _Progress:
  """One line that changes on a terminal, and a line for each tenth elsewhere."""
  def __init__(self) -> None:
    self._is_terminal = sys.stderr.isatty()
    self._told = -1

  def show(self, what: str, done: float) -> None:
    percent = int(100 * done)
    if self._is_terminal:
      sys.stderr.write(f"\r\033[K{percent:3d} %  {what}")
      sys.stderr.flush()
    elif percent // _PLAIN_EVERY > self._told:
      self._told = percent // _PLAIN_EVERY
      sys.stderr.write(f"{percent:3d} %  {what}\n")
      sys.stderr.flush()

  def end(self) -> None:
    if self._is_terminal:
      sys.stderr.write("\r\033[K")
      sys.stderr.flush()
