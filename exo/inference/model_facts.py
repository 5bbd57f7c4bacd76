"""What decides which engines can run a model's file: read from its configuration and its headers, never from its numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exo.inference.families.catalogue import why_config_uncut
from exo.inference.families.known_deviations import FoundDeviation
from exo.inference.weights.parts import Part, part_of

if TYPE_CHECKING:
  from exo.inference.weights.checkpoint import Checkpoint

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_FLOATS, _SMALL = frozenset({"F64", "F32", "F16", "BF16"}), 1 << 24
_COMPUTED = re.compile(r"rotary_emb\.inv_freq$")  # some files store what follows from their configuration


@dataclass(frozen=True, slots=True)
class ModelFacts:
  """`model_type` is the language model's, `repository_type` that of the whole, which may have other parts beside text.

  `container` is the kind of file, "safetensors" or "gguf". `tensors` are the names of those that the language model has, in
  Hugging Face's words, with # for every number, and `encodings` how they are packed; `packing` is how the configuration
  calls that, where it does. `is_plain`: the tensors of its layers are called as its file calls them, and only an engine that
  reads files itself knows what they are; `whole_only` is why no part of it can be run (of a GGUF file: by such an engine), "" where
  that may be possible. `ropes` are the kinds of rotary embedding of its layers, which turn `rotary_dim` numbers of a head;
  `activation` is the configuration's word. `n_weights` counts all weights. `deviations` are what engines are known to compute otherwise
  than the model's authors.
  """
  model_type: str
  repository_type: str
  container: str
  encodings: frozenset[str]
  tensors: frozenset[str]
  ropes: frozenset[str]
  rotary_dim: int
  activation: str = ""
  packing: str = ""
  n_weights: int = 0
  is_plain: bool = False
  whole_only: str = ""
  deviations: tuple[FoundDeviation, ...] = ()

  @property
  def known_deviations(self) -> list[str]:
    """What engines are known to compute otherwise, in sentences."""
    return [str(found) for found in self.deviations if found.known]

  @property
  def is_small_float(self) -> bool:
    """Whether rounding its weights would save nothing that anybody could notice, and cost exactness."""
    return self.encodings <= _FLOATS and self.n_weights < _SMALL


def facts_of(checkpoint: Checkpoint) -> ModelFacts:
  """Of an opened checkpoint, whose tensors need not be on this machine. Raises `ModelFilesError`."""
  config, raw = checkpoint.config, checkpoint.hf_config
  names = [name for name in checkpoint.names() if part_of(name) is not Part.UNUSED and not _COMPUTED.search(name)]
  text = raw.get("text_config")
  text = raw | text if isinstance(text, dict) else raw
  quantization = text.get("quantization_config")
  return ModelFacts(
      model_type=config.model_type,
      repository_type=str(raw.get("model_type") or config.model_type),
      container=checkpoint.container,
      encodings=frozenset(map(checkpoint.encoding, names)),
      tensors=frozenset(_NUMBER.sub("#", name) for name in names),
      ropes=frozenset(rope.kind for rope in config.rope),
      rotary_dim=config.rotary_dim,
      activation=str(text.get("hidden_act") or text.get("hidden_activation") or ""),
      n_weights=sum(map(checkpoint.tensor_weights, names)),
      is_plain=checkpoint.is_plain,
      whole_only=checkpoint.whole_only or (why_config_uncut(text) if checkpoint.container == "safetensors" else ""),
      deviations=checkpoint.deviations,
      packing=str(quantization.get("quant_method") or "") if isinstance(quantization, dict) else ""
  )
