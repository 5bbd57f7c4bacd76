"""The decoder that exo's own engines have: what of the Llama line a file may hold, and by which names."""

from __future__ import annotations

from exo.inference.repertoire import Repertoire

_LAYER = "model.layers.#."
_TENSORS = (
    "model.embed_tokens.weight",
    "model.norm.weight",
    "lm_head.weight",
    *(
        f"{_LAYER}{place}_layernorm.weight"
        for place in ("input", "post_attention", "pre_feedforward", "post_feedforward")
    ),
    *(f"{_LAYER}self_attn.{part}_norm.weight" for part in "qk"),
    *(f"{_LAYER}self_attn.{part}_proj.{kind}" for part in ("q", "k", "v", "qkv", "o") for kind in ("weight", "bias")),
    *(f"{_LAYER}mlp.{part}_proj.{kind}" for part in ("gate", "up", "gate_up", "down") for kind in ("weight", "bias")),
)
_EXPERTS = (
    f"{_LAYER}mlp.gate.weight",
    *(f"{_LAYER}mlp.{experts}.{part}_proj.weight" for experts in ("experts.#", "switch_mlp")
      for part in ("gate", "up", "down")),
)  # yapf: disable
_ROPES = ("default", "linear", "llama3", "longrope", "mrope", "su", "yarn")
_ACTIVATIONS = ("gelu_pytorch_tanh", "gelu_tanh", "silu", "swish")


def llama_line(models: tuple[str, ...], experts: bool = False) -> Repertoire:
  """What a decoder can run that reads this line's tensors by Hugging Face's names, those of experts with `experts`."""
  return Repertoire(models, tensors=_TENSORS + (_EXPERTS if experts else ()), ropes=_ROPES, activations=_ACTIVATIONS)
