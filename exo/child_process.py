"""A Python process of this node's own for work that would hold the interpreter: calls by name, answered in any order.

The child runs one of exo's modules. It ends with its parent, whose end it sees as the end of its input.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import IO, Any

import msgspec

from exo.errors import EngineUnavailableError, ExoError, from_wire, in_words, to_wire
from exo.log import log

_LENGTH = struct.Struct("<I")
_MAX_MESSAGE = 2**30
_NICE = 10
_WATCH_S = 0.2
# the folder that this very package lies in goes first, unless the interpreter looks there by itself
_CODE = (
    "import sys; root, module = sys.argv[1:3]; sys.path[:0] = [root] if root not in sys.path else []; "
    "from importlib import import_module; import_module(module).main()"
)


def child_command(module: str, arguments: Sequence[str]) -> list[str]:
  """What runs one of exo's modules, which finds `arguments` at the end of `sys.argv`."""
  return [sys.executable, "-P", "-c", _CODE, str(Path(__file__).resolve().parents[1]), module, *arguments]


class ChildGoneError(ExoError):
  """The child ended before it answered; the next call starts another."""
  kind = "child_gone"


def environment_with(added: Mapping[str, str], removed: Sequence[str] = ()) -> dict[str, str]:
  """This process' own environment, for one that it starts, without some variables and with others."""
  return {name: value for name, value in os.environ.items() if name not in removed} | dict(added)


class ChildProcess:
  """Started by the first call, and again after its death. For any thread.

  The module finds `arguments` at the end of `sys.argv`; `environment` is added to the node's own, and `descriptors` are open there, too.
  """
  def __init__(
      self,
      module: str,
      what: str,
      arguments: Sequence[str] = (),
      environment: Mapping[str, str] | None = None,
      descriptors: Sequence[int] = ()
  ) -> None:
    self._module, self._what = module, what
    self._arguments, self._descriptors = tuple(arguments), tuple(descriptors)
    self._environment = None if environment is None else environment_with(environment)
    self._lock = threading.Lock()
    self._process: subprocess.Popen[bytes] | None = None
    self._waiting: dict[int, Future[Any]] = {}
    self._numbers = itertools.count()
    self.generation = 0  # how many have been started: what one was told, the next one does not know

  @property
  def pid(self) -> int | None:
    process = self._process
    return process.pid if process is not None and process.poll() is None else None

  def call(self, name: str, *arguments: Any) -> Future[Any]:
    """Ask for `name(*arguments)`: plain values that msgpack knows.

    The future raises what the child raises, or `ChildGoneError`. Raises `EngineUnavailableError` when none can be started.
    """
    number, future = next(self._numbers), Future[Any]()
    data = msgspec.msgpack.encode((number, name, arguments))
    with self._lock:
      try:
        process = self._running()
      except OSError as error:
        raise EngineUnavailableError(f"the process for {self._what} cannot be started: {error.strerror}") from error
      self._waiting[number] = future
      assert process.stdin is not None
      try:
        _write(process.stdin, data)
      except Exception as error:  # noqa: BLE001 - half of a message may be there: its end tells whoever waits
        log(1, "the process for %s cannot be asked: %s", self._what, in_words(error))
        process.kill()
    return future

  def ask(self, timeout_s: float, name: str, *arguments: Any, watch: Callable[[], None] | None = None) -> Any:
    """As `call`, with the answer. `watch` is called now and then until it is there. Raises `TimeoutError` too, for a child that has not
    answered in time: it is ended, since a thread in it cannot be stopped."""
    answer = self.call(name, *arguments)
    generation, deadline = self.generation, time.monotonic() + timeout_s
    if watch is not None:
      while time.monotonic() < deadline - _WATCH_S and not wait((answer, ), _WATCH_S).done:
        watch()
    try:
      return answer.result(max(0.0, deadline - time.monotonic()))
    except TimeoutError:
      if self.generation == generation:
        self.kill()
      raise

  def _running(self) -> subprocess.Popen[bytes]:
    process = self._process
    if process is None or process.poll() is not None:
      process = self._process = subprocess.Popen(
          child_command(self._module, self._arguments),
          stdin=subprocess.PIPE,
          stdout=subprocess.PIPE,
          stderr=subprocess.DEVNULL,
          env=self._environment,
          pass_fds=self._descriptors
      )
      self.generation += 1
      atexit.register(process.kill)
      waiting = self._waiting = {}
      threading.Thread(target=self._serve, args=(process, waiting), name=f"exo-{self._what}", daemon=True).start()
    return process

  def _serve(self, process: subprocess.Popen[bytes], waiting: dict[int, Future[Any]]) -> None:
    """Give its answers to who waits for them, until it ends; then whoever still waits hears of that."""
    try:
      self._answer(process, waiting)
    except Exception as error:  # noqa: BLE001 - nobody would read its answers any more
      log(0, "the answers of the process for %s cannot be read: %s", self._what, in_words(error))
    finally:
      self._ended(process, waiting)

  @staticmethod
  def _answer(process: subprocess.Popen[bytes], waiting: dict[int, Future[Any]]) -> None:
    assert process.stdout is not None
    while (data := _read(process.stdout)) is not None:
      number, failed, value = msgspec.msgpack.decode(data)
      future = waiting.pop(number, None)
      if future is not None and future.set_running_or_notify_cancel():
        if failed:
          future.set_exception(from_wire(*value))
        else:
          future.set_result(value)

  def _ended(self, process: subprocess.Popen[bytes], waiting: dict[int, Future[Any]]) -> None:
    process.kill()
    code = process.wait()
    atexit.unregister(process.kill)
    with self._lock:
      if self._process is process:
        self._process = None
      left = [future for future in waiting.values() if not future.cancelled()]
      waiting.clear()
    for stream in (process.stdin, process.stdout):
      with contextlib.suppress(OSError):
        if stream is not None:
          stream.close()
    if left:
      log(0, "the process for %s ended %s; %d calls fail", self._what, _how(code), len(left))
    for future in left:
      if future.set_running_or_notify_cancel():
        future.set_exception(ChildGoneError(f"the process for {self._what} ended {_how(code)}"))

  def kill(self) -> None:
    """End it now; calls under way fail."""
    process = self._process
    if process is not None:
      process.kill()


def _how(code: int) -> str:
  """In which way a process ended, by its exit status."""
  if code >= 0:
    return f"with status {code}"
  try:
    return f"by {signal.Signals(-code).name}"
  except ValueError:
    return f"by signal {-code}"


def give_way() -> None:
  """Let the node itself go first, and whatever else is not niced."""
  if hasattr(os, "nice"):
    os.nice(_NICE)


def _die_first() -> None:
  """Where memory ends, the kernel shall take this process, which can be started again, rather than the node."""
  with contextlib.suppress(OSError):
    Path("/proc/self/oom_score_adj").write_text("1000")


def serve(functions: Mapping[str, Callable[..., Any]], threads: int) -> None:
  """The child's side: answer calls until the parent is gone. Never returns."""
  for number in (
      signal.SIGINT, signal.SIGTERM
  ):  # of the parent's terminal or group; the parent's end is what ends this process
    signal.signal(number, signal.SIG_IGN)
  _die_first()
  source, sink, lock = sys.stdin.buffer, sys.stdout.buffer, threading.Lock()
  pool = ThreadPoolExecutor(threads)

  def answer(number: int, name: str, arguments: list[Any]) -> None:
    try:
      reply = msgspec.msgpack.encode((number, False, functions[name](*arguments)))
    except Exception as error:  # noqa: BLE001 - it is the caller's, whatever it is
      reply = msgspec.msgpack.encode((number, True, to_wire(error)))
    with lock:
      _write(sink, reply)

  while (data := _read(source)) is not None:
    pool.submit(answer, *msgspec.msgpack.decode(data))
  os._exit(0)


def _write(stream: IO[bytes], data: bytes) -> None:
  stream.write(_LENGTH.pack(len(data)))
  stream.write(data)
  stream.flush()


def _read(stream: IO[bytes]) -> bytes | None:
  """The next message; None at the end."""
  try:
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
      return None
    size = _LENGTH.unpack(head)[0]
    data = stream.read(size) if size <= _MAX_MESSAGE else b""
  except (OSError, ValueError):
    return None
  return data if len(data) == size else None
