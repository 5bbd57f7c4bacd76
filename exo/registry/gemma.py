"""Google's models; of those that see and hear the language model alone."""

from __future__ import annotations

from exo.model_card import Kind, Shape
from exo.registry.card import card
from exo.sampling_defaults import SamplingDefaults

_GEMMA_2 = {
    "2b": Shape(26, 2304, 9216, 8, 4, 256000, 256, tied=True, norms=4),
    "9b": Shape(42, 3584, 14336, 16, 8, 256000, 256, tied=True, norms=4),
    "27b": Shape(46, 4608, 36864, 32, 16, 256000, 128, tied=True, norms=4),
}
_GEMMA_3 = {
    "270m": Shape(18, 640, 2048, 4, 1, 262144, 256, tied=True, qk_norm=True, norms=4),
    "1b": Shape(26, 1152, 6912, 4, 1, 262144, 256, tied=True, qk_norm=True, norms=4),
    "4b": Shape(34, 2560, 10240, 8, 4, 262208, 256, tied=True, qk_norm=True, norms=4),
    "12b": Shape(48, 3840, 15360, 16, 8, 262208, 256, tied=True, qk_norm=True, norms=4),
    "27b": Shape(62, 5376, 21504, 32, 16, 262208, 128, tied=True, qk_norm=True, norms=4),
}
_GEMMA_3_TEXT = Kind("gemma3_text", 32768)
_GEMMA_3_SEEING = Kind("gemma3", 131072, "gemma3_text")
# by Google's spelling and by mlx-community's: layers, weights, numbers of KV of a layer as most of them have it, context
_GEMMA_4 = {
    ("E2B", "E2B", "e2b"): ((35, 5_100_000_000, 512), 131072),
    ("E4B", "E4B", "e4b"): ((42, 8_000_000_000, 1024), 131072),
    ("12B", "12b", "12B"): ((48, 12_000_000_000, 4096), 262144),
    ("26B-A4B", "26B-A4B", "26b-a4b"): ((30, 25_800_000_000, 4096), 262144),
    ("31B", "31B", "31b"): ((60, 30_700_000_000, 8192), 262144),
}
_AS_GOOGLE_SAYS = SamplingDefaults(1.0, 0.95, 64)

CARDS = (
    *(
        card(
            f"gemma2-{size}", f"Gemma 2 {size.upper()}", Kind("gemma2", 8192), shape, f"unsloth/gemma-2-{size}-it",
            f"gemma-2-{size}-it-4bit", f"bartowski/gemma-2-{size}-it-GGUF"
        ) for size, shape in _GEMMA_2.items()
    ),
    *(
        card(
            f"gemma3-{size}",
            f"Gemma 3 {size.upper()}",
            _GEMMA_3_TEXT if shape.vocab == 262144 else _GEMMA_3_SEEING,
            shape,
            f"unsloth/gemma-3-{size}-it",
            f"gemma-3-{size}-it-4bit",
            f"unsloth/gemma-3-{size}-it-GGUF",
            sampling=_AS_GOOGLE_SAYS
        ) for size, shape in _GEMMA_3.items()
    ),
    *(
        card(
            f"gemma4-{size.lower()}",
            f"Gemma 4 {size}",
            Kind("gemma4", context, "gemma4_text"),
            shape,
            f"google/gemma-4-{size}-it",
            f"gemma-4-{mlx}-it-4bit",
            f"unsloth/gemma-4-{gguf}-it-GGUF",
            can="tools thinking",
            sampling=_AS_GOOGLE_SAYS
        ) for (size, gguf, mlx), (shape, context) in _GEMMA_4.items()
    ),
)
