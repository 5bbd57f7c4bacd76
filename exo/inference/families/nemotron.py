"""Nemotron, and Nemotron H, of whose layers each does one thing: a state, attention, or a feed forward network."""

from collections.abc import Mapping
from typing import Any

from exo.inference.families.family import Cut, Family, LayerKind

_HYBRID = Cut(needs=(LayerKind.RECURRENT, LayerKind.ATTENTION), out="nemotron_h_block_out", only_networks=True)


def _older_words(config: Mapping[str, Any]) -> Mapping[str, Any]:
  """How many layers there are, which is only said by the list of their kinds."""
  listed = config.get("layers_block_type") or config.get("hybrid_override_pattern")
  return {"num_hidden_layers": len(listed)} if isinstance(listed, (list, str)) else {}


FAMILIES = (
    Family(("nemotron", ), Cut(own_head=True), types=("nemotron", )),
    Family(("nemotron_h", "nemotron_h_moe"), _HYBRID, types=("nemotron_h", ), older_words=_older_words),
)
