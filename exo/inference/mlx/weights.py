"""From a checkpoint's tensors to the parameters of an mlx-lm model, reading only those that a stage needs.

Models rename, stack and split tensors in `sanitize`, which wants to see all of them. Those that a stage does not hold
are there as NaN that is never computed: should a model need them after all, its results say so (`rehearsal.py` looks).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from exo.errors import ModelFilesError
from exo.inference.families.catalogue import mlx_facts
from exo.inference.families.family import MlxLm
from exo.inference.mlx.experts import stacked
from exo.inference.shard import Shard
from exo.inference.weights.blocks import Quantized, read_blocks
from exo.inference.weights.checkpoint import Checkpoint
from exo.inference.weights.microscaling import words_and_scales
from exo.inference.weights.parts import needed_names, part_of, shard_tensors
from exo.inference.weights.rounding import round_between
from exo.inference.weights.tensor import StoredTensor

Arrays = dict[str, Any]
_FLOATS = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}
_GROUP_SIZE = 32
_ROUTER = re.compile(r"\.(?:mlp|block_sparse_moe|feed_forward)\.(?:gate|router)$")


@dataclass(frozen=True, slots=True)
class Holding:
  """How weights are held: floats in `dtype`; what is quantized in the file stays so if `packed`."""
  dtype: Any
  packed: bool


def holding(checkpoint: Checkpoint, layer: int, on_gpu: bool) -> Holding:
  """On a CPU everything in float32, for MLX's other kernels there are far slower; on a GPU as the file has `layer`."""
  if not on_gpu:
    return Holding(mx.float32, False)
  matrices = _matrices(checkpoint, layer)
  encodings = {matrix.encoding for matrix in matrices}
  if encodings <= _FLOATS.keys():
    return Holding(_FLOATS[min(encodings)] if encodings else mx.float16, True)
  groups = next((matrix.groups for matrix in matrices if matrix.groups), None)
  if groups is not None:
    return Holding(_FLOATS[groups.scale_encoding], True)
  # Gemma's activations exceed what float16 can hold
  return Holding(mx.bfloat16 if checkpoint.config.model_type.startswith("gemma") else mx.float16, True)


def _matrices(checkpoint: Checkpoint, layer: int) -> list[StoredTensor]:
  names = [name for name in checkpoint.names() if part_of(name) == layer]
  return [checkpoint.tensor(name) for name in names if len(checkpoint.tensor_shape(name)) > 1]


def is_quantized(checkpoint: Checkpoint, layer: int) -> bool:
  """Whether the layer's matrices in the files are quantized already."""
  return any(matrix.encoding not in _FLOATS for matrix in _matrices(checkpoint, layer))


def load_weights(
    make_model: Callable[[], Any], checkpoint: Checkpoint, shard: Shard, held: Holding, progress: Callable[[float],
                                                                                                           None]
) -> Any:
  """A model whose parameters of this stage are there. Raises `ModelFilesError` when some are missing or misshapen."""
  needed = frozenset(shard_tensors(checkpoint, shard))
  names = list(checkpoint.names())
  plain: Arrays = {}
  scales: Arrays = {}
  biases: Arrays = {}
  # the largest first: each is there twice for a moment, which costs least while nothing else is
  for done, name in enumerate(sorted(names, key=checkpoint.tensor_weights, reverse=True)):
    if name in needed:
      stored = checkpoint.tensor(name)
      factor = _factor(name, checkpoint)
      if held.packed and (groups := _groups(stored, factor)):
        plain[name], scales[name], own_biases = groups
        if own_biases is not None:
          biases[name] = own_biases
      else:
        plain[name] = _floats(stored, held.dtype)
        if factor != 1:
          plain[name] = plain[name] * factor
      mx.eval(plain[name])
      checkpoint.let_go()
      progress(done / len(names))
    else:
      plain[name] = mx.broadcast_to(mx.array(float("nan"), held.dtype), checkpoint.tensor_shape(name))
  plain = {name: plain[name] for name in names}
  model = make_model()
  facts = mlx_facts(checkpoint.config.model_type)
  weights = _sanitized(model, plain, facts)
  if scales:
    packed = [name for name, array in weights.items() if array.dtype == mx.uint32]
    for suffix, parts in (("scales", scales), ("biases", biases)):
      # a model of its own, since the first one has already been shaped by the tensors that it saw
      found = _sanitized(make_model(), plain | parts, facts)
      # what has none of these is still codes; powers of two are bytes
      weights |= {
          f"{name.removesuffix('weight')}{suffix}": found[name]
          if found[name].dtype == mx.uint8 else found[name].astype(held.dtype)
          for name in packed if found[name].dtype != mx.uint32
      }
    _make_quantized(model, weights)
  _set(model, weights, shard, checkpoint)
  return model


def _factor(name: str, checkpoint: Checkpoint) -> float:
  """With which a tensor is to be multiplied, since mlx-lm does not."""
  facts, factor = mlx_facts(checkpoint.config.model_type), 1.0
  for end, key in facts.factors:
    value = checkpoint.hf_config.get(key, 1.0)
    if name.endswith(end) and isinstance(value, (int, float)):
      factor *= value
  return factor


def _sanitized(model: Any, weights: Arrays, facts: MlxLm) -> Arrays:
  if facts.transposed:
    weights = {name: array.swapaxes(-1, -2) if name.endswith(facts.transposed) else array
               for name, array in weights.items()}  # yapf: disable
  for pattern, expected in facts.renames:
    weights = {re.sub(pattern, expected, name): array for name, array in weights.items()}
  if facts.stacks_experts:
    weights = stacked(weights)
  try:
    return dict(model.sanitize(dict(weights))) if hasattr(model, "sanitize") else weights
  except (KeyError, ValueError, IndexError) as error:
    raise ModelFilesError(f"this checkpoint's tensors do not fit its architecture: {error}") from error


def _set(model: Any, weights: Arrays, shard: Shard, checkpoint: Checkpoint) -> None:
  wanted = {name: value.shape for name, value in tree_flatten(model.parameters())}
  needed = needed_names(wanted, shard)
  spares = mlx_facts(checkpoint.config.model_type).spares
  for name in needed:
    if spares and name.endswith(spares) and name not in weights:
      weights[name] = mx.zeros(wanted[name])
  missing = sorted(name for name in needed if name not in weights)
  if missing:
    raise ModelFilesError(f"{checkpoint.path.name} lacks {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}")
  for name in needed:
    # a number alone has a row of its own in this project's tensors
    if not wanted[name] and weights[name].shape == (1, ):
      weights[name] = weights[name].reshape(())
    if weights[name].shape != wanted[name]:
      raise ModelFilesError(
          f"{checkpoint.path.name}: {name} has the shape {weights[name].shape}, its model wants {wanted[name]}"
      )
  try:
    model.load_weights([(name, array) for name, array in weights.items() if name in wanted], strict=False)
  except ValueError as error:
    raise ModelFilesError(
        f"{checkpoint.path.name}: a tensor has another shape than its model wants: {error}"
    ) from error
  model.eval()


def _floats(stored: StoredTensor, dtype: Any) -> Any:
  if stored.encoding in ("F16", "BF16") and dtype == _FLOATS[stored.encoding] and not stored.offset:
    raw = mx.array(np.ascontiguousarray(stored.data).view("<u2"))
    return raw.view(dtype).reshape(stored.shape)
  return mx.array(stored.to_float32()).astype(dtype)


def _groups(stored: StoredTensor, factor: float) -> tuple[Any, Any, Any | None] | None:
  """(codes, scales, biases) of the weights times `factor` as MLX wants them; None for what is held as floats. MXFP4 has bytes for
  scales, which only some factors would leave whole, and no biases."""
  if stored.encoding == "MXFP4":
    if factor != 1:
      return None
    words, scales = words_and_scales(stored)
    return mx.array(words), mx.array(scales), None
  found = _affine(stored)
  if found is None or factor == 1:
    return found
  return found[0], found[1] * factor, found[2] * factor


def _affine(stored: StoredTensor) -> tuple[Any, Any, Any] | None:
  """(codes, scales, biases) as MLX wants them, equal to what is stored; None for floats.

  Blocks of 16, which MLX has not (Q6_K), become eight bits in groups of 32: 1/4 of a Q6_K step at most.
  """
  blocks = read_blocks(stored) if len(stored.shape) > 1 else None
  if blocks is None:
    return None
  if blocks.block < 32:
    return _rounded(mx.array(stored.to_float32()), 8)
  rows = stored.shape[:-1]
  biases = -(1 << (blocks.bits - 1)) * blocks.scales if blocks.minimum is None else blocks.minimum
  return (
      mx.array(_words(blocks)).reshape(*rows, -1), mx.array(blocks.scales).reshape(*rows, -1),
      mx.array(biases.astype(np.float32)).reshape(*rows, -1)
  )


def _words(blocks: Quantized) -> Any:
  """Codes laid end to end from the lowest bit of the first word."""
  codes = blocks.codes.reshape(-1, blocks.block)
  if blocks.bits == 8:
    return np.ascontiguousarray(codes).view("<u4")
  if blocks.bits == 4:
    return np.ascontiguousarray(codes[:, 0::2] | (codes[:, 1::2] << 4)).view("<u4")
  bits = codes[..., None] >> np.arange(blocks.bits, dtype=np.uint8) & 1
  return np.packbits(bits.reshape(len(codes), -1), axis=-1, bitorder="little").view("<u4")


def _make_quantized(model: Any, weights: Arrays) -> None:
  """Swap in quantized layers where the weights are."""
  def settings(path: str, module: Any) -> Any:
    if f"{path}.scales" not in weights or not hasattr(module, "to_quantized"):
      return False
    columns, scales = module.weight.shape[-1], weights[f"{path}.scales"]
    return {
        "group_size": columns // scales.shape[-1], "bits": weights[f"{path}.weight"].shape[-1] * 32 // columns,
        "mode": "mxfp4" if scales.dtype == mx.uint8 else "affine"
    }

  nn.quantize(model, class_predicate=settings)


def _rounded(values: Any, bits: int) -> tuple[Any, Any, Any]:
  """(codes, scales, biases) of groups that reach from their least to their greatest value.

  `mx.quantize` shifts groups so that zero is among the values, at the cost of the others: 5 to 15 % more error at 8 bits.
  """
  groups = values.astype(mx.float32).reshape(*values.shape[:-1], -1, _GROUP_SIZE)
  low = groups.min(axis=-1)
  codes, scales = round_between(groups, low, groups.max(axis=-1), bits, mx)
  codes = codes.astype(mx.uint8).reshape(values.shape)
  if bits == 4:
    codes = codes[..., 0::2] | (codes[..., 1::2] << 4)
  return codes.view(mx.uint32), scales.astype(values.dtype), low.astype(values.dtype)


def quantize(model: Any, shard: Shard, bits: int, packed: bool) -> None:
  """Round the stage's matrices to affine groups, and hold them so if `packed`; routers of experts stay as they are.

  Not packed, they are expanded again: slower kernels are avoided and the numbers are the same.
  """
  wanted = frozenset(stage_parameters(model, shard))  # names alone: the arrays are to go one by one
  chosen = {
      path: module
      for path, module in _quantizable(model)
      if f"{path}.weight" in wanted and module.weight.shape[-1] % _GROUP_SIZE == 0 and not _ROUTER.search(path)
  }
  rounded: Arrays = {}
  for path, module in chosen.items():
    parts = _rounded(module.weight, bits)
    if packed:
      rounded |= zip((f"{path}.weight", f"{path}.scales", f"{path}.biases"), parts, strict=True)
      mx.eval(parts)
    else:
      module.weight = mx.dequantize(*parts, group_size=_GROUP_SIZE, bits=bits)
      mx.eval(module.weight)
  if packed:
    nn.quantize(model, _GROUP_SIZE, bits, class_predicate=lambda path, _: path in chosen)
    model.load_weights(list(rounded.items()), strict=False)


def lay_out_for_cpu(model: Any, shard: Shard) -> None:
  """Store the stage's float matrices by columns; what models see is the same.

  A product with one token then reads them as they lie: 1.1 times as fast for the layers of SmolLM2, 1.7 for its head.
  """
  wanted = frozenset(stage_parameters(model, shard))  # names alone: the arrays are to go one by one
  for path, module in _quantizable(model):
    if f"{path}.weight" in wanted and module.weight.ndim == 2:
      by_columns = mx.contiguous(module.weight.T)
      mx.eval(by_columns)
      module.weight = by_columns.T
      del by_columns
      mx.eval(module.weight)


def _quantizable(model: Any) -> Iterator[tuple[str, Any]]:
  """Matrices that are floats so far."""
  for path, module in tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module):
    if hasattr(module, "to_quantized") and "weight" in module:
      yield path, module


def stage_parameters(model: Any, shard: Shard) -> Arrays:
  """The parameters that the stage holds, by name."""
  parameters: Arrays = dict(tree_flatten(model.parameters()))
  return {name: parameters[name] for name in needed_names(parameters, shard)}
