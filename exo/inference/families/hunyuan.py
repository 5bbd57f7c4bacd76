"""Hunyuan, dense and with experts."""

from exo.inference.families.family import Family, MlxLm

_WRONG = "it does not bring the weights of the chosen experts to a sum of one"

FAMILIES = (
    Family(("hunyuan-dense", ), types=("hunyuan_v1_dense", )),
    Family(types=("hunyuan_v1_moe", "hunyuan"), mlx=MlxLm(called="hunyuan", wrong=_WRONG)),
)
