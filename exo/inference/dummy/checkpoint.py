"""A model without weights for the dummy engine: sizes, and a tokenizer whose tokens are bytes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from exo.errors import ModelFilesError
from exo.inference.backend_vocabulary import BackendVocabulary
from exo.inference.tokenizer import Tokenizer
from exo.inference.weights.checkpoint import Checkpoint
from exo.inference.weights.tensor import StoredTensor

DUMMY_MODEL = "dummy"
N_LAYERS = 8
EOS, BOS = 256, 257
VOCAB_SIZE = 258


def _byte_characters() -> list[str]:
  """GPT-2's printable character for each byte: printable bytes stand for themselves, the others for U+0100 and on."""
  printable = [*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100)]
  others = iter(range(0x100, 0x200))
  return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


class DummyCheckpoint(Checkpoint):
  """Eight layers, 258 tokens: every byte, end and beginning of text."""
  def __init__(self, n_layers: int = N_LAYERS, max_context: int = 8192) -> None:
    self.path = Path(DUMMY_MODEL)
    self._n_layers, self._max_context = n_layers, max_context

  @property
  def hf_config(self) -> dict[str, Any]:
    return {
        "model_type": "dummy", "hidden_size": 8, "num_hidden_layers": self._n_layers, "num_attention_heads": 1,
        "num_key_value_heads": 1, "intermediate_size": 8, "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": self._max_context, "rms_norm_eps": 1e-5
    }

  def names(self) -> Iterable[str]:
    return ()

  def tensor_bytes(self, name: str) -> int:
    raise ModelFilesError("the dummy model has no tensors")

  def tensor(self, name: str) -> StoredTensor:
    raise ModelFilesError("the dummy model has no tensors")

  @property
  def chat_template(self) -> str | None:
    return "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"

  def tokenizer(self) -> Tokenizer:
    vocabulary = {character: byte for byte, character in enumerate(_byte_characters())}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary | {"<eos>": EOS, "<bos>": BOS}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<eos>", special=True), AddedToken("<bos>", special=True)])
    special = {"bos_token": "<bos>", "eos_token": "<eos>"}
    return Tokenizer(BackendVocabulary(backend), frozenset({EOS}), BOS, False, self.chat_template, special)

  def close(self) -> None:
    pass
