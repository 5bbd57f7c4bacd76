"""The process's standard streams while a node runs in it: nobody who writes to them waits for whoever reads them.

exo's own lines and what libraries print go through `TextWriter`. What is written in C goes to descriptors 1 and 2 as ever, so
that the last words of a crash arrive where they always did; but these are opened anew so as to fail rather than to wait, for
this process alone (a terminal that is set so is set so for everybody who uses it).
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import fcntl
import io
import os
import select
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO, cast

from exo import log
from exo.text_writer import TextWriter

_POLL_S = 0.02
_FLUSH_S = 1.0  # for what is left at the end, where nobody reads


class QuietStream(io.TextIOBase):
  """Stands for `sys.stdout` or `sys.stderr`: takes text, and never waits or raises."""
  def __init__(self, descriptor: int, stream: TextIO, writer: TextWriter) -> None:
    self._descriptor, self._stream, self.writer = descriptor, stream, writer

  @property
  def encoding(self) -> str:  # type: ignore[override]
    return self._stream.encoding or "utf-8"

  @property
  def errors(self) -> str:  # type: ignore[override]
    return "backslashreplace"

  @property
  def buffer(self) -> io.BufferedIOBase:
    """For the few who write bytes; they are on their own."""
    return cast(io.BufferedIOBase, self._stream.buffer)

  def write(self, text: str) -> int:
    self.writer.put(text)
    return len(text)

  def flush(self) -> None:
    """Nothing waits here."""

  def writable(self) -> bool:
    return True

  def fileno(self) -> int:
    return self._descriptor

  def isatty(self) -> bool:
    return os.isatty(self._descriptor)


class _QuietErrors(QuietStream):
  """What libraries say has the form of the log's lines where those have one, or a view shows them."""
  def write(self, text: str) -> int:
    if log.is_plain():
      return super().write(text)
    for line in text.splitlines():
      if line.strip():
        log.say(line)
    return len(text)


def _pass(text: str) -> None:
  sys.stderr.write(text)


def reserve() -> None:
  """Let every command be able to print.

  Where a standard stream is closed, nothing else may be opened in its place: what is written in C would go into it.
  """
  for descriptor in range(3):
    try:
      os.fstat(descriptor)
    except OSError:
      os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, this one
  if sys.stdout is None:
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - for as long as the process lives
  if sys.stderr is None:
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors="backslashreplace")  # what a terminal's letters lack is no reason to fail


@contextmanager
def never_waiting(*, answers: bool) -> Iterator[None]:
  """Nothing that this process shows makes it wait. With `answers` stdout is somebody's who gets all of it: at the end it
  is waited for, and `taken` says when it is too slow."""
  signal.signal(
      signal.SIGTTOU, signal.SIG_IGN
  )  # in the background `stty tostop` would stop a node for a line of its log
  restores = [_fail_rather_than_wait(descriptor) for descriptor in (1, 2)]
  stdout, stderr = sys.stdout, sys.stderr
  errors = TextWriter(2, stderr.encoding or "utf-8", log.lines_lost)
  shared = not answers and os.path.samestat(os.fstat(1), os.fstat(2))
  out = errors if shared else TextWriter(1, stdout.encoding or "utf-8", log.lines_lost)
  sys.stdout, sys.stderr = cast(TextIO, QuietStream(1, stdout, out)), cast(TextIO, _QuietErrors(2, stderr, errors))
  quiet = sys.stderr
  # a progress bar that has put itself in the place of stderr writes lines above itself
  log.set_stream(lambda text: errors.put(text) if sys.stderr is quiet else _pass(text))
  with contextlib.suppress(OSError, ValueError):
    faulthandler.enable(2)
  patient = answers
  try:
    yield
  except BaseException:  # an interrupt, an output that is gone: nobody is waited for
    patient = False
    raise
  finally:
    log.set_sink(None)
    out.close(None if patient else _FLUSH_S)
    errors.close(_FLUSH_S)
    log.set_stream(None)
    sys.stdout, sys.stderr = stdout, stderr
    for restore in restores:
      restore()


def _fail_rather_than_wait(descriptor: int) -> Callable[[], None]:
  """Let writes to it fail where they would wait; what is returned undoes what others would notice. Files are left alone."""
  mode = os.fstat(descriptor).st_mode
  if stat.S_ISREG(mode) or (stat.S_ISCHR(mode) and not os.isatty(descriptor)):
    return _nothing
  own = _opened_anew(descriptor)
  if own is None:
    return _nothing if os.isatty(descriptor) else _set_non_blocking(descriptor)
  os.dup2(own, descriptor)
  os.close(own)
  return _nothing


def _opened_anew(descriptor: int) -> int | None:
  """The same terminal or pipe with flags of its own; None where the system has no way to it."""
  for where in (_by_number, os.ttyname):
    with contextlib.suppress(OSError):
      own = os.open(where(descriptor), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
      if os.path.samestat(os.fstat(own), os.fstat(descriptor)):
        return own
      os.close(own)
  return None


def _by_number(descriptor: int) -> str:
  return f"/proc/self/fd/{descriptor}"


def _set_non_blocking(descriptor: int) -> Callable[[], None]:
  """For sockets, and pipes that cannot be opened anew: those who share it see it too, so it ends with this process."""
  flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
  if flags & os.O_NONBLOCK:
    return _nothing
  fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_NONBLOCK)
  return lambda: os.set_blocking(descriptor, True)


def _nothing() -> None:
  pass


async def taken() -> None:
  """Wait until whoever reads stdout has taken nearly all of it. Raises what ended the writing, as `BrokenPipeError`."""
  out = sys.stdout
  if isinstance(out, QuietStream):
    while out.writer.is_behind and out.writer.error is None:  # noqa: ASYNC110 - it is a thread that waits
      await asyncio.sleep(_POLL_S)
    if out.writer.error is not None:
      raise out.writer.error


async def shown() -> None:
  """Wait until all that was written is to be seen, as before a prompt; not for long where nobody reads."""
  ends = asyncio.get_running_loop().time() + _FLUSH_S
  for stream in (sys.stdout, sys.stderr):
    while isinstance(stream, QuietStream) and stream.writer.waiting:
      if asyncio.get_running_loop().time() > ends:
        return
      await asyncio.sleep(_POLL_S / 4)


def reader_is_gone() -> bool:
  """Whether the reader of stdout or stderr has ended."""
  poll = select.poll()
  for descriptor in (1, 2):
    poll.register(descriptor, 0)
  return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
