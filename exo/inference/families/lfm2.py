"""LFM 2: layers with short convolutions, some with attention between."""

from exo.inference.families.family import Cut, Family, LayerKind

FAMILIES = (Family(("lfm2", "lfm2moe"), Cut(needs=(LayerKind.RECURRENT, LayerKind.ATTENTION))), )
