"""Jamba: layers with a state, some with attention between."""

from exo.inference.families.family import Cut, Family, LayerKind, MlxLm

_WRONG = "it weighs experts by their scores among the chosen ones, not among all"

FAMILIES = (
    Family(("jamba", ),
           Cut(needs=(LayerKind.RECURRENT, LayerKind.ATTENTION)),
           types=("jamba", ),
           mlx=MlxLm(wrong=_WRONG)),
)
