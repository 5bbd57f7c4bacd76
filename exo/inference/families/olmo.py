"""OLMo 2 and 3, and their experts."""

from exo.inference.families.family import Cut, Every, Family, LayerKind

FAMILIES = (
    Family(("olmo2", ), Cut(windows=Every(4), needs=(LayerKind.WINDOW, ),
                            own_head=True)), Family(("olmoe", ), Cut(own_head=True))
)
