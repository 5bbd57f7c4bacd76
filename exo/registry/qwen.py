"""Qwen 2.5 and 3: dense models, and those of experts with full attention."""

from __future__ import annotations

from exo.model_card import Kind, ModelCard, Shape
from exo.registry.card import card
from exo.sampling_defaults import SamplingDefaults

QWEN_1_5B = Shape(28, 1536, 8960, 12, 2, 151936, tied=True, qkv_bias=True)
QWEN_7B = Shape(28, 3584, 18944, 28, 4, 152064, qkv_bias=True)
QWEN_14B = Shape(48, 5120, 13824, 40, 8, 152064, qkv_bias=True)
QWEN_32B = Shape(64, 5120, 27648, 40, 8, 152064, qkv_bias=True)
_QWEN_25 = {
    "0.5B": Shape(24, 896, 4864, 14, 2, 151936, tied=True, qkv_bias=True),
    "1.5B": QWEN_1_5B,
    "3B": Shape(36, 2048, 11008, 16, 2, 151936, tied=True, qkv_bias=True),
    "7B": QWEN_7B,
    "14B": QWEN_14B,
    "32B": QWEN_32B,
    "72B": Shape(80, 8192, 29568, 64, 8, 152064, qkv_bias=True),
}
QWEN_3_8B = Shape(36, 4096, 12288, 32, 8, 151936, 128, qk_norm=True)
_QWEN_3_4B = Shape(36, 2560, 9728, 32, 8, 151936, 128, tied=True, qk_norm=True)
_QWEN_3_30B = Shape(48, 2048, 6144, 32, 4, 151936, 128, qk_norm=True, experts=128, expert_intermediate=768)
_QWEN_3_235B = Shape(94, 4096, 12288, 64, 4, 151936, 128, qk_norm=True, experts=128, expert_intermediate=1536)
_QWEN_3_480B = Shape(62, 6144, 8192, 96, 8, 151936, 128, qk_norm=True, experts=160, expert_intermediate=2560)
_QWEN_3 = {
    "0.6B": Shape(28, 1024, 3072, 16, 8, 151936, 128, tied=True, qk_norm=True),
    "1.7B": Shape(28, 2048, 6144, 16, 8, 151936, 128, tied=True, qk_norm=True),
    "4B": _QWEN_3_4B,
    "8B": QWEN_3_8B,
    "14B": Shape(40, 5120, 17408, 40, 8, 151936, 128, qk_norm=True),
    "32B": Shape(64, 5120, 25600, 64, 8, 151936, 128, qk_norm=True),
    "30B-A3B": _QWEN_3_30B,
    "235B-A22B": _QWEN_3_235B,
}
_QWEN_3_2507 = {"4B": _QWEN_3_4B, "30B-A3B": _QWEN_3_30B, "235B-A22B": _QWEN_3_235B}
_THINKING = SamplingDefaults(0.6, 0.95, 20)
_INSTRUCT = SamplingDefaults(0.7, 0.8, 20)
_CODER = SamplingDefaults(0.7, 0.8, 20, repetition_penalty=1.05)


def _qwen_25(kind: str, sizes: str) -> list[ModelCard]:
  """`kind`: "", "Coder" or "Math"."""
  what = Kind("qwen2", 4096 if kind == "Math" else 32768)
  cards = []
  for size in sizes.split():
    name = "-".join(part for part in ("Qwen2.5", kind, size, "Instruct") if part)
    model_id = "-".join(part for part in ("qwen-2.5", kind.lower(), size.lower()) if part)
    pretty = " ".join(part for part in ("Qwen 2.5", kind, size) if part)
    cards.append(
        card(
            model_id,
            pretty,
            what,
            _QWEN_25[size],
            f"Qwen/{name}",
            f"{name}-4bit",
            f"bartowski/{name}-GGUF",
            can="tools",
            sampling=_CODER
        )
    )
  return cards


def _qwen_3(shape: Shape, context: int = 262144) -> Kind:
  return Kind("qwen3_moe" if shape.experts else "qwen3", context)


CARDS = (
    *_qwen_25("", "0.5B 1.5B 3B 7B 14B 32B 72B"),
    *_qwen_25("Coder", "0.5B 1.5B 3B 7B 14B 32B"),
    *_qwen_25("Math", "1.5B 7B 72B"),
    card(
        "qwq-32b",
        "QwQ 32B",
        Kind("qwen2", 40960),
        QWEN_32B,
        "Qwen/QwQ-32B",
        "QwQ-32B-4bit",
        "bartowski/Qwen_QwQ-32B-GGUF",
        can="tools thinking",
        sampling=SamplingDefaults(0.6, 0.95, 40)
    ),
    *(
        card(
            f"qwen-3-{size.lower()}",
            f"Qwen 3 {size}",
            _qwen_3(shape, 40960),
            shape,
            f"Qwen/Qwen3-{size}",
            f"Qwen3-{size}-4bit",
            f"unsloth/Qwen3-{size}-GGUF",
            can="tools thinking",
            sampling=_THINKING
        ) for size, shape in _QWEN_3.items()
    ),
    *(
        card(
            f"qwen-3-{size.lower()}-2507",
            f"Qwen 3 {size} Instruct 2507",
            _qwen_3(shape),
            shape,
            f"Qwen/Qwen3-{size}-Instruct-2507",
            f"Qwen3-{size}-Instruct-2507-4bit",
            f"unsloth/Qwen3-{size}-Instruct-2507-GGUF",
            can="tools",
            sampling=_INSTRUCT
        ) for size, shape in _QWEN_3_2507.items()
    ),
    *(
        card(
            f"qwen-3-{size.lower()}-thinking-2507",
            f"Qwen 3 {size} Thinking 2507",
            _qwen_3(shape),
            shape,
            f"Qwen/Qwen3-{size}-Thinking-2507",
            f"Qwen3-{size}-Thinking-2507-4bit",
            f"unsloth/Qwen3-{size}-Thinking-2507-GGUF",
            can="tools thinking",
            sampling=_THINKING
        ) for size, shape in _QWEN_3_2507.items()
    ),
    *(
        card(
            f"qwen-3-coder-{size.lower()}",
            f"Qwen 3 Coder {size}",
            _qwen_3(shape),
            shape,
            f"Qwen/Qwen3-Coder-{size}-Instruct",
            f"Qwen3-Coder-{size}-Instruct-4bit",
            f"unsloth/Qwen3-Coder-{size}-Instruct-GGUF",
            can="tools",
            sampling=_CODER
        ) for size, shape in (("30B-A3B", _QWEN_3_30B), ("480B-A35B", _QWEN_3_480B))
    ),
)
