"""Apertus."""

from collections.abc import Mapping
from typing import Any

from exo.inference.families.family import Cut, Family


def _older_words(config: Mapping[str, Any]) -> Mapping[str, Any]:
  """What every model of it has, and none of its newer configurations says."""
  return {key: config.get(key, False) for key in ("mlp_bias", "post_norm")}


FAMILIES = (Family(("apertus", ), Cut(own_head=True), types=("apertus", ), older_words=_older_words), )
