"""Phi 2 to 4, and their experts."""

from exo.inference.families.family import Cut, Deviation, Family, Line, MlxLm

_EXPERTS = Deviation(
    "phimoe-experts", "llama_cpp",
    "experts are weighed by a softmax over all, where its authors mask those that are far behind"
)

FAMILIES = (
    Family(("phi3", ), types=("phi3", ), line=Line()),
    Family(("phi2", ), Cut(own_head=True), types=("phi", )),
    Family(("phimoe", ), Cut(own_head=True), types=("phimoe", ), mlx=MlxLm(lacks_windows=True),
           deviations=(_EXPERTS, )),
)
