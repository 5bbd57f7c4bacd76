"""What a user types into a chat: lines with history and editing, texts of several lines, and standard input beside a prompt."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections.abc import Callable
from pathlib import Path

from exo.errors import ConfigError

_FENCE = '"""'
_KEPT_LINES = 1000
_LARGEST = 16 * 2**20  # bytes beside a prompt; no model's context holds more
_TELL_S, _PATIENCE_S = 1.0, 10.0


class ChatInput:
  """Reads one message after the other. Lines are edited and remembered where both ends are a terminal."""
  def __init__(self, history: Path, complete: Callable[[str], list[str]]) -> None:
    self._edits = sys.stdin.isatty() and sys.stdout.isatty()
    self._history = history
    if self._edits:
      self._begin(complete)

  def read(self) -> str:
    """The next message. Raises `EOFError` at the end of the input, `KeyboardInterrupt`."""
    line = self._line("> ")
    if line.lstrip().startswith(_FENCE):
      return self._fenced(line.lstrip().removeprefix(_FENCE))
    lines = []
    while line.endswith("\\"):
      lines.append(line[:-1])
      line = self._line("... ")
    return "\n".join([*lines, line])

  def close(self) -> None:
    """Keep the history, where that is possible."""
    if self._edits:
      import readline
      with contextlib.suppress(OSError):
        self._history.touch(mode=0o600)
        readline.set_history_length(_KEPT_LINES)
        readline.write_history_file(self._history)

  def _begin(self, complete: Callable[[str], list[str]]) -> None:
    import readline
    with contextlib.suppress(OSError, ValueError):  # none yet, another library's, a home that cannot be read
      readline.read_history_file(self._history)

    def completer(_: str, state: int) -> str | None:
      found = complete(readline.get_line_buffer()[:readline.get_endidx()])
      return found[state] if state < len(found) else None

    readline.set_completer_delims(" ")
    readline.set_completer(completer)
    libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
    if not libedit:
      readline.parse_and_bind("set enable-bracketed-paste on")  # what is pasted is one message, whatever its lines

  def _line(self, prompt: str) -> str:
    if self._edits:
      return input(prompt)
    if sys.stdin.isatty():
      sys.stderr.write(prompt)
      sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
      raise EOFError
    return line.removesuffix("\n")

  def _fenced(self, line: str) -> str:
    """To the closing fence, or to the end of the input."""
    lines = []
    with contextlib.suppress(EOFError):
      while not line.rstrip().endswith(_FENCE):
        lines.append(line)
        line = self._line("... ")
      lines.append(line.rstrip().removesuffix(_FENCE))
    return "\n".join(lines).strip("\n")


def text_beside(waits: bool) -> str:
  """What comes by standard input beside a prompt; "" from a terminal, or where nothing comes for a while and `waits` is not set.

  Programs often start others with a pipe that nobody ever writes to or closes. Raises `ConfigError` for what is no text.
  """
  if sys.stdin.isatty():
    if not waits:
      return ""
    sys.stderr.write("type the text; Ctrl-D on a line of its own ends it\n")
  elif not _comes(None if waits else _PATIENCE_S):
    sys.stderr.write("exo: nothing came by standard input: going on without it (a last word - waits for it)\n")
    return ""
  data = b""
  while piece := os.read(0, 1 << 16):
    data += piece
    if len(data) > _LARGEST:
      raise ConfigError(f"standard input has more than {_LARGEST >> 20} MB, which no model can read at once")
  if b"\0" in data:
    raise ConfigError("standard input is no text: it has NUL bytes")
  return data.decode(errors="replace")


def _comes(patience_s: float | None) -> bool:
  """Wait until something comes by standard input, or its end; says so where that takes a while."""
  poll = select.poll()
  poll.register(0, select.POLLIN)
  began, told = time.monotonic(), False
  while not poll.poll(_TELL_S * 1000):
    if not told:
      told = True
      sys.stderr.write("exo: waiting for standard input (< /dev/null leaves it out)\n")
      sys.stderr.flush()
    if patience_s is not None and time.monotonic() - began >= patience_s:
      return False
  return True
