"""StarCoder 2."""

from exo.inference.families.family import Deviation, Family, MlxLm

_WINDOW = Deviation(
    "starcoder2-window", "llama_cpp", "every layer sees the whole text, where its authors' see the last 4,096 tokens",
    4096
)

FAMILIES = (Family(("starcoder2", ), types=("starcoder2", ), mlx=MlxLm(lacks_windows=True), deviations=(_WINDOW, )), )
