"""Models with experts whose layers know nothing of their number."""

from exo.inference.families.family import Family

FAMILIES = (Family(("dots1", "minimax-m2")), )
