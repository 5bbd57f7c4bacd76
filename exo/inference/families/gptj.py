"""GPT-J."""

from exo.inference.families.family import Family, MlxLm

FAMILIES = (Family(types=("gptj", ), mlx=MlxLm(uncut="a stage would need what only other stages have")), )
