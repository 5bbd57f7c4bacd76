"""Falcon, and Falcon H1, every layer of which has a state and attention."""

from exo.inference.families.family import Family, MlxLm

_FACTORS = (("self_attn.k_proj.weight", "key_multiplier"), ("self_attn.v_proj.weight", "attention_in_multiplier"))

FAMILIES = (Family(("falcon", )), Family(("falcon-h1", ), types=("falcon_h1", ), mlx=MlxLm(factors=_FACTORS)))
