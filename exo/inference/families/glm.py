"""GLM 4 to 5. llama.cpp refuses embeddings for 4 where there are no sections of rotary dimensions."""

from exo.inference.families.family import Cut, Deviation, Family, MlxLm

_INDEXER = Deviation(
    "glm-dsa-indexer", "llama_cpp", "attention sees the whole text, where its authors' indexer selects from it", 2048,
    ("attention.indexer.top_k", )
)

FAMILIES = (
    Family(types=("glm", ), mlx=MlxLm(lacks_partial_rotary=True)),
    Family(("glm4", "glm4moe"), Cut(feed="embd")),
    Family(("glm-dsa", ), deviations=(_INDEXER, )),
)
