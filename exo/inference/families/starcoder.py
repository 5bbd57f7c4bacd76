"""StarCoder 2."""

from exo.inference.families.family import Family, MlxLm

FAMILIES = (Family(("starcoder2", ), types=("starcoder2", ), mlx=MlxLm(lacks_windows=True)), )
