"""GGUF files of a real model's shape whose weights mean nothing: what loading and computing them takes is real, their text is noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import dequantize

from exo.inference.weights.tensor import BLOCKS, UNREAD_BLOCKS, row_bytes

_SCALES = {
    "Q4_0": (0, ), "Q4_1": (0, 2), "Q8_0": (0, ), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208, ), "Q2_K": (80, 82),
    "Q3_K": (108, ), "IQ4_NL": (0, ), "IQ4_XS": (0, ), "IQ3_S": (0, ), "IQ3_XXS": (0, ), "IQ2_S": (0, ),
    "IQ2_XS": (0, ), "IQ2_XXS": (0, ), "IQ1_S": (0, ), "TQ2_0": (64, )
}  # where halves lie


@dataclass(frozen=True, slots=True)
class Shape:
  """Of a Llama whose head is its embedding."""
  layers: int
  hidden: int
  wide: int
  heads: int
  kv_heads: int
  words: int
  context: int = 8192

  @property
  def head_dim(self) -> int:
    return self.hidden // self.heads


_LETTERS = [chr(c) for c in (*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x144))]  # one for each byte
LLAMA_1B = Shape(16, 2048, 8192, 32, 8, 128256, 131072)  # Llama 3.2 1B
LLAMA_3B = Shape(28, 3072, 8192, 24, 8, 128256, 131072)  # Llama 3.2 3B
# reads prompts of agents in a second, and ends an answer after some hundred words
LONG = Shape(2, 32, 64, 1, 1, 360, 262144)
SMALL = Shape(4, 1024, 2816, 16, 4, 32768)
TINY = Shape(2, 1024, 2816, 16, 4, 4096)


def ids_of(tokens: Sequence[str]) -> list[int]:
  """Of what a model of these wrote, token by token, up to the first that is no text by itself: read as one text they would be others."""
  found = list[int]()
  for token in tokens:
    if token[1:].isdecimal():
      found.append(len(_LETTERS) + int(token[1:]))
    elif token in _LETTERS and token.isascii():
      found.append(_LETTERS.index(token))
    else:
      break
  return found


def write_shaped(
    path: Path,
    shape: Shape,
    encoding: str,
    *,
    unpacked: bool = False,
    per_part: int = 0,
    sampling: Mapping[str, float] | None = None
) -> Path:
  """Write the model to `path`; `encoding` is one of GGUF's, or "Q4_K_M" for llama.cpp's mixture of Q4_K and Q6_K. `unpacked`: with the
  weights that it has then, as floats. `per_part`: so many tensors go into each of several files, named after `path`. `sampling`: what stands
  under these of `general.sampling`'s keys."""
  path.parent.mkdir(parents=True, exist_ok=True)
  writer = GGUFWriter(path, "llama", split_max_tensors=per_part)
  writer.add_block_count(shape.layers)
  writer.add_context_length(shape.context)
  writer.add_embedding_length(shape.hidden)
  writer.add_feed_forward_length(shape.wide)
  writer.add_head_count(shape.heads)
  writer.add_head_count_kv(shape.kv_heads)
  writer.add_layer_norm_rms_eps(1e-5)
  writer.add_rope_freq_base(500000.0)
  for key, value in (sampling or {}).items():
    add = writer.add_int32 if isinstance(value, int) else writer.add_float32
    add(f"general.sampling.{key}", value)
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre("llama-bpe")
  words = [*_LETTERS, *(f"w{i}" for i in range(shape.words - len(_LETTERS)))]
  writer.add_token_list(words)
  writer.add_token_types([TokenType.NORMAL] * len(words))  # also those that end an answer: files are not always right
  writer.add_token_merges(["w 1"])  # llama.cpp wants some
  writer.add_eos_token_id(shape.words - 1)
  writer.add_eot_token_id(shape.words - 2)
  writer.add_eom_token_id(shape.words - 3)
  tensors = {"token_embd": (shape.words, shape.hidden), "output_norm": (shape.hidden, )}
  for i in range(shape.layers):
    block = f"blk.{i}."
    tensors |= {f"{block}{norm}_norm": (shape.hidden, ) for norm in ("attn", "ffn")}
    tensors |= {f"{block}attn_{part}": (shape.hidden, shape.hidden) for part in ("q", "output")}
    tensors |= {f"{block}attn_{part}": (shape.kv_heads * shape.head_dim, shape.hidden) for part in "kv"}
    tensors |= {f"{block}ffn_{part}": (shape.wide, shape.hidden) for part in ("gate", "up")}
    tensors[f"{block}ffn_down"] = (shape.hidden, shape.wide)
  for seed, (name, dims) in enumerate(tensors.items()):  # libraries may notice what is there twice, and hold it once
    if len(dims) == 1:
      writer.add_tensor(f"{name}.weight", np.ones(dims, np.float32))
      continue
    packed = _encoding(name, shape, encoding)
    if packed == "F32":
      writer.add_tensor(f"{name}.weight", _floats(dims, seed))
    elif unpacked:
      writer.add_tensor(f"{name}.weight", dequantize(_packed(dims, packed, seed), GGMLQuantizationType[packed]))
    else:
      writer.add_tensor(f"{name}.weight", _packed(dims, packed, seed), raw_dtype=GGMLQuantizationType[packed])
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def _encoding(name: str, shape: Shape, encoding: str) -> str:
  """llama.cpp's mixture has the embedding and half of the values' and the narrowing matrices wider."""
  if encoding != "Q4_K_M":
    return encoding
  if name == "token_embd":
    return "Q6_K"
  layer, eighth = int(name.split(".")[1]), shape.layers // 8
  wider = layer < eighth or layer >= 7 * eighth or (layer - eighth) % 3 == 2
  return "Q6_K" if wider and name.endswith(("attn_v", "ffn_down")) else "Q4_K"


def _floats(dims: tuple[int, ...], seed: int) -> npt.NDArray[np.float32]:
  values = np.random.default_rng(seed).standard_normal(dims, np.float32)
  values *= np.float32(0.02)
  return values


def _packed(dims: tuple[int, ...], encoding: str, seed: int) -> npt.NDArray[np.uint8]:
  """Blocks of any codes under small scales, (rows, bytes of a row)."""
  if encoding == "F16":
    return _floats(dims, seed).astype(np.float16).view(np.uint8)
  if encoding == "BF16":
    return (_floats(dims, seed).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
  rows, columns = dims
  block, size = BLOCKS.get(encoding) or UNREAD_BLOCKS[encoding]
  data = np.random.default_rng(seed).integers(0, 256, (rows, row_bytes(encoding, columns)), np.uint8)
  blocks = data.reshape(rows, columns // block, size)
  for at in _SCALES[encoding]:
    blocks[..., at:at + 2] = np.array([2e-4], "<f2").view(np.uint8)
  return data
