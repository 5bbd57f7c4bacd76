"""Gemma 1 to 4. llama.cpp scales the embeddings of tokens; those of 1 and 2 also where embeddings are given."""

from exo.inference.families.family import Cut, Every, Family, LayerKind

_WINDOWS = (LayerKind.WINDOW, )

FAMILIES = (
    Family(("gemma", ), Cut(feed="inp_scaled")),
    # 27B: the attention's scale hangs on 46 layers
    Family(("gemma2", ), Cut(feed="inp_scaled", windows=Every(2), same=(46, ), needs=_WINDOWS)),
    # 27B: the same of 62
    Family(("gemma3", ), Cut(scales_tokens=True, windows=Every(6), same=(62, ), needs=_WINDOWS)),
    Family(
        ("gemma3n", ),
        Cut(
            refused=
            "four streams go between its layers, each of which also takes embeddings of the tokens, and the last ones share keys "
            "and values"
        )
    ),
    # fewer than two layers with keys and values of their own are an assertion
    Family(("gemma4", ), Cut(scales_tokens=True, least=2, needs=_WINDOWS)),
)
