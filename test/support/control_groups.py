"""Real control groups with limits, for processes of tests, where this machine lets a test have some (version 1, root)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


@contextmanager
def group(controller: str, limits: dict[str, str]) -> Iterator[Path]:
  """A real control group below another that has the limits; skips where this machine allows none (version 1, root)."""
  top = Path("/sys/fs/cgroup") / controller / f"exo-test-{os.getpid()}"
  inner = top / "inner"
  try:
    inner.mkdir(parents=True)
    for name, text in limits.items():
      (top / name).write_text(text)
  except OSError as error:
    pytest.skip(f"no control groups of version 1 can be made here: {error}")
  try:
    yield inner / "cgroup.procs"
  finally:
    for folder in (inner, top):
      for _ in range(100):  # until the processes in it are gone
        with suppress(OSError):
          folder.rmdir()
          break
        time.sleep(0.05)


def entering(procs: Path) -> tuple[str, ...]:
  """What is put before a command so that it runs in the group of this file."""
  return "bash", "-c", f'echo $$ > {procs} && exec "$@"', "-"
