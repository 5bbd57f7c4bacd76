"""Llama, and those whose layers are all alike and know nothing of their number."""

from exo.inference.families.family import Cut, Deviation, Family, Line

# Mistral 7B v0.1 and what was made of it, which as GGUF is a Llama like any other, and says nothing of its window
_MISTRAL = (("block_count", 32), ("feed_forward_length", 14336), ("context_length", 32768), ("rope.freq_base", 10000.0))
_WINDOW = Deviation(
    "mistral-window",
    "llama_cpp",
    "every layer sees the whole text, where those of the first Mistral 7B see the last 4,096 tokens",
    4096,
    where=_MISTRAL
)

FAMILIES = (
    Family(("llama", ), types=("llama", ), line=Line(), deviations=(_WINDOW, )),
    Family(("mistral3", "arcee", "bitnet", "seed_oss", "olmo", "ernie4_5")),
    Family(("stablelm", ), Cut(own_head=True)),
)
