"""Granite: llama.cpp scales whatever comes in, so only the first stage may say by how much."""

from exo.inference.families.family import Cut, Family, Later, LayerKind

_LATER = Later(drop=("embedding_scale", ))

FAMILIES = (
    Family(("granite", "granitemoe"), Cut(later=_LATER)),
    Family(("granitehybrid", ), Cut(later=_LATER, needs=(LayerKind.RECURRENT, LayerKind.ATTENTION))),
)
