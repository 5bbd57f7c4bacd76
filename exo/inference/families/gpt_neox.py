"""GPT-NeoX and Pythia."""

from collections.abc import Mapping
from typing import Any

from exo.inference.families.family import Cut, Family


def _older_words(config: Mapping[str, Any]) -> Mapping[str, Any]:
  words = {"rotary_emb_base": config.get("rope_theta"), "rotary_pct": config.get("partial_rotary_factor")}
  return {key: value for key, value in words.items() if value is not None}


FAMILIES = (Family(("gptneox", ), Cut(own_head=True), types=("gpt_neox", ), older_words=_older_words), )
