"""How many processors this process may really use."""

from __future__ import annotations

from exo.system_figures import processors


def usable_threads() -> int:
  """The affinity mask's size, or less where a control group's quota allows less; at least one."""
  return processors()
