"""gpt-oss: every other layer has a window."""

from exo.inference.families.family import Cut, Deviation, Every, Family, LayerKind, MlxLm

_CUT = Cut(windows=Every(2), needs=(LayerKind.WINDOW, ), own_head=True)
# experts that are floats lie the other way round than such that are packed
_MLX = MlxLm(
    transposed=(".experts.gate_up_proj", ".experts.down_proj"),
    renames=((r"\.experts\.(gate_up_proj|down_proj)(?:_blocks)?$", r".experts.\1.weight"), )
)

_BOUNDS = Deviation(
    "gpt-oss-yarn", "llama_cpp",
    "the bounds of YaRN's rotary embedding are rounded, so that probabilities differ a little"
)

FAMILIES = (Family(("gpt-oss", ), _CUT, types=("gpt_oss", ), mlx=_MLX, deviations=(_BOUNDS, )), )
