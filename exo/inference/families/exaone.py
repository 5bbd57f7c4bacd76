"""EXAONE 4: the model of 64 layers alone has windows."""

from exo.inference.families.family import Cut, Every, Family

FAMILIES = (Family(("exaone4", ), Cut(windows=Every(4), same=(64, ))), )
