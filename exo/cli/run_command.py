"""`exo run`: one answer, or a chat, from the node that runs here or from one started for the purpose.

Only the answer goes to stdout; progress, prompts and speed go to stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import threading
import time
from collections.abc import Coroutine
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from exo.cli.load_progress import LoadProgress
from exo.cli.node_client import node_client
from exo.cli.repetition import goes_in_circles
from exo.cli.run_words import is_path, run_words
from exo.config import Config
from exo.download.model_store import model_name
from exo.errors import ConfigError, ExoError
from exo.log import escape
from exo.standard_streams import shown, taken
from exo.topology.slow_links import slow_link_hint

T = TypeVar("T")


def run_command(config: Config, arguments: argparse.Namespace) -> int:
  """Returns the exit status: 0, 1 for an error, 130 when interrupted."""
  words = run_words(arguments)
  model = words.model
  if model is not None and is_path(model):
    try:
      path = Path(model).expanduser().absolute()
    except RuntimeError as error:  # a user, or a home, that nobody knows
      raise ConfigError(f"{model} cannot be found: {error}") from error
    if not path.exists():
      raise ConfigError(f"there is no file or folder {path}")
    config, model = replace(config, models=(path, )), model_name(path)
  if config.chatgpt_api_port is None:  # 52415 is for those who come to stay
    config = replace(config, chatgpt_api_port=0)
  with _Loop() as loop:
    session = _Session(config, model, arguments.max_tokens)
    try:
      loop.run(session.open())
      if words.prompt is not None:
        loop.run(session.ask(words.prompt))
        return 0
      return _chat(loop, session)
    finally:
      loop.run(session.close())


def _chat(loop: _Loop, session: _Session) -> int:
  import readline  # noqa: F401 - gives input() its line editing and history
  print("A chat: an empty line or Ctrl-D ends it, Ctrl-C stops an answer.", file=sys.stderr)
  while True:
    loop.run(shown())
    try:
      question = input("> ").strip()
    except (EOFError, KeyboardInterrupt):
      print(file=sys.stderr)
      return 0
    if not question:
      return 0
    try:
      loop.run(session.ask(question))
    except KeyboardInterrupt:
      print("\n(stopped)", file=sys.stderr)
    except ExoError as error:
      print(f"exo: {error}", file=sys.stderr)


_LOOKED_AT = 4000  # deltas, when a line ends


class _Session:
  """A conversation with one node."""
  def __init__(self, config: Config, model: str | None, max_tokens: int | None) -> None:
    self._config, self._model, self._max_tokens = config, model, max_tokens
    self._messages: list[dict[str, str]] = []
    self._hinted = False
    self._context = node_client(config, model)

  async def open(self) -> None:
    self._api = await self._context.__aenter__()

  async def close(self) -> None:
    await self._context.__aexit__(None, None, None)

  async def ask(self, question: str) -> None:
    """Print the answer as it comes. Cancelling it stops the generation and keeps what was said."""
    self._messages.append({"role": "user", "content": question})
    said: list[str] = []
    first, tokens, circles = 0.0, 0, False
    progress = LoadProgress(self._api)
    watching = asyncio.create_task(progress.run(), name="progress")
    try:
      async with aclosing(self._api.chat(self._model, self._messages, self._max_tokens)) as deltas:
        async for delta in deltas:
          if delta.text and not first:
            first = time.monotonic()
            await _end(watching)
          tokens = delta.usage["completion_tokens"] if delta.usage else tokens + bool(delta.text)
          said.append(delta.text)
          # a model may have been taught to drive a terminal
          sys.stdout.write(escape(delta.text) if sys.stdout.isatty() else delta.text)
          sys.stdout.flush()
          await taken()
          if self._max_tokens is None and "\n" in delta.text and goes_in_circles("".join(said[-_LOOKED_AT:])):
            circles = True
            break
    finally:
      await _end(watching)
      self._messages.append({"role": "assistant", "content": "".join(said)})
    sys.stdout.write("\n")
    sys.stdout.flush()
    await taken()
    if circles:
      print("stopped: the model says the same over and over (--max-tokens N lets it go on)", file=sys.stderr)
    if tokens > 1 and first:
      print(f"{tokens} tokens, {(tokens - 1) / max(time.monotonic() - first, 1e-6):.1f} tokens/s", file=sys.stderr)
      await self._hint()

  async def _hint(self) -> None:
    """Say so, once, where slow links make the ring slower than one of its nodes."""
    for plan in (await self._api.get("/v1/topology"))["plans"]:
      times = plan.get("times")
      if times and not self._hinted and (hint := slow_link_hint(times["lap_ms"], times["compute_ms"])):
        self._hinted = True
        print(hint, file=sys.stderr)


async def _end(task: asyncio.Task[None]) -> None:
  task.cancel()
  await asyncio.gather(task, return_exceptions=True)


class _Loop:
  """An event loop in a thread of its own, so that the main thread can read lines and hear Ctrl-C."""
  def __enter__(self) -> _Loop:
    self._loop = asyncio.new_event_loop()
    self._thread = threading.Thread(target=self._loop.run_forever, name="exo-loop", daemon=True)
    self._thread.start()
    return self

  def run(self, work: Coroutine[Any, Any, T]) -> T:
    """Wait for a coroutine; an interrupt cancels it and is raised once it has ended."""
    future = asyncio.run_coroutine_threadsafe(work, self._loop)
    try:
      return future.result()
    except KeyboardInterrupt:
      future.cancel()
      time.sleep(0.2)  # let it tell the ring
      raise

  def __exit__(self, *_: object) -> None:
    self._loop.call_soon_threadsafe(self._loop.stop)
    self._thread.join(5)
    self._loop.close()
