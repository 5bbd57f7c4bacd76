"""How many processors this process may really use."""

from __future__ import annotations

from pathlib import Path

from exo.system_figures import processors


def usable_threads() -> int:
  """The affinity mask's size, or less where a container's quota allows less; at least one."""
  count = processors()
  try:
    quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    if quota != "max":
      count = min(count, int(quota) // int(period))
  except (OSError, ValueError):
    pass
  return max(1, count)
