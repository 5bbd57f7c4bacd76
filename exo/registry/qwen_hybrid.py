"""Qwen 3 Next, 3.5 and 3.6, of whose layers three in four keep a state and one has attention."""

from __future__ import annotations

from exo.model_card import Kind
from exo.registry.card import card
from exo.sampling_defaults import SamplingDefaults

_NEXT = Kind("qwen3_next", 262144)
_DENSE = Kind("qwen3_5", 262144, "qwen3_5_text")
_EXPERTS = Kind("qwen3_5_moe", 262144, "qwen3_5_moe_text")
_THINKING = SamplingDefaults(1.0, 0.95, 20)
# layers, weights, and numbers of KV of a layer on average: heads of 256, keys and values, in a quarter of the layers
_SMALL = {
    "0.8B": (24, 870_000_000, 256),
    "2B": (24, 2_270_000_000, 256),
    "4B": (32, 4_660_000_000, 512),
    "9B": (32, 9_650_000_000, 512),
}
_27B = (64, 27_800_000_000, 512)
_35B = (40, 36_000_000_000, 256)
_LARGE = {"122B-A10B": (48, 125_000_000_000, 256), "397B-A17B": (60, 403_000_000_000, 256)}

CARDS = (
    *(
        card(
            f"qwen-3-next-80b-a3b{'' if made == 'Instruct' else '-thinking'}",
            f"Qwen 3 Next 80B A3B {made}",
            _NEXT, (48, 80_000_000_000, 256),
            f"Qwen/Qwen3-Next-80B-A3B-{made}",
            f"Qwen3-Next-80B-A3B-{made}-4bit",
            f"unsloth/Qwen3-Next-80B-A3B-{made}-GGUF",
            can="tools" if made == "Instruct" else "tools thinking",
            sampling=SamplingDefaults(0.7, 0.8, 20) if made == "Instruct" else SamplingDefaults(0.6, 0.95, 20)
        ) for made in ("Instruct", "Thinking")
    ),
    card(
        "qwen-3-coder-next",
        "Qwen 3 Coder Next 80B A3B",
        _NEXT, (48, 80_000_000_000, 256),
        "Qwen/Qwen3-Coder-Next",
        "Qwen3-Coder-Next-4bit",
        "unsloth/Qwen3-Coder-Next-GGUF",
        can="tools",
        sampling=SamplingDefaults(1.0, 0.95, 40)
    ),
    *(
        card(
            f"qwen-3.5-{size.lower()}",
            f"Qwen 3.5 {size}",
            _DENSE,
            shape,
            f"Qwen/Qwen3.5-{size}",
            f"Qwen3.5-{size}-MLX-4bit",
            f"unsloth/Qwen3.5-{size}-GGUF",
            can="tools thinking",
            sampling=_THINKING
        ) for size, shape in _SMALL.items()
    ),
    *(
        card(
            f"qwen-{version}-27b",
            f"Qwen {version} 27B",
            _DENSE,
            _27B,
            f"Qwen/Qwen{version}-27B",
            f"Qwen{version}-27B-4bit",
            f"unsloth/Qwen{version}-27B-GGUF",
            can="tools thinking",
            sampling=_THINKING
        ) for version in ("3.5", "3.6")
    ),
    *(
        card(
            f"qwen-{version}-35b-a3b",
            f"Qwen {version} 35B A3B",
            _EXPERTS,
            _35B,
            f"Qwen/Qwen{version}-35B-A3B",
            f"Qwen{version}-35B-A3B-4bit",
            f"unsloth/Qwen{version}-35B-A3B-GGUF",
            can="tools thinking",
            sampling=_THINKING
        ) for version in ("3.5", "3.6")
    ),
    *(
        card(
            f"qwen-3.5-{size.lower()}",
            f"Qwen 3.5 {size.replace('-', ' ')}",
            _EXPERTS,
            shape,
            f"Qwen/Qwen3.5-{size}",
            f"Qwen3.5-{size}-4bit",
            f"unsloth/Qwen3.5-{size}-GGUF",
            can="tools thinking",
            sampling=_THINKING
        ) for size, shape in _LARGE.items()
    ),
)
