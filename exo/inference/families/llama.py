"""Llama, and those whose layers are all alike and know nothing of their number."""

from exo.inference.families.family import Family, Line

FAMILIES = (
    Family(("llama", ), types=("llama", ), line=Line()),
    Family(("mistral3", "arcee", "bitnet", "seed_oss", "stablelm", "olmo", "ernie4_5")),
)
