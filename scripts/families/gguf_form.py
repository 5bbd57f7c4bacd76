"""A checkpoint as llama.cpp's own converter makes it, with a vocabulary of bytes and words that needs no tokenizer of the family."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_BYTES = 256


def _words(count: int) -> tuple[list[str], list[int]]:
  """Ids 0 to 255 are bytes, as byte-level vocabularies write them; the others are words. Their types are GGUF's: 1 for words."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(_BYTES) if byte not in printable]
  letters = {byte: chr(byte) for byte in printable} | {byte: chr(_BYTES + i) for i, byte in enumerate(others)}
  return [letters[i] if i < _BYTES else f"<t{i}>" for i in range(count)], [1] * count


def convert(folder: Path, llama_cpp: Path) -> None:
  """Write `model.gguf` beside the checkpoint in `folder`; `llama_cpp` holds the sources. Raises what the converter does."""
  sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py")]
  import gguf
  import torch
  from conversion import get_model_class
  from conversion.base import ModelBase, ModelType, get_model_architecture

  hparams = ModelBase.load_hparams(folder, False)
  kind = get_model_class(get_model_architecture(hparams, ModelType.TEXT), mmproj=False)
  text = hparams.get("text_config", hparams)

  class Converted(kind):  # type: ignore[misc, valid-type]
    model_arch = kind.model_arch

    def set_vocab(self) -> None:
      words, types = _words(int(text.get("vocab_size", 320)))
      self.gguf_writer.add_tokenizer_model("gpt2")
      self.gguf_writer.add_tokenizer_pre("gpt-2")
      self.gguf_writer.add_token_list(words)
      self.gguf_writer.add_token_types(types)
      self.gguf_writer.add_token_merges(["a b"])
      self.gguf_writer.add_eos_token_id(2)

  ModelBase._model_classes[ModelType.TEXT].pop("Converted", None)
  with torch.inference_mode():
    made: Any = Converted(folder, gguf.LlamaFileType.ALL_F32, folder / "model.gguf")
    made.write()


def main() -> int:
  folder, llama_cpp = Path(sys.argv[1]), Path(sys.argv[2])
  convert(folder, llama_cpp)
  print(json.dumps({"made": (folder / "model.gguf").stat().st_size}))
  return 0


if __name__ == "__main__":
  sys.exit(main())
