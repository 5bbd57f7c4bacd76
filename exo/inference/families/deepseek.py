"""DeepSeek 2 to 3.2, Kimi K2 and GLM 4.7 Flash, which are made as they are."""

from exo.inference.families.family import Cut, Deviation, Family, MlxLm, Unsaid

_BOUNDS = Deviation(
    "kimi-yarn",
    "llama_cpp",
    "the bounds of YaRN's rotary embedding are taken for 32 and 1, where the model has 1 and 1",
    where=(("rope.scaling.yarn_beta_fast", 1.0), )
)
_INDEXER = Deviation(
    "deepseek-indexer", "llama_cpp", "attention sees the whole text, where its authors' indexer selects from it", 2048,
    ("attention.indexer.top_k", )
)

FAMILIES = (
    # by 26 or 27 layers llama.cpp takes a model for V2 Lite, whose queries have no rank
    Family(
        ("deepseek2", ),
        Cut(
            fill=(("attention.q_lora_rank", 0), ),
            not_so_many=(26, 27),
            unsaid=(Unsaid((47, 48), 154880, "expert_gating_func", 2),
                    )  # GLM 4.7 Flash, whose files do not say sigmoid
        ),
        deviations=(_BOUNDS, )
    ),
    Family(("deepseek32", ), deviations=(_INDEXER, )),
    Family(types=("deepseek_v41", ), mlx=MlxLm(uncut="a stage would need what only other stages have")),
)
