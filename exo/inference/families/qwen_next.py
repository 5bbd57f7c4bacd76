"""Qwen 3 Next and Qwen 3.5: three layers with a state, then one with attention."""

from exo.inference.families.family import Cut, Every, Family, LayerKind, MlxLm

_CUT = Cut(recurrent=Every(4), needs=(LayerKind.RECURRENT, LayerKind.ATTENTION))

FAMILIES = (
    Family(("qwen3next", ), _CUT, types=("qwen3_next", )),
    Family(("qwen35", ), _CUT, types=("qwen3_5_text", "qwen3_5")),
    Family(("qwen35moe", ), _CUT, types=("qwen3_5_moe_text", "qwen3_5_moe"), mlx=MlxLm(stacks_experts=True)),
)
