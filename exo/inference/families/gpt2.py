"""GPT-2: positions are added to whatever comes in."""

from exo.inference.families.family import Cut, Family, Later

FAMILIES = (Family(("gpt2", ), Cut(later=Later(zero=("position_embd.weight", )))), )
