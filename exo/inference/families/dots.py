"""dots.llm1."""

from exo.inference.families.family import Cut, Family

FAMILIES = (Family(("dots1", ), Cut(own_head=True)), )
