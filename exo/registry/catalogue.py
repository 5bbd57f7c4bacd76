"""All models that exo knows by name: the files beside this one, in the order in which they are listed."""

from __future__ import annotations

from exo.model_card import ModelCard
from exo.registry import deepseek, gemma, glm, hybrids, llama, mistral, others, qwen, qwen_hybrid

_MAKERS = (others, llama, qwen, qwen_hybrid, gemma, mistral, deepseek, glm, hybrids)
CARDS: dict[str, ModelCard] = {card.id: card for of in _MAKERS for card in of.CARDS}
