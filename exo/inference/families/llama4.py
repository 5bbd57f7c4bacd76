"""Llama 4: every fourth layer without rotary embedding, experts in every n-th."""

from exo.inference.families.family import Cut, Every, Family, LayerKind

FAMILIES = (
    Family(("llama4", ),
           Cut(
               windows=Every(4),
               starts_at=4,
               starts_at_key="interleave_moe_layer_step",
               needs=(LayerKind.WINDOW, LayerKind.FULL)
           )),
)
