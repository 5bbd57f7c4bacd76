"""gpt-oss: every other layer has a window."""

from exo.inference.families.family import Cut, Deviation, Every, Family, LayerKind, MlxLm

_CUT = Cut(windows=Every(2), needs=(LayerKind.WINDOW, ))
_UNREAD = (".mlp.experts.gate_up_proj", )  # experts that are floats, stacked

_BOUNDS = Deviation(
    "gpt-oss-yarn", "llama_cpp",
    "the bounds of YaRN's rotary embedding are rounded, so that probabilities differ a little"
)

FAMILIES = (Family(("gpt-oss", ), _CUT, types=("gpt_oss", ), mlx=MlxLm(unread=_UNREAD), deviations=(_BOUNDS, )), )
