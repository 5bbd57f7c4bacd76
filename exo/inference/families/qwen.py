"""Qwen 2, 2.5 and 3, their experts, and the text of their models that see."""

from exo.inference.families.family import Family

FAMILIES = (Family(("qwen2", "qwen2moe", "qwen2vl", "qwen3", "qwen3moe", "qwen3vl", "qwen3vlmoe")), )
