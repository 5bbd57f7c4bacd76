"""GLM 4 to 5. llama.cpp refuses embeddings for 4 where there are no sections of rotary dimensions."""

from exo.inference.families.family import Cut, Family, MlxLm

FAMILIES = (
    Family(types=("glm", ), mlx=MlxLm(lacks_partial_rotary=True)),
    Family(("glm4", "glm4moe"), Cut(feed="embd")),
    Family(("glm-dsa", )),
)
