"""Tensors to bytes and back, with fewer bits on the way where that is wanted. Raises `ProtocolError` for what is wrong."""

from __future__ import annotations

import math
from typing import Any, Literal

import ml_dtypes
import msgspec
import numpy as np
import numpy.typing as npt

from exo.errors import ProtocolError

_DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int32": np.dtype("<i4"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_INT8 = np.dtype(np.int8)
_MAX_RANK = 4
_BLOCK = 64  # numbers that share a scale on an 8-bit wire
_FLOAT16_MOST = 65504.0
WireDtype = Literal["native", "16", "8"]


class WireTensor(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
  """Little-endian numbers; with `int8`, `scales` has a float32 for every block of the last dimension."""
  dtype: str
  shape: tuple[int, ...]
  data: memoryview
  scales: memoryview = memoryview(b"")


def encode_tensor(array: npt.NDArray[Any], wire: WireDtype = "native") -> WireTensor:
  """Floats are narrowed to the bits that `wire` names."""
  if wire != "native" and array.dtype.kind in "fV":
    return _narrowed(array, wire)
  name = _NAMES.get(array.dtype)  # not `dtype.name`, which numpy puts together in Python for every hop
  if name is None:
    raise ProtocolError(f"tensors of {array.dtype} are not sent")
  return WireTensor(name, array.shape, bytes_of(array))


def bytes_of(array: npt.NDArray[Any]) -> memoryview:
  """An array's numbers in C order, without a copy where they lie so."""
  return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _narrowed(array: npt.NDArray[Any], wire: WireDtype) -> WireTensor:
  """16 bits: float16, or bfloat16 where a value is too large for it. 8 bits: whole numbers with a scale a block."""
  numbers = array.astype(np.float32)
  if wire == "16":
    fits = bool(np.abs(numbers).max(initial=0) <= _FLOAT16_MOST)
    narrow = numbers.astype(np.float16 if fits else ml_dtypes.bfloat16)
    return WireTensor(narrow.dtype.name, array.shape, bytes_of(narrow))
  width = array.shape[-1]
  padded = np.zeros((numbers.size // width, -(-width // _BLOCK) * _BLOCK), np.float32)
  padded[:, :width] = numbers.reshape(-1, width)
  blocks = padded.reshape(-1, _BLOCK)
  scales = np.abs(blocks).max(axis=1) / np.float32(127)
  whole = np.rint(blocks / np.where(scales > 0, scales, 1)[:, None]).astype(np.int8)
  return WireTensor(
      "int8", array.shape, bytes_of(whole.reshape(padded.shape)[:, :width]), bytes_of(scales.astype("<f4"))
  )


def decode_tensor(tensor: WireTensor) -> npt.NDArray[Any]:
  """A read-only array over the message's bytes; float32 where they were narrowed to 8 bits."""
  name, shape, data = tensor.dtype, tensor.shape, tensor.data
  dtype = _INT8 if name == "int8" else _DTYPES.get(name)
  if dtype is None or not 1 <= len(shape) <= _MAX_RANK or min(shape) < 1:
    raise ProtocolError(f"a tensor of {name[:20]!r} and shape {shape[:8]} is not allowed")
  if math.prod(shape) * dtype.itemsize != len(data):
    raise ProtocolError(f"a tensor of shape {shape} and {name} came with {len(data)} bytes")
  array: npt.NDArray[Any] = np.ndarray(shape, dtype, data)
  return _widened(array, tensor.scales) if dtype is _INT8 else array


def _widened(array: npt.NDArray[np.int8], scale_bytes: memoryview) -> npt.NDArray[np.float32]:
  width = array.shape[-1]
  blocks = -(-width // _BLOCK)
  if len(scale_bytes) != 4 * blocks * (array.size // width):
    raise ProtocolError(f"an int8 tensor of shape {array.shape} came with {len(scale_bytes)} bytes of scales")
  scales = np.frombuffer(scale_bytes, "<f4").reshape(-1, blocks)
  if not np.isfinite(scales).all():
    raise ProtocolError("an int8 tensor came with scales that are no numbers")
  wide: npt.NDArray[np.float32] = array.reshape(-1, width) * np.repeat(scales, _BLOCK, axis=1)[:, :width]
  return wide.reshape(array.shape)
