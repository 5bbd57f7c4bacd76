"""What a node and its process of llama.cpp tell each other in the middle of a call: bytes at the beginning of their shared memory."""

from __future__ import annotations

import ctypes

import numpy as np

from exo.shared_memory import SharedMemory

SIGNAL_BYTES = 64  # what follows is the calls' own
_ABORT, _PROGRESS = slice(0, 2), slice(8, 12)


class Signals:
  """Either side's. For any thread."""
  def __init__(self, memory: SharedMemory) -> None:
    memory.grow(SIGNAL_BYTES)
    view = memory.view(0, SIGNAL_BYTES)
    self._abort, self._progress = view[_ABORT], view[_PROGRESS].view(np.float32)

  def abort(self, wanted: bool) -> None:
    """Whether the step that runs is to end."""
    self._abort[0] = wanted

  @property
  def abort_callback(self) -> tuple[int, int]:
    """(a native function, what it is to be called with): it gives what is not zero once the step is to end. llama.cpp asks after every
    node of its graph, and must not wait for an interpreter: the length of a text, which is the flag and the zero behind it."""
    function = ctypes.cast(ctypes.CDLL(None).strlen, ctypes.c_void_p).value
    assert function is not None
    return function, self._abort.ctypes.data

  @property
  def progress(self) -> float:
    """Of the load that runs, 0 to 1."""
    return float(self._progress[0])

  @progress.setter
  def progress(self, fraction: float) -> None:
    self._progress[0] = fraction
