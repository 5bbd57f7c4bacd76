"""The `exo` command."""

from __future__ import annotations

import errno
import os
import sys

from exo import log
from exo.cli.commands import command_line
from exo.errors import ExoError
from exo.standard_streams import reader_is_gone, reserve


def run() -> None:
  """Parse the command line and do what it says; the process ends with its exit status."""
  reserve()
  try:
    try:
      status = command_line(sys.argv[1:])
    finally:
      sys.stdout.flush()  # here it can still be told
  except ExoError as error:
    log.say(f"exo: {error}")
    status = 1
  except KeyboardInterrupt:
    status = 130
  except OSError as error:
    status = _unwritten(error)
  sys.exit(status)


_SURROUNDINGS = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOENT, errno.ENOTDIR, errno.EEXIST,
    errno.EISDIR, errno.EIO, errno.ELOOP, errno.ENAMETOOLONG, errno.ESTALE
)
_READER_GONE = 141  # what a shell shows for a program that SIGPIPE ended


def _unwritten(error: OSError) -> int:
  """An exit status for output that cannot be written, as of `exo models | head`; anything else is raised on."""
  if isinstance(error, BrokenPipeError) and reader_is_gone():
    status = _READER_GONE
  elif error.errno == errno.ENOSPC and error.filename is None:
    log.say("exo: what it says cannot be written: the disk is full")
    status = 1
  elif error.errno in _SURROUNDINGS and error.filename is not None and not log.enabled(1):
    log.say(
        f"exo: {error.filename} cannot be used ({error.strerror}): mend it, or point EXO_HOME to a folder that this user may write "
        "(exo doctor tells more)"
    )
    return 1
  else:
    raise error
  os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in a buffer can go nowhere
  return status
