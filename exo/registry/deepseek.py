"""DeepSeek's models, and those of Moonshot, which have the same layers."""

from __future__ import annotations

from dataclasses import replace

from exo.model_card import Kind, ModelCard, Shape
from exo.registry.card import FP8, card
from exo.registry.llama import LLAMA_8B, LLAMA_70B
from exo.registry.qwen import QWEN_1_5B, QWEN_3_8B, QWEN_7B, QWEN_14B, QWEN_32B
from exo.sampling_defaults import SILENT, SamplingDefaults

_R1 = SamplingDefaults(0.6, 0.95)
_V3 = Kind("deepseek_v3", 163840)
_671B = (61, 671_000_000_000, 14336)
_K2 = (61, 1_026_000_000_000, 14336)
_KIMI_25 = Kind("kimi_k25", 262144, "kimi_k2")
_INT4 = {"safetensors": "INT4"}


def _distill(name: str, shape: Shape) -> ModelCard:
  full = f"DeepSeek-R1-Distill-{name}"
  kind = Kind(name.partition("-")[0].lower().replace("qwen", "qwen2"), 131072)
  return card(
      full.lower(),
      f"DeepSeek R1 Distill {name.replace('-', ' ')}",
      kind,
      shape,
      f"deepseek-ai/{full}",
      f"{full}-4bit",
      f"bartowski/{full}-GGUF",
      can="thinking",
      sampling=_R1
  )


def _large(
    model_id: str, pretty_name: str, name: str, kind: Kind = _V3, *, can: str, sampling: SamplingDefaults
) -> ModelCard:
  """One of 671 billion weights, which DeepSeek publishes in FP8."""
  return card(
      model_id,
      pretty_name,
      kind,
      _671B,
      f"deepseek-ai/{name}",
      f"{name}-4bit",
      f"unsloth/{name}-GGUF",
      default="mlx",
      packings=FP8,
      can=can,
      sampling=sampling
  )


CARDS = (
    card(
        "deepseek-coder-v2-lite", "DeepSeek Coder V2 Lite", Kind("deepseek_v2", 163840), (27, 15_700_000_000, 4096),
        "deepseek-ai/DeepSeek-Coder-V2-Lite-Instruct", "DeepSeek-Coder-V2-Lite-Instruct-4bit-mlx",
        "bartowski/DeepSeek-Coder-V2-Lite-Instruct-GGUF"
    ),
    _large("deepseek-v3", "DeepSeek V3", "DeepSeek-V3", can="", sampling=SILENT),
    _large(
        "deepseek-v3-0324", "DeepSeek V3 0324", "DeepSeek-V3-0324", can="tools", sampling=SamplingDefaults(0.3, 0.95)
    ),
    _large("deepseek-v3.1", "DeepSeek V3.1", "DeepSeek-V3.1", can="tools thinking", sampling=_R1),
    _large(
        "deepseek-v3.1-terminus",
        "DeepSeek V3.1 Terminus",
        "DeepSeek-V3.1-Terminus",
        can="tools thinking",
        sampling=_R1
    ),
    _large(
        "deepseek-v3.2",
        "DeepSeek V3.2",
        "DeepSeek-V3.2",
        Kind("deepseek_v32", 163840),
        can="tools thinking",
        sampling=SamplingDefaults(1.0, 0.95)
    ),
    _large("deepseek-r1", "DeepSeek R1", "DeepSeek-R1", can="thinking", sampling=_R1),
    _large("deepseek-r1-0528", "DeepSeek R1 0528", "DeepSeek-R1-0528", can="tools thinking", sampling=_R1),
    _distill("Qwen-1.5B", replace(QWEN_1_5B, tied=False)),
    _distill("Qwen-7B", QWEN_7B),
    _distill("Qwen-14B", QWEN_14B),
    _distill("Qwen-32B", QWEN_32B),
    card(
        "deepseek-r1-0528-qwen3-8b",
        "DeepSeek R1 0528 Qwen 3 8B",
        Kind("qwen3", 131072),
        QWEN_3_8B,
        "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B",
        "DeepSeek-R1-0528-Qwen3-8B-4bit",
        "unsloth/DeepSeek-R1-0528-Qwen3-8B-GGUF",
        can="thinking",
        sampling=_R1
    ),
    _distill("Llama-8B", LLAMA_8B),
    _distill("Llama-70B", LLAMA_70B),
    card(
        "kimi-k2",
        "Kimi K2 Instruct 0905",
        Kind("kimi_k2", 262144),
        _K2,
        "moonshotai/Kimi-K2-Instruct-0905",
        "Kimi-K2-Instruct-0905-mlx-DQ3_K_M",
        "unsloth/Kimi-K2-Instruct-0905-GGUF",
        default="gguf",
        packings={"safetensors": "FP8", "mlx": "3bit"},
        can="tools",
        sampling=SamplingDefaults(0.6)
    ),
    card(
        "kimi-k2-thinking",
        "Kimi K2 Thinking",
        Kind("kimi_k2", 262144),
        _K2,
        "moonshotai/Kimi-K2-Thinking",
        "Kimi-K2-Thinking",
        "unsloth/Kimi-K2-Thinking-GGUF",
        default="gguf",
        packings=_INT4,
        can="tools thinking",
        sampling=SamplingDefaults(1.0)
    ),
    card(
        "kimi-k2.5",
        "Kimi K2.5",
        _KIMI_25,
        _K2,
        "moonshotai/Kimi-K2.5",
        "Kimi-K2.5",
        "unsloth/Kimi-K2.5-GGUF",
        default="gguf",
        packings=_INT4,
        can="tools thinking",
        sampling=SamplingDefaults(1.0, 0.95)
    ),
    card(
        "kimi-k2.6",
        "Kimi K2.6",
        _KIMI_25,
        _K2,
        "moonshotai/Kimi-K2.6",
        "Kimi-K2.6-mlx-DQ3_K_M-q8",
        "unsloth/Kimi-K2.6-GGUF",
        default="gguf",
        packings={"safetensors": "INT4", "mlx": "3bit"},
        can="tools thinking",
        sampling=SamplingDefaults(1.0, 0.95)
    ),
)
