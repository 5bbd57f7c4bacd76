"""MiniMax M2."""

from exo.inference.families.family import Cut, Family

FAMILIES = (Family(("minimax-m2", ), Cut(own_head=True), types=("minimax_m2", )), )
