"""Qwen 3 Next and Qwen 3.5: three layers with a state, then one with attention."""

from exo.inference.families.family import Cut, Every, Family, LayerKind

FAMILIES = (
    Family(("qwen3next", "qwen35", "qwen35moe"),
           Cut(recurrent=Every(4), needs=(LayerKind.RECURRENT, LayerKind.ATTENTION))),
)
