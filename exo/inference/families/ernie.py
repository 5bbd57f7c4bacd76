"""ERNIE 4.5 with experts in every n-th layer."""

from exo.inference.families.family import Cut, Family, MlxLm

FAMILIES = (
    Family(("ernie4_5-moe", ),
           Cut(starts_at_key="interleave_moe_layer_step"),
           types=("ernie4_5_moe", ),
           mlx=MlxLm(unread=("e_score_correction_bias", ))),
)
