"""What tells a file of the user's own from others of its size, without all of it being read.

Small files are hashed whole, of large ones pieces that lie evenly from end to end: another training of a model changes nearly all
of its weights, so that every piece differs. A change of a few numbers somewhere between them is not seen.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

from exo.download.disk_stamp import Stamp, stamp_of
from exo.errors import ModelFilesError
from exo.oldest import forget_oldest

_WHOLE_BYTES = 32 * 2**20
_PIECES, _PIECE_BYTES = 256, 4096
_MOST_KNOWN = 4096


def content_sample(path: Path) -> str:
  """Equal for equal files, whatever their names and times. Blocks: 1 MB at most is read of a large file, in 256 places.

  Raises `OSError`.
  """
  with path.open("rb") as file:
    size = os.fstat(file.fileno()).st_size
    if size <= _WHOLE_BYTES:
      digest = hashlib.file_digest(file, "sha256")
    else:
      digest = hashlib.sha256()
      for i in range(_PIECES):
        at = (size - _PIECE_BYTES) * i // (_PIECES - 1)
        digest.update(os.pread(file.fileno(), _PIECE_BYTES, at))
  digest.update(b"%d" % size)
  return digest.hexdigest()


def whole_hash(path: Path) -> str:
  """The SHA-256 of a file, all of which is read. Blocks; raises `OSError`."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


class KnownContents:
  """Samples and hashes of files, taken once as long as nobody writes to them. May be asked by any thread; blocks."""
  def __init__(self) -> None:
    self._samples: dict[Path, tuple[Stamp, str]] = {}
    self._hashes: dict[Path, tuple[Stamp, str]] = {}
    self._lock = threading.Lock()

  def sample(self, path: Path) -> str:
    """Raises `ModelFilesError` for a file that cannot be read."""
    return self._known(self._samples, path, content_sample)

  def whole_hash(self, path: Path) -> str:
    """Raises `ModelFilesError` for a file that cannot be read."""
    return self._known(self._hashes, path, whole_hash)

  def _known(self, known: dict[Path, tuple[Stamp, str]], path: Path, work: Callable[[Path], str]) -> str:
    stamp, found = stamp_of([path]), known.get(path)
    if found is None or found[0] != stamp:
      try:
        found = stamp, work(path)  # two who ask at the same time both read
      except OSError as error:
        raise ModelFilesError(f"{path.name} cannot be read: {error.strerror}") from error
    with self._lock:
      known.pop(path, None)
      known[path] = found
      forget_oldest(known, _MOST_KNOWN)
    return found[1]
