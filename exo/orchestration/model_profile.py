"""What is known of a model before anybody loads it: from its files' headers, or from exo's registry alone."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from exo.inference.model_facts import ModelFacts
from exo.inference.weights.checkpoint import Checkpoint
from exo.inference.weights.gguf_checkpoint import gguf_type, is_translated
from exo.inference.weights.model_size import kv_bytes
from exo.model_card import ModelCard
from exo.model_file import ModelFile
from exo.sampling_defaults import SILENT, SamplingDefaults
from exo.topology.model_size import ModelSize

# how the weights of a format are packed, in the words of `ModelFacts`
_ENCODINGS = {"safetensors": ("BF16", ), "mlx": ("MLX", "BF16")}
_PACKED = {"MXFP4": ("MXFP4", "BF16"), "FP8": ("F8_E4M3", "BF16"), "INT4": ("I32", "BF16")}
_AS_GGUF = {"mistral3": "mistral3"}  # whatever text model is in it
_OF_A_MIX = re.compile(r"^UD-|_(S|M|L|XL|MOE)$")  # what names of GGUF's mixtures have beside that of most weights
# what a template has that tells thoughts from the rest
_THOUGHTS = (
    "</think", "<channel|>", "[/THINK]", "</seed:think>", "</mm:think>", "<|END_THINKING|>", "<|channel|>analysis"
)


@dataclass(frozen=True)
class ModelProfile:
  """`facts` and `size` are None where nobody has looked at the model yet. `flaw` is why no engine can have it, "" where its
  files can be read. `packing` is how most of its weights are packed, `context` how many tokens it was made for, both "" and
  None where that is not known. `capabilities` are those that can be told, in Ollama's words. `file` is there for models
  that were opened. `sampling` is what its files say.
  """
  facts: ModelFacts | None = None
  size: ModelSize | None = None
  flaw: str = ""
  format: str = ""
  packing: str = ""
  context: int | None = None
  capabilities: tuple[str, ...] = ("completion", )
  file: ModelFile = field(default_factory=ModelFile)
  sampling: SamplingDefaults = SILENT


def profile_of_checkpoint(checkpoint: Checkpoint, file: ModelFile) -> ModelProfile:
  """Reads headers and small files. Raises `ModelFilesError`, `UnsupportedModelError`."""
  return ModelProfile(
      checkpoint.facts, checkpoint.size, "", checkpoint.container, _packing(checkpoint), checkpoint.config.max_context,
      capabilities_of(checkpoint.chat_template), file, checkpoint.sampling.defaults
  )


def capabilities_of(template: str | None) -> tuple[str, ...]:
  """What a chat template can do; without one it is only known that a model goes on with texts."""
  marks = {"tools": ("tools", ), "thinking": _THOUGHTS}
  return ("completion", *(name for name, of in marks.items() if template and any(mark in template for mark in of)))


def _packing(checkpoint: Checkpoint) -> str:
  n_bytes: Counter[str] = Counter()
  for name in checkpoint.names():
    n_bytes[checkpoint.encoding(name)] += checkpoint.tensor_bytes(name)
  most = max(n_bytes, key=lambda encoding: n_bytes[encoding], default="")
  if most == "MLX":
    settings = checkpoint.hf_config.get("quantization")
    return f"{settings['bits']}bit" if isinstance(settings, dict) and isinstance(settings.get("bits"), int) else most
  return most if most in ("", "F32", "BF16",
                          "F16") or not checkpoint.facts.packing else checkpoint.facts.packing.upper()


def profile_of_card(card: ModelCard) -> ModelProfile:
  """As exo's registry describes what is published under this name; nothing is read."""
  kind = card.kind
  if kind is None or card.layers is None or card.parameters is None or card.total_bytes is None:
    return ModelProfile(capabilities=("completion", *card.capabilities))
  container = "gguf" if card.format == "gguf" else "safetensors"
  text_type = kind.text_type or kind.model_type
  repository_type = kind.model_type
  if container == "gguf":
    repository_type = text_type = _AS_GGUF.get(kind.model_type) or gguf_type(text_type)
  is_packed = container == "safetensors" and card.packing in _PACKED
  packing = card.packing.lower() if is_packed else ""
  facts = ModelFacts(
      text_type,
      repository_type,
      container,
      _encodings_of(card),
      frozenset(),
      frozenset(),
      0,
      "",
      packing,
      card.parameters,
      is_plain=container == "gguf" and not is_translated(text_type)
  )
  return ModelProfile(
      facts, _size_of(card), "", container, card.packing, kind.context, ("completion", *card.capabilities)
  )


def _encodings_of(card: ModelCard) -> frozenset[str]:
  if card.format == "gguf":
    return frozenset({_OF_A_MIX.sub("", card.packing.upper()), "Q6_K", "F32"})
  return frozenset(_PACKED.get(card.packing) or _ENCODINGS[card.format])


def _size_of(card: ModelCard) -> ModelSize:
  """Layers alike, embedding and head as wide as their share of the weights."""
  assert card.layers and card.parameters and card.total_bytes is not None
  width = card.total_bytes / card.parameters
  embedding = round(card.embedding_weights * width)
  layers = card.total_bytes - embedding * (1 if card.tied else 2)
  each, odd = divmod(layers, card.layers)
  return ModelSize((*(each for _ in range(card.layers - 1)), each + odd), embedding, embedding,
                   kv_bytes(card.kv_elements), card.tied, card.parameters)
