"""Models many of whose layers keep a state or a short window in place of attention: Nemotron, Granite 4, LFM2."""

from __future__ import annotations

from exo.model_card import Kind
from exo.registry.card import card
from exo.registry.llama import LLAMA_70B
from exo.sampling_defaults import SamplingDefaults

_NEMOTRON_H = Kind("nemotron_h", 262144)
_GRANITE_4 = Kind("granitemoehybrid", 131072)
_LFM2 = Kind("lfm2", 128000)
_NEMOTRON, _LIQUID = SamplingDefaults(1.0, 1.0), SamplingDefaults(0.3, min_p=0.15, repetition_penalty=1.05)
# layers, weights, numbers of KV of a layer on average
_GRANITE = {
    "350m": (28, 352_000_000, 512),
    "1b": (40, 1_630_000_000, 1024),
    "micro": (40, 3_400_000_000, 1024),
    "h-350m": (32, 340_000_000, 128),
    "h-1b": (40, 1_460_000_000, 128),
    "h-micro": (40, 3_190_000_000, 128),
    "h-tiny": (40, 6_940_000_000, 128),
    "h-small": (40, 32_200_000_000, 256),
}
_LIQUIDS = {
    "350M": (16, 354_000_000, 384),
    "700M": (16, 742_000_000, 384),
    "1.2B": (16, 1_170_000_000, 384),
    "2.6B": (30, 2_570_000_000, 256),
}

CARDS = (
    card(
        "nemotron-70b",
        "Nemotron 70B",
        Kind("llama", 131072),
        LLAMA_70B,
        "nvidia/Llama-3.1-Nemotron-70B-Instruct-HF",
        "Llama-3.1-Nemotron-70B-Instruct-HF-4bit",
        "bartowski/Llama-3.1-Nemotron-70B-Instruct-HF-GGUF",
        can="tools"
    ),
    card(
        "nemotron-nano-9b-v2",
        "Nemotron Nano 9B v2",
        Kind("nemotron_h", 131072), (56, 8_890_000_000, 256),
        "nvidia/NVIDIA-Nemotron-Nano-9B-v2",
        "NVIDIA-Nemotron-Nano-9B-v2-4bits",
        "bartowski/nvidia_NVIDIA-Nemotron-Nano-9B-v2-GGUF",
        can="tools thinking",
        sampling=SamplingDefaults(0.6, 0.95)
    ),
    card(
        "nemotron-3-nano-4b",
        "Nemotron 3 Nano 4B",
        _NEMOTRON_H, (42, 3_970_000_000, 256),
        "nvidia/NVIDIA-Nemotron-3-Nano-4B-BF16",
        "NVIDIA-Nemotron-3-Nano-4B-4bit",
        "unsloth/NVIDIA-Nemotron-3-Nano-4B-GGUF",
        can="tools thinking",
        sampling=_NEMOTRON
    ),
    card(
        "nemotron-3-nano",
        "Nemotron 3 Nano 30B A3B",
        _NEMOTRON_H, (52, 31_600_000_000, 64),
        "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
        "NVIDIA-Nemotron-3-Nano-30B-A3B-4bit",
        "unsloth/Nemotron-3-Nano-30B-A3B-GGUF",
        can="tools thinking",
        sampling=_NEMOTRON
    ),
    card(
        "nemotron-3-super",
        "Nemotron 3 Super 120B A12B",
        _NEMOTRON_H, (88, 120_600_000_000, 64),
        "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16",
        "NVIDIA-Nemotron-3-Super-120B-A12B-4bit",
        "unsloth/NVIDIA-Nemotron-3-Super-120B-A12B-GGUF",
        can="tools thinking",
        sampling=_NEMOTRON
    ),
    *(
        card(
            f"granite-4-{size}",
            f"Granite 4.0 {size.replace('-', ' ').title()}",
            _GRANITE_4,
            shape,
            f"ibm-granite/granite-4.0-{size}",
            f"granite-4.0-{size}-{'8' if size == 'micro' else '4'}bit",
            f"ibm-granite/granite-4.0-{size}-GGUF",
            packings={"mlx": "8bit"} if size == "micro" else None,
            can="tools"
        ) for size, shape in _GRANITE.items()
    ),
    *(
        card(
            f"lfm2-{size.lower()}",
            f"LFM2 {size}",
            _LFM2,
            shape,
            f"LiquidAI/LFM2-{size}",
            f"LFM2-{size}-4bit",
            f"LiquidAI/LFM2-{size}-GGUF",
            can="tools",
            sampling=_LIQUID
        ) for size, shape in _LIQUIDS.items()
    ),
    *(
        card(
            f"lfm2.5-1.2b{'' if made == 'Instruct' else '-thinking'}",
            f"LFM2.5 1.2B {made}",
            _LFM2,
            _LIQUIDS["1.2B"],
            f"LiquidAI/LFM2.5-1.2B-{made}",
            f"LFM2.5-1.2B-{made}-4bit",
            f"LiquidAI/LFM2.5-1.2B-{made}-GGUF",
            can="tools" if made == "Instruct" else "tools thinking",
            sampling=SamplingDefaults(0.1, top_k=50, repetition_penalty=1.05)
        ) for made in ("Instruct", "Thinking")
    ),
    *(
        card(
            f"lfm2-{size.lower()}",
            f"LFM2 {size.replace('-', ' ')}",
            Kind("lfm2_moe", 128000),
            shape,
            f"LiquidAI/LFM2-{size}",
            f"LFM2-{size}-4bit",
            f"LiquidAI/LFM2-{size}-GGUF",
            can="tools",
            sampling=_LIQUID
        ) for size, shape in (("8B-A1B", (24, 8_340_000_000, 256)), ("24B-A2B", (40, 23_800_000_000, 256)))
    ),
)
