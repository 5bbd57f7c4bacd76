"""Weights that safetensors files hold as MXFP4: blocks of 32 numbers of four bits, with a power of two for each.

The format is E2M1 with E8M0 scales of *OCP Microscaling Formats 1.0*. Codes and scales are tensors of their own, as gpt-oss was
published (`…_blocks` and `…_scales`, bytes) or as MLX writes them (`….weight`, words, and `….scales`, bytes); in both the lowest four
bits come first. Here they are brought to GGML's blocks: a byte of scale, then bytes with number k in the lower half and number
k + 16 in the upper.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from exo.inference.weights.tensor import StoredTensor

Bytes = npt.NDArray[np.uint8]
_BLOCK, _BLOCK_BYTES = 32, 17


def microscaled(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, str]:
  """The names of codes with those of their scales, given the type, in safetensors' words, and the shape of all tensors. What is packed in
  other groups is none of these."""
  found = {}
  for name, (kind, shape) in tensors.items():
    if kind == "U8" and name.endswith("_blocks"):
      scales = f"{name.removesuffix('_blocks')}_scales"
    elif kind == "U32" and name.endswith(".weight"):
      scales = f"{name.removesuffix('weight')}scales"
    else:
      continue
    whole = logical_shape(shape, kind)
    if whole and whole[-1] % _BLOCK == 0 and tensors.get(scales) == ("U8", (*whole[:-1], whole[-1] // _BLOCK)):
      found[name] = scales
  return found


def logical_shape(codes: tuple[int, ...], kind: str) -> tuple[int, ...]:
  """Of the weights, given the shape of their codes and its type; () where these are no such codes."""
  if kind == "U32":
    return (*codes[:-1], codes[-1] * 8) if codes else ()
  return (*codes[:-2], codes[-2] * _BLOCK) if len(codes) > 2 and codes[-1] == _BLOCK // 2 else ()


def as_blocks(codes: StoredTensor, scales: StoredTensor, shape: tuple[int, ...]) -> StoredTensor:
  """One tensor of both."""
  blocks = shape[-1] // _BLOCK
  halves = np.ascontiguousarray(codes.data).reshape(*shape[:-1], blocks, _BLOCK // 2)
  numbers = np.stack([halves & 15, halves >> 4], axis=-1).reshape(*shape[:-1], blocks, _BLOCK)
  data = np.empty((*shape[:-1], blocks, _BLOCK_BYTES), np.uint8)
  data[..., 0] = scales.data.reshape(*shape[:-1], blocks)
  data[..., 1:] = numbers[..., :_BLOCK // 2] | numbers[..., _BLOCK // 2:] << 4
  return StoredTensor(codes.name, shape, "MXFP4", data.reshape(*shape[:-1], -1))


def words_and_scales(stored: StoredTensor) -> tuple[npt.NDArray[np.uint32], Bytes]:
  """(codes (…, columns / 8) from the lowest bits on, scales (…, columns / 32)) of a tensor of GGML's blocks, as MLX takes them."""
  blocks = np.ascontiguousarray(stored.data).reshape(*stored.shape[:-1], -1, _BLOCK_BYTES)
  packed = blocks[..., 1:]
  numbers = np.concatenate([packed & 15, packed >> 4], axis=-1).reshape(*stored.shape[:-1], -1)
  words = np.ascontiguousarray(numbers[..., 0::2] | numbers[..., 1::2] << 4).view("<u4")
  return words, np.ascontiguousarray(blocks[..., 0])
