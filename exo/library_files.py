"""Where libraries keep what they make for themselves: in EXO_HOME, like all that exo leaves on a machine."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

from exo.machine import this_machine
from exo.private_files import private_folder


def keep_library_files(state_dir: Path, environment: MutableMapping[str, str] | None = None) -> None:
  """Set what the libraries look at. What the user has set stays. Call before they are imported; never raises.

  Compiled code is of one machine's processor, so machines that share an EXO_HOME have folders of their own.
  """
  environment = os.environ if environment is None else environment
  cache = state_dir / "cache" / this_machine().mark
  with contextlib.suppress(OSError):  # said by whoever needs it
    private_folder(cache)
  # onnxruntime reports its use to its maker, by way of a database under ~/.cache, unless it is told not to
  environment.setdefault("ORT_DISABLE_TELEMETRY", "1")
  environment.setdefault("CACHEDB", str(cache / "tinygrad" / "cache.db"))
  environment.setdefault("CUDA_CACHE_PATH", str(cache / "cuda"))
  temporary = cache / "tmp"
  if "TMPDIR" not in environment and _can_run_code(temporary):
    # MLX compiles into a folder that any user could have made before it; Python's own files stay where they were
    with contextlib.suppress(OSError):  # none that can be written
      tempfile.tempdir = tempfile.gettempdir()
    environment["TMPDIR"] = str(temporary)


def _can_run_code(folder: Path) -> bool:
  """Whether what is compiled into it could be loaded from there."""
  try:
    private_folder(folder)
    return not os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 0)
  except OSError:
    return False
