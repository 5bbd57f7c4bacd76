"""Apple's foundation models."""

from exo.inference.families.family import Family, MlxLm

FAMILIES = (Family(types=("afm7", ), mlx=MlxLm(uncut="a stage would need what only other stages have")), )
