"""Mamba 1 and 2: every layer has a state; Falcon H1: every layer has a state and attention."""

from exo.inference.families.family import Family

FAMILIES = (Family(("mamba", "mamba2", "falcon-h1")), )
