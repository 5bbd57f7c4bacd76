"""Names of tools as they are written in prompts and grammars, for clients whose names may be anything."""

from __future__ import annotations

import re
from collections.abc import Iterable

from exo.errors import InvalidRequestError

LONGEST = 128
_UNUSUAL = re.compile(r"[^A-Za-z0-9_.-]")


class ToolNames:
  """Each of `names` has one that models can write; those of which that is true already keep theirs."""
  def __init__(self, names: Iterable[str]) -> None:
    self._written: dict[str, str] = {}
    self._own: dict[str, str] = {}
    for name in sorted(set(names), key=lambda name: (_UNUSUAL.search(name) is not None, name)):
      if not 1 <= len(name) <= LONGEST:
        raise InvalidRequestError(f"tools: a name must have 1 to {LONGEST} characters", "tools")
      stem = written = _UNUSUAL.sub("_", name).strip("_") or "tool"
      if not _UNUSUAL.search(name):
        stem = written = name
      number = 1
      while written in self._own:
        number += 1
        written = f"{stem[:LONGEST - 5]}_{number}"
      self._written[name], self._own[written] = written, name

  def written(self, name: str) -> str:
    """As models see it."""
    return self._written.get(name) or _UNUSUAL.sub("_", name)[:LONGEST] or "tool"

  def own(self, written: str) -> str:
    """As its client calls it."""
    return self._own.get(written, written)
