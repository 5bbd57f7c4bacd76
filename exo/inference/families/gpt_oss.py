"""gpt-oss: every other layer has a window."""

from exo.inference.families.family import Cut, Every, Family, LayerKind

FAMILIES = (Family(("gpt-oss", ), Cut(windows=Every(2), needs=(LayerKind.WINDOW, ))), )
