"""Qwen 2, 2.5 and 3, their experts, and the text of their models that see."""

from exo.inference.families.family import Cut, Family, Line

FAMILIES = (
    Family(("qwen2", ), types=("qwen2", ), line=Line(windows_if_asked=True)),
    Family(("qwen3", ), types=("qwen3", ), line=Line(qk_norm=True, windows_if_asked=True)),
    Family(("qwen3moe", ), types=("qwen3_moe", ), line=Line(qk_norm=True, windows_if_asked=True, experts=True)),
    Family(("qwen2moe", ), Cut(own_head=True)),
    Family(("qwen2vl", "qwen3vl", "qwen3vlmoe")),
)
