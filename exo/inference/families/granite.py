"""Granite: llama.cpp scales whatever comes in, so only the first stage may say by how much."""

from collections.abc import Mapping
from typing import Any

from exo.inference.families.family import Cut, Family, Later, LayerKind

_LATER = Later(drop=("embedding_scale", ))
_KINDS = {"linear_attention": "mamba", "full_attention": "attention"}


def _older_words(config: Mapping[str, Any]) -> Mapping[str, Any]:
  kinds = config.get("layer_types")
  return {"layer_types": [_KINDS.get(kind, kind) for kind in kinds]} if isinstance(kinds, list) else {}


FAMILIES = (
    Family(("granite", ), Cut(later=_LATER), types=("granite", )),
    Family(("granitemoe", ), Cut(later=_LATER), types=("granitemoe", )),
    Family(("granitehybrid", ),
           Cut(later=_LATER, needs=(LayerKind.RECURRENT, LayerKind.ATTENTION)),
           types=("granitemoehybrid", ),
           older_words=_older_words),
)
