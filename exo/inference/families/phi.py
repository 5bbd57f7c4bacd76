"""Phi 2 to 4, and their experts."""

from exo.inference.families.family import Family, Line, MlxLm

FAMILIES = (
    Family(("phi3", ), types=("phi3", ), line=Line()),
    Family(("phi2", ), types=("phi", )),
    Family(("phimoe", ), types=("phimoe", ), mlx=MlxLm(lacks_windows=True)),
)
