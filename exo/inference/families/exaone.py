"""EXAONE 4: the model of 64 layers alone has windows."""

from collections.abc import Mapping
from typing import Any

from exo.inference.families.family import Cut, Every, Family


def _older_words(config: Mapping[str, Any]) -> Mapping[str, Any]:
  """A pattern of letters, or none."""
  pattern = config.get("sliding_window_pattern")
  if not config.get("sliding_window"):
    return {"sliding_window_pattern": None}
  if isinstance(pattern, int) and not isinstance(pattern, bool) and 0 < pattern < 1024:
    return {"sliding_window_pattern": "L" * (pattern - 1) + "G"}
  return {}


FAMILIES = (Family(("exaone4", ), Cut(windows=Every(4), same=(64, )), types=("exaone4", ), older_words=_older_words), )
