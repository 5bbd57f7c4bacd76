"""Kimi Linear: layers with a state, some with attention between. (Kimi K2 is made as DeepSeek 3 is.)"""

from collections.abc import Mapping
from typing import Any

from exo.inference.families.family import Cut, Family, LayerKind, MlxLm


def _older_words(config: Mapping[str, Any]) -> Mapping[str, Any]:
  """Which layers are of which kind, as lists of numbers that begin with 1, and how many have no experts."""
  words: dict[str, Any] = {}
  kinds, mlps = config.get("layer_types"), config.get("mlp_layer_types")
  if isinstance(kinds, list) and not isinstance(config.get("linear_attn_config"), Mapping):
    numbered = list(enumerate(kinds, 1))
    words["linear_attn_config"] = {
        "full_attn_layers": [i for i, kind in numbered if kind == "full_attention"],
        "kda_layers": [i for i, kind in numbered if kind != "full_attention"],
        "head_dim": config.get("linear_head_dim"),
        "num_heads": config.get("linear_num_heads"),
        "short_conv_kernel_size": config.get("linear_conv_kernel_dim"),
    }
  if isinstance(mlps, list):
    words["first_k_dense_replace"] = next((i for i, kind in enumerate(mlps) if kind != "dense"), len(mlps))
  return words


# transformers calls what stands in the place of experts as it calls experts
_RENAMES = ((r"\.block_sparse_moe\.((?:gate|up|down)_proj)\.", r".mlp.\1."), )

FAMILIES = (
    Family(("kimi-linear", ),
           Cut(needs=(LayerKind.RECURRENT, LayerKind.ATTENTION), own_head=True),
           types=("kimi_linear", ),
           mlx=MlxLm(renames=_RENAMES),
           older_words=_older_words),
)
