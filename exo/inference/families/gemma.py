"""Gemma 1 to 4. llama.cpp scales the embeddings of tokens; those of 1 and 2 also where embeddings are given."""

from collections.abc import Mapping
from typing import Any

from exo.inference.families.family import Cut, Every, Family, LayerKind, Line, MlxLm

_WINDOWS = (LayerKind.WINDOW, )
_KV = tuple(f".self_attn.{part}.weight" for part in ("k_proj", "v_proj", "k_norm", "v_norm"))


def _older_words(config: Mapping[str, Any]) -> Mapping[str, Any]:
  """What Gemma 4's layers of full attention have of their own."""
  by_layer = config.get("per_layer_config")
  found = list(by_layer.values()) if isinstance(by_layer, Mapping) else []
  full: Mapping[str, Any] = next((of for of in found if isinstance(of, Mapping)), {})
  words = {"head_dim": "global_head_dim", "num_key_value_heads": "num_global_key_value_heads"}
  return {older: full[key] for key, older in words.items() if key in full and config.get(older) is None}


FAMILIES = (
    Family(("gemma", ), Cut(feed="inp_scaled"), types=("gemma", )),
    # 27B: the attention's scale hangs on 46 layers
    Family(("gemma2", ),
           Cut(feed="inp_scaled", windows=Every(2), same=(46, ), needs=_WINDOWS),
           types=("gemma2", ),
           line=Line(1.0, True, True, post_norms=True, windows=Every(2)),
           mlx=MlxLm(grouped_heads=True)),
    # 27B: the same of 62
    Family(("gemma3", ),
           Cut(scales_tokens=True, windows=Every(6), same=(62, ), needs=_WINDOWS),
           types=("gemma3_text", ),
           line=Line(1.0, True, True, qk_norm=True, post_norms=True, windows=Every(6)),
           mlx=MlxLm(own_windows=True)),
    Family(
        ("gemma3n", ),
        Cut(
            refused=
            "four streams go between its layers, each of which also takes embeddings of the tokens, and the last ones share keys "
            "and values"
        ),
        types=("gemma3n_text", "gemma3n"),
        mlx=MlxLm(uncut="four streams go between its layers", spares=_KV)
    ),
    # fewer than two layers with keys and values of their own are an assertion
    Family(("gemma4", ),
           Cut(scales_tokens=True, least=2, needs=_WINDOWS, unused_without_full=("rope_freqs.weight", )),
           types=("gemma4_text", "gemma4", "gemma4_unified"),
           mlx=MlxLm(gives_more=True),
           older_words=_older_words),
)
