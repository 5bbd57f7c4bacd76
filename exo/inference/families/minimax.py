"""MiniMax M2."""

from exo.inference.families.family import Family

FAMILIES = (Family(("minimax-m2", ), types=("minimax_m2", )), )
