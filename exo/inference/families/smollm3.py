"""SmolLM3: every fourth layer is without rotary embedding."""

from exo.inference.families.family import Cut, Family

FAMILIES = (Family(("smollm3", ), Cut(starts_at=4)), )
