"""Nemotron, and Nemotron H, of whose layers each does one thing: a state, attention, or a feed forward network."""

from exo.inference.families.family import Cut, Family, LayerKind

_HYBRID = Cut(needs=(LayerKind.RECURRENT, LayerKind.ATTENTION), out="nemotron_h_block_out")

FAMILIES = (Family(("nemotron", )), Family(("nemotron_h", "nemotron_h_moe"), _HYBRID))
