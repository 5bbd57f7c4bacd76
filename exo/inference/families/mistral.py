"""Mistral and Ministral, which GGUF calls a Llama, and Mixtral, whose experts have names of their own."""

from exo.inference.families.family import Family, Line, MlxLm

FAMILIES = (
    Family(types=("mistral", ), line=Line(), converted_as="llama"),
    Family(types=("ministral", ), line=Line(), converted_as="llama", mlx=MlxLm(called="llama")),
    Family(types=("mixtral", ), converted_as="llama"),
)
