"""Llama, and those whose layers are all alike and know nothing of their number."""

from exo.inference.families.family import Family

FAMILIES = (
    Family((
        "llama", "mistral3", "arcee", "apertus", "bitnet", "seed_oss", "stablelm", "olmo", "ernie4_5", "hunyuan-dense"
    )),
)
