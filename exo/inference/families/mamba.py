"""Mamba 1 and 2: every layer has a state."""

from collections.abc import Mapping
from typing import Any

from exo.inference.families.family import Family


def _older_words(config: Mapping[str, Any]) -> Mapping[str, Any]:
  """How wide the state's input is, as it follows from other values."""
  wide, factor = config.get("hidden_size"), config.get("expand", 2)
  if config.get("intermediate_size") is not None or not isinstance(wide, int) or not isinstance(factor, int):
    return {}
  return {"intermediate_size": wide * factor}


FAMILIES = (
    Family(("mamba", ), types=("mamba", )),
    Family(("mamba2", ), types=("mamba2", ), older_words=_older_words),
)
