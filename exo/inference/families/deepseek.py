"""DeepSeek 2 to 3.2, Kimi K2 and GLM 4.7 Flash, which are made as they are."""

from exo.inference.families.family import Cut, Family, Unsaid

FAMILIES = (
    # by 26 or 27 layers llama.cpp takes a model for V2 Lite, whose queries have no rank
    Family(
        ("deepseek2", ),
        Cut(
            fill=(("attention.q_lora_rank", 0), ),
            not_so_many=(26, 27),
            unsaid=(Unsaid((47, 48), 154880, "expert_gating_func", 2),
                    )  # GLM 4.7 Flash, whose files do not say sigmoid
        )
    ),
    Family(("deepseek32", )),
)
