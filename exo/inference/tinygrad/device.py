"""Memory and compiled kernels on the device that tinygrad drives; on a CPU, kernels are called without tinygrad between.

tinygrad's own dispatch costs some 11 µs of Python a kernel, a third of a small model's time on a CPU. There a kernel is
a C function: its address and arguments are bound once, and a call of it is one call through ctypes.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import mmap
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tinygrad import Device, UOp, dtypes
from tinygrad.codegen import to_program
from tinygrad.device import Allocator, Buffer, TinyELF
from tinygrad.dtype import DType
from tinygrad.engine.realize import get_runtime
from tinygrad.helpers import BEAM, DEBUG, DEV, PARALLEL, Context, diskcache_get, diskcache_put

from exo.errors import EngineError
from exo.inference.library_version import library_version
from exo.inference.reservation import reserve
from exo.inference.tinygrad.kernels import Dialect
from exo.inference.tinygrad.probe import CLANG_ADVICE

Call = Callable[[], object]
_CACHE_TABLE = "exo_programs"
_HUGE_PAGE = 2 * 2**20
NUMPY_TYPES: dict[DType, type[np.generic]] = {
    dtypes.float32: np.float32, dtypes.float16: np.float16, dtypes.int32: np.int32, dtypes.int8: np.int8,
    dtypes.uint8: np.uint8
}


@dataclass(frozen=True)
class Program:
  """A compiled kernel: what to call, which slots and which variables it takes, in order."""
  runtime: Any
  slots: tuple[int, ...]
  variables: tuple[str, ...]
  info: Any = None  # tinygrad's launch sizes; nothing on a CPU


@functools.cache
def compile_kernel(device: str, kernel: UOp) -> Program:
  """On a CPU by way of tinygrad's cache on disk, where other nodes of this machine find it too.

  tinygrad itself keeps there what the compiler made of a source; most of the time goes into making the source.
  """
  opened = Device[device]
  key = {
      "kernel": kernel.key.hex(), "target": repr(opened.renderer.target), "cpu": _cpu(),
      "tinygrad": library_version("tinygrad")
  }
  shown = DEBUG.value >= 3  # kernels and their sources, which only making them prints
  if device == "CPU" and not shown and (found := diskcache_get(_CACHE_TABLE, key)) is not None:
    name, library, slots, variables = found
    return Program(opened.runtime(TinyELF(library, name, opened.renderer.target, (), b"")), slots, variables)
  try:
    with Context(SPEC=0):  # tinygrad's check of its own rewriting costs as much as the rewriting
      program = to_program(kernel, opened.renderer)
  except (OSError, RuntimeError, subprocess.SubprocessError) as error:
    raise EngineError(f"tinygrad could not compile {kernel.arg.name}: {error}. {CLANG_ADVICE}") from error
  slots, variables = program.arg.globals, tuple(variable.arg.name for variable in program.arg.vars)
  if device == "CPU":
    elf = TinyELF(program.src[3].arg, program.arg.function_name, opened.renderer.target, (), b"")
    diskcache_put(_CACHE_TABLE, key, (elf.name, elf.lib, slots, variables))
    return Program(opened.runtime(elf), slots, variables)
  # estimates, symbolic and deep, are left out: the key of tinygrad's own cache prints them
  sink = program.src[0]
  program = program.replace(src=(sink.replace(arg=replace(sink.arg, estimates=None)), *program.src[1:]))
  return Program(get_runtime(device, program), slots, variables, program.arg)


@functools.cache
def _cpu() -> str:
  """What the compiler's -march=native depends on."""
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    return platform.processor()
  return hashlib.sha256("".join(sorted({x for x in lines if x.startswith(("flags", "Features"))})).encode()).hexdigest()


class Array:
  """A flat array on the device, of zeros; on a GPU a `sparse` one holds anything. `host` is a view of the same memory where there is one (on a CPU), else None."""
  def __init__(self, device: str, size: int, dtype: DType, sparse: bool = False) -> None:
    self.size, self.dtype = size, dtype
    self.host: npt.NDArray[Any] | None = None
    self._mirror: npt.NDArray[Any] | None = None
    if device == "CPU":
      self._map(max(size, 1) * dtype.itemsize, sparse)
      self.host = np.frombuffer(self._memory, NUMPY_TYPES[dtype], size)
      self.address = self.host.ctypes.data
    else:
      self.buffer = Buffer(device, size, dtype).allocate()
      self._allocator = Device[device].allocator
      if not sparse:
        self._allocator._copyin(self.buffer.get_buf(device), memoryview(bytearray(self.n_bytes)))

  @property
  def n_bytes(self) -> int:
    return self.size * int(self.dtype.itemsize)

  def _map(self, n_bytes: int, sparse: bool) -> None:
    """Zeros that take memory when first touched; on huge pages unless most of it will stay untouched."""
    self._memory = reserve(n_bytes, "an array of the tinygrad engine")
    if hasattr(mmap, "MADV_HUGEPAGE") and n_bytes >= 2 * _HUGE_PAGE:
      self._memory.madvise(mmap.MADV_NOHUGEPAGE if sparse else mmap.MADV_HUGEPAGE)

  def write(self, values: npt.NDArray[Any], start: int = 0) -> None:
    """Replace the numbers from `start` on."""
    if self.host is not None:
      self.host[start:start + values.size] = values.reshape(-1)
    else:
      raw = np.ascontiguousarray(values.reshape(-1), NUMPY_TYPES[self.dtype])
      part, whole = self._part(raw.size, start)
      if whole is not None:
        whole[start:start + raw.size] = raw
      self._allocator._copyin(part, memoryview(raw if whole is None else whole).cast("B"))

  def read(self, size: int) -> npt.NDArray[Any]:
    """The first `size` numbers: a view on a CPU, valid until the next step, else a copy."""
    if self.host is not None:
      return self.host[:size]
    part, whole = self._part(size, 0)
    out = np.empty(size, NUMPY_TYPES[self.dtype]) if whole is None else whole
    self._allocator._copyout(memoryview(out).cast("B"), part)
    return out[:size]

  def _part(self, size: int, start: int) -> tuple[Any, npt.NDArray[Any] | None]:
    """(device memory of these numbers, None); or all of it with a copy on this side, where a device has no views."""
    if size == self.size or type(self._allocator)._offset is not Allocator._offset:
      view = self.buffer if size == self.size else self.buffer.view(size, self.dtype, start * self.dtype.itemsize)
      return view.ensure_allocated().get_buf(self.buffer.device), None
    if self._mirror is None:
      self._mirror = np.zeros(self.size, NUMPY_TYPES[self.dtype])
    return self.buffer.get_buf(self.buffer.device), self._mirror


def _timed(name: str, function: Call) -> None:
  """What tinygrad prints of each kernel when it calls them itself."""
  started = time.perf_counter()
  function()
  sys.stderr.write(f"*** CPU {name:40s} {(time.perf_counter() - started) * 1e6:9.1f} us\n")


def _open(candidates: Sequence[str]) -> str:
  if DEV.device:  # the user's own choice, by tinygrad's variable DEV
    candidates = (DEV.device, )
  failures: list[str] = []
  for name in candidates:
    try:
      Device[name]
    except Exception as error:  # noqa: BLE001 - a driver's failures are of any kind
      failures.append(f"{name}: {error}")
    else:
      return name
  raise EngineError(f"tinygrad can open no device here ({'; '.join(failures)}). {CLANG_ADVICE}")


class ComputeDevice:
  """Compiles kernels and binds them to arrays. Variables are set for all later calls."""
  def __init__(self, candidates: Sequence[str] = ("CPU", ), debug: int = 0) -> None:
    """Open the first of the candidates that works. Raises `EngineError` when none does."""
    DEBUG.value = debug  # tinygrad read DEBUG when it was imported, but that variable is exo's
    PARALLEL.value = 0  # a search in worker processes hangs
    self.name = _open(candidates)
    self.on_cpu = self.name == "CPU"
    self.dialect = Dialect(self.on_cpu, int(BEAM.value), dtypes.float32 if self.on_cpu else dtypes.float16)
    self._cells: dict[str, ctypes.c_uint64] = {}
    self.weight_bytes = 0

  def array(self, size: int, dtype: DType = dtypes.float32, sparse: bool = False) -> Array:
    return Array(self.name, size, dtype, sparse)

  def weight(self, size: int, dtype: DType = dtypes.float32) -> Array:
    self.weight_bytes += size * dtype.itemsize
    return self.array(size, dtype)

  def _cell(self, name: str) -> ctypes.c_uint64:
    return self._cells.setdefault(name, ctypes.c_uint64(0))

  def set(self, **values: int) -> None:
    """Give symbolic variables their values."""
    for name, value in values.items():
      self._cell(name).value = value

  def bind(self, kernel: UOp, *arrays: Array | None) -> Call:
    """A call of the kernel with these arrays, one for each slot; None is left out. Compiles it the first time."""
    program = compile_kernel(self.name, kernel)
    runtime, names = program.runtime, program.variables
    used = [array for array in arrays if array is not None]
    assert program.slots == tuple(
        range(len(used))
    ), "tinygrad numbers variables behind the slots, which must not have gaps"
    if self.on_cpu:
      addresses = [ctypes.c_uint64(array.address) for array in used]
      function = functools.partial(runtime.fxn, *addresses, *(self._cell(name) for name in names))
      return function if DEBUG.value < 2 else functools.partial(_timed, kernel.arg.name, function)
    buffers = [array.buffer.get_buf(self.name) for array in used]

    def call() -> None:
      values = {name: int(self._cell(name).value) for name in names}
      global_size, local_size = program.info.launch_dims(values)
      runtime(*buffers, global_size=global_size, local_size=local_size, vals=program.info.vals(values), wait=False)

    return call
