"""Command R and Command A."""

from exo.inference.families.family import Cut, Every, Family, LayerKind

FAMILIES = (
    # Command R+: norms of queries and keys are read where there are 64 layers
    Family(("command-r", ), Cut(same=(64, ))),
    Family(("cohere2", ), Cut(windows=Every(4), needs=(LayerKind.WINDOW, ))),
)
