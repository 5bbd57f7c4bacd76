"""A stream of the C library that reads what Python makes: glibc's `fopencookie`. Others have none like it, or another."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Protocol

_SEEK_SET, _SEEK_CUR, _SEEK_END = 0, 1, 2
_FULLY, _BUFFER_BYTES = 0, 1 << 19


class Source(Protocol):
  size: int

  def read_into(self, target: memoryview, position: int) -> int:
    """Fill as much of `target` as there is from `position` on; returns the number of bytes. Raises `OSError`."""


_READ = ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_SEEK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int64), ctypes.c_int)


class _Functions(ctypes.Structure):
  _fields_ = [("read", _READ), ("write", ctypes.c_void_p), ("seek", _SEEK), ("close", ctypes.c_void_p)]


def has_virtual_files() -> bool:
  return hasattr(ctypes.CDLL(None), "fopencookie")


class VirtualFile:
  """`stream` is a `FILE *` for reading, until it is closed. What a read raised is in `error`: C hears of a failure alone."""
  def __init__(self, source: Source) -> None:
    self._source, self._position = source, 0
    self.error: BaseException | None = None
    self._functions = _Functions(_READ(self._read), None, _SEEK(self._seek), None)  # kept while C has them
    self._libc = ctypes.CDLL(None, use_errno=True)
    self._libc.fopencookie.restype = ctypes.c_void_p
    self._libc.fopencookie.argtypes = [ctypes.c_void_p, ctypes.c_char_p, _Functions]
    self._libc.fclose.argtypes = [ctypes.c_void_p]
    self.stream: int | None = self._libc.fopencookie(None, b"rb", self._functions)
    if not self.stream:
      number = ctypes.get_errno()
      raise OSError(number, os.strerror(number))
    # such streams read only as much at once as they have room for, 8 kB by themselves: a call of Python for each
    self._buffer = ctypes.create_string_buffer(_BUFFER_BYTES)
    self._libc.setvbuf.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    self._libc.setvbuf(self.stream, self._buffer, _FULLY, _BUFFER_BYTES)

  def _read(self, _: object, buffer: int, size: int) -> int:
    try:
      target = memoryview((ctypes.c_ubyte * size).from_address(buffer)).cast("B")
      count = self._source.read_into(target, self._position)
    except BaseException as error:  # noqa: BLE001 - it must not go through C
      self.error = error
      ctypes.set_errno(errno.EIO)
      return -1
    self._position += count
    return count

  def _seek(self, _: object, offset: ctypes._Pointer[ctypes.c_int64], whence: int) -> int:
    start = {_SEEK_SET: 0, _SEEK_CUR: self._position, _SEEK_END: self._source.size}.get(whence)
    if start is None or start + offset[0] < 0:
      return -1
    self._position = offset[0] = start + offset[0]
    return 0

  def close(self) -> None:
    """Idempotent."""
    if self.stream:
      self._libc.fclose(self.stream)
      self.stream = None
