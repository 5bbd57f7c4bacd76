"""Models of the years before 2024."""

from exo.inference.families.family import Cut, Family, Later

FAMILIES = (
    Family(("falcon", "gptneox", "starcoder2")),
    # positions are added to whatever comes in
    Family(("gpt2", ), Cut(later=Later(zero=("position_embd.weight", )))),
    # whatever comes in is normed as embeddings are
    Family(("bloom", ), Cut(later=Later(feed="inp_norm-0"))),
)
