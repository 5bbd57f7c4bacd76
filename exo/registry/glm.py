"""GLM, and MiniMax's models, whose layers are much like those of GLM's larger ones."""

from __future__ import annotations

from exo.model_card import Kind
from exo.registry.card import FP8, card
from exo.sampling_defaults import SamplingDefaults

_THINKING = SamplingDefaults(1.0, 0.95)
_355B = (92, 357_000_000_000, 2048)
_GLM_5 = (78, 744_000_000_000, 12288)
_GLM_4 = {"9B": (40, 9_400_000_000, 512), "32B": (61, 32_600_000_000, 512)}
_GLM_5_MLX = {"GLM-5": "GLM-5-4bit", "GLM-5.1": "GLM-5.1-MXFP4-Q8"}

CARDS = (
    *(
        card(
            f"glm-4-{size.lower()}",
            f"GLM 4 0414 {size}",
            Kind("glm4", 32768),
            shape,
            f"zai-org/GLM-4-{size}-0414",
            f"GLM-4-{size}-0414-4bit",
            f"unsloth/GLM-4-{size}-0414-GGUF",
            can="tools"
        ) for size, shape in _GLM_4.items()
    ),
    card(
        "glm-4.5-air",
        "GLM 4.5 Air 106B",
        Kind("glm4_moe", 131072), (46, 110_000_000_000, 2048),
        "zai-org/GLM-4.5-Air",
        "GLM-4.5-Air-4bit",
        "unsloth/GLM-4.5-Air-GGUF",
        can="tools thinking",
        sampling=SamplingDefaults(0.6, 0.95)
    ),
    card(
        "glm-4.6",
        "GLM 4.6 355B",
        Kind("glm4_moe", 202752),
        _355B,
        "zai-org/GLM-4.6",
        "GLM-4.6-4bit",
        "unsloth/GLM-4.6-GGUF",
        can="tools thinking",
        sampling=_THINKING
    ),
    card(
        "glm-4.7",
        "GLM 4.7 355B",
        Kind("glm4_moe", 202752),
        _355B,
        "zai-org/GLM-4.7",
        "GLM-4.7-4bit",
        "unsloth/GLM-4.7-GGUF",
        can="tools thinking",
        sampling=_THINKING
    ),
    card(
        "glm-4.7-flash",
        "GLM 4.7 Flash 30B A3B",
        Kind("glm4_moe_lite", 202752), (47, 29_900_000_000, 4096),
        "zai-org/GLM-4.7-Flash",
        "GLM-4.7-Flash-4bit",
        "unsloth/GLM-4.7-Flash-GGUF",
        can="tools thinking",
        sampling=_THINKING
    ),
    *(
        card(
            name.lower(),
            f"{name.replace('-', ' ')} 744B",
            Kind("glm_moe_dsa", 202752),
            _GLM_5,
            f"zai-org/{name}",
            mlx,
            f"unsloth/{name}-GGUF",
            default="gguf",
            can="tools thinking",
            sampling=_THINKING
        ) for name, mlx in _GLM_5_MLX.items()
    ),
    *(
        card(
            f"minimax-{version.lower()}",
            f"MiniMax {version} 230B A10B",
            Kind("minimax_m2", 196608), (62, 229_000_000_000, 2048),
            f"MiniMaxAI/MiniMax-{version}",
            f"MiniMax-{version}-4bit",
            f"unsloth/MiniMax-{version}-GGUF",
            default="gguf",
            packings=FP8,
            can="tools thinking",
            sampling=SamplingDefaults(1.0, 0.95, 40)
        ) for version in ("M2", "M2.1", "M2.5", "M2.7")
    ),
)
