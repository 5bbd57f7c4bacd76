"""dots.llm1."""

from exo.inference.families.family import Family

FAMILIES = (Family(("dots1", )), )
