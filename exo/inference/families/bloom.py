"""BLOOM: whatever comes in is normed as embeddings are."""

from exo.inference.families.family import Cut, Family, Later

FAMILIES = (Family(("bloom", ), Cut(later=Later(feed="inp_norm-0"))), )
