"""Models in which layers with a state stand among such with attention, as the file says."""

from exo.inference.families.family import Cut, Family, LayerKind

FAMILIES = (
    Family(("jamba", "kimi-linear", "lfm2", "lfm2moe"), Cut(needs=(LayerKind.RECURRENT, LayerKind.ATTENTION))),
)
