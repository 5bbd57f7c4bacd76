"""GGUF files that are no language models: they make vectors, pictures or sound, or write by another way than word after word."""

from exo.inference.families.family import Family

FAMILIES = (
    Family((
        "bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3", "eurobert",
        "gemma-embedding", "llama-embed", "t5encoder"
    ),
           writes_no_text="it makes vectors of texts"),
    Family(("clip", "mtmd"),
           writes_no_text="it is the part of a model that sees or hears, which belongs to another file"),
    Family(("wavtokenizer-dec", ), writes_no_text="it makes sound"),
    Family(("t5", ), writes_no_text="it reads a text whole before it writes another"),
    Family(("dream", "llada", "llada-moe", "rnd1"), writes_no_text="it writes all words of a text at once"),
)
