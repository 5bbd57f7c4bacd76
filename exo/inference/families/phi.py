"""Phi 2 to 4, and their experts."""

from exo.inference.families.family import Family

FAMILIES = (Family(("phi2", "phi3", "phimoe")), )
