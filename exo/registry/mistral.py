"""Mistral's models."""

from __future__ import annotations

from exo.model_card import Kind, Shape
from exo.registry.card import FP8, card
from exo.sampling_defaults import SamplingDefaults

_MISTRAL_24B = Shape(40, 5120, 32768, 32, 8, 131072, 128)
_SEEING = Kind("mistral3", 131072, "mistral")
_MINISTRAL_3 = {
    "3B": Shape(26, 3072, 9216, 32, 8, 131072, 128, tied=True),
    "8B": Shape(34, 4096, 14336, 32, 8, 131072, 128),
    "14B": Shape(40, 5120, 16384, 32, 8, 131072, 128),
}
_PRECISE, _REASONING = SamplingDefaults(0.15), SamplingDefaults(0.7, 0.95)

CARDS = (
    card(
        "mistral-7b",
        "Mistral 7B v0.3",
        Kind("mistral", 32768),
        Shape(32, 4096, 14336, 32, 8, 32768),
        "unsloth/mistral-7b-instruct-v0.3",
        "Mistral-7B-Instruct-v0.3-4bit",
        "bartowski/Mistral-7B-Instruct-v0.3-GGUF",
        can="tools"
    ),
    card(
        "mistral-nemo",
        "Mistral Nemo",
        Kind("mistral", 131072),
        Shape(40, 5120, 14336, 32, 8, 131072, 128),
        "unsloth/Mistral-Nemo-Instruct-2407",
        "Mistral-Nemo-Instruct-2407-4bit",
        "bartowski/Mistral-Nemo-Instruct-2407-GGUF",
        can="tools",
        sampling=SamplingDefaults(0.3)
    ),
    card(
        "ministral-8b",
        "Ministral 8B",
        Kind("mistral", 32768),
        Shape(36, 4096, 12288, 32, 8, 131072, 128),
        "mistralai/Ministral-8B-Instruct-2410",
        "Ministral-8B-Instruct-2410-4bit",
        "bartowski/Ministral-8B-Instruct-2410-GGUF",
        can="tools"
    ),
    card(
        "mistral-small",
        "Mistral Small 24B",
        Kind("mistral", 32768),
        _MISTRAL_24B,
        "unsloth/Mistral-Small-24B-Instruct-2501",
        "Mistral-Small-24B-Instruct-2501-4bit",
        "bartowski/Mistral-Small-24B-Instruct-2501-GGUF",
        can="tools",
        sampling=_PRECISE
    ),
    card(
        "mistral-small-3.2",
        "Mistral Small 3.2 24B",
        _SEEING,
        _MISTRAL_24B,
        "unsloth/Mistral-Small-3.2-24B-Instruct-2506",
        "Mistral-Small-3.2-24B-Instruct-2506-4bit",
        "unsloth/Mistral-Small-3.2-24B-Instruct-2506-GGUF",
        can="tools",
        sampling=_PRECISE
    ),
    card(
        "magistral-small",
        "Magistral Small 2509 24B",
        _SEEING,
        _MISTRAL_24B,
        "unsloth/Magistral-Small-2509",
        "Magistral-Small-2509-4bit",
        "unsloth/Magistral-Small-2509-GGUF",
        can="tools thinking",
        sampling=_REASONING
    ),
    card(
        "mistral-large",
        "Mistral Large",
        Kind("mistral", 131072),
        Shape(88, 12288, 28672, 96, 8, 32768),
        "mistralai/Mistral-Large-Instruct-2407",
        "Mistral-Large-Instruct-2407-4bit",
        "bartowski/Mistral-Large-Instruct-2407-GGUF",
        can="tools"
    ),
    card(
        "mistral-large-3",
        "Mistral Large 3 675B",
        Kind("mistral3", 262144, "deepseek_v3"), (61, 675_000_000_000, 14336),
        "mistralai/Mistral-Large-3-675B-Instruct-2512",
        None,
        "unsloth/Mistral-Large-3-675B-Instruct-2512-GGUF",
        default="gguf",
        packings=FP8,
        can="tools",
        sampling=SamplingDefaults(0.1)
    ),
    *(
        card(
            f"ministral-3-{size.lower()}{'' if made == 'Instruct' else '-reasoning'}",
            f"Ministral 3 {size} {made}",
            Kind("mistral3", 262144, "ministral3"),
            shape,
            f"mistralai/Ministral-3-{size}-{made}-2512{'-BF16' if made == 'Instruct' else ''}",
            f"Ministral-3-{size}-{made}-2512-4bit",
            f"unsloth/Ministral-3-{size}-{made}-2512-GGUF",
            can="tools" if made == "Instruct" else "tools thinking",
            sampling=_PRECISE if made == "Instruct" else _REASONING
        ) for size, shape in _MINISTRAL_3.items() for made in ("Instruct", "Reasoning")
    ),
    card(
        "devstral-small",
        "Devstral Small 2507 24B",
        Kind("mistral", 131072),
        _MISTRAL_24B,
        "unsloth/Devstral-Small-2507",
        "Devstral-Small-2507-4bit",
        "unsloth/Devstral-Small-2507-GGUF",
        can="tools",
        sampling=_PRECISE
    ),
    card(
        "devstral-small-2",
        "Devstral Small 2 24B",
        Kind("mistral3", 393216, "ministral3"),
        _MISTRAL_24B,
        "mistralai/Devstral-Small-2-24B-Instruct-2512",
        "Devstral-Small-2-24B-Instruct-2512-4bit",
        "unsloth/Devstral-Small-2-24B-Instruct-2512-GGUF",
        default="gguf",
        packings=FP8,
        can="tools",
        sampling=_PRECISE
    ),
    card(
        "devstral-2",
        "Devstral 2 123B",
        Kind("ministral3", 262144),
        Shape(88, 12288, 28672, 96, 8, 131072),
        "mistralai/Devstral-2-123B-Instruct-2512",
        "Devstral-2-123B-Instruct-2512-4bit",
        "unsloth/Devstral-2-123B-Instruct-2512-GGUF",
        default="gguf",
        packings=FP8,
        can="tools",
        sampling=_PRECISE
    ),
)
