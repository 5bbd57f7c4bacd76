"""Meta's models, and those that others have made of them."""

from __future__ import annotations

from exo.model_card import Kind, Shape
from exo.registry.card import card
from exo.sampling_defaults import SamplingDefaults

LLAMA_8B = Shape(32, 4096, 14336, 32, 8, 128256)
LLAMA_70B = Shape(80, 8192, 28672, 64, 8, 128256)
_LLAMA_31 = Kind("llama", 131072)
_LLAMA_3 = Kind("llama", 8192)
_AS_META_SAYS = SamplingDefaults(0.6, 0.9)

CARDS = (
    card(
        "llama-3.2-1b",
        "Llama 3.2 1B",
        _LLAMA_31,
        Shape(16, 2048, 8192, 32, 8, 128256, tied=True),
        "unsloth/Llama-3.2-1B-Instruct",
        "Llama-3.2-1B-Instruct-4bit",
        "bartowski/Llama-3.2-1B-Instruct-GGUF",
        can="tools",
        sampling=_AS_META_SAYS
    ),
    card(
        "llama-3.2-3b",
        "Llama 3.2 3B",
        _LLAMA_31,
        Shape(28, 3072, 8192, 24, 8, 128256, tied=True),
        "unsloth/Llama-3.2-3B-Instruct",
        "Llama-3.2-3B-Instruct-4bit",
        "bartowski/Llama-3.2-3B-Instruct-GGUF",
        can="tools",
        sampling=_AS_META_SAYS
    ),
    card(
        "llama-3.1-8b",
        "Llama 3.1 8B",
        _LLAMA_31,
        LLAMA_8B,
        "unsloth/Meta-Llama-3.1-8B-Instruct",
        "Meta-Llama-3.1-8B-Instruct-4bit",
        "bartowski/Meta-Llama-3.1-8B-Instruct-GGUF",
        can="tools",
        sampling=_AS_META_SAYS
    ),
    card(
        "llama-3.1-70b",
        "Llama 3.1 70B",
        _LLAMA_31,
        LLAMA_70B,
        "unsloth/Meta-Llama-3.1-70B-Instruct",
        "Meta-Llama-3.1-70B-Instruct-4bit",
        "bartowski/Meta-Llama-3.1-70B-Instruct-GGUF",
        can="tools",
        sampling=_AS_META_SAYS
    ),
    card(
        "llama-3.1-405b",
        "Llama 3.1 405B",
        _LLAMA_31,
        Shape(126, 16384, 53248, 128, 8, 128256),
        "meta-llama/Llama-3.1-405B-Instruct",
        "Meta-Llama-3.1-405B-4bit",
        "bartowski/Meta-Llama-3.1-405B-Instruct-GGUF",
        can="tools",
        sampling=_AS_META_SAYS
    ),
    card(
        "llama-3.3-70b",
        "Llama 3.3 70B",
        _LLAMA_31,
        LLAMA_70B,
        "unsloth/Llama-3.3-70B-Instruct",
        "Llama-3.3-70B-Instruct-4bit",
        "bartowski/Llama-3.3-70B-Instruct-GGUF",
        can="tools",
        sampling=_AS_META_SAYS
    ),
    card(
        "llama-3-8b",
        "Llama 3 8B",
        _LLAMA_3,
        LLAMA_8B,
        "unsloth/llama-3-8b-Instruct",
        "Meta-Llama-3-8B-Instruct-4bit",
        "bartowski/Meta-Llama-3-8B-Instruct-GGUF",
        sampling=_AS_META_SAYS
    ),
    card(
        "llama-3-70b",
        "Llama 3 70B",
        _LLAMA_3,
        LLAMA_70B,
        "meta-llama/Meta-Llama-3-70B-Instruct",
        "Meta-Llama-3-70B-Instruct-4bit",
        "bartowski/Meta-Llama-3-70B-Instruct-GGUF",
        sampling=_AS_META_SAYS
    ),
    # weights as they are remembered from Meta's model cards
    card(
        "llama-4-scout",
        "Llama 4 Scout",
        Kind("llama4", 10485760, "llama4_text"), (48, 109_000_000_000, 2048),
        "meta-llama/Llama-4-Scout-17B-16E-Instruct",
        "Llama-4-Scout-17B-16E-Instruct-4bit",
        "unsloth/Llama-4-Scout-17B-16E-Instruct-GGUF",
        default="mlx",
        can="tools",
        sampling=_AS_META_SAYS
    ),
    card(
        "llama-4-maverick",
        "Llama 4 Maverick",
        Kind("llama4", 1048576, "llama4_text"), (48, 402_000_000_000, 2048),
        "meta-llama/Llama-4-Maverick-17B-128E-Instruct",
        "Llama-4-Maverick-17B-128E-Instruct-4bit",
        "unsloth/Llama-4-Maverick-17B-128E-Instruct-GGUF",
        default="mlx",
        can="tools",
        sampling=_AS_META_SAYS
    ),
)
