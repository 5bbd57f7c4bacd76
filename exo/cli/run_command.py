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
from urllib.parse import quote

from exo.cli.chat_commands import ChatCommands, Leave, completions
from exo.cli.chat_input import ChatInput, text_beside
from exo.cli.conversation import Conversation
from exo.cli.load_progress import LoadProgress
from exo.cli.node_client import node_client
from exo.cli.run_words import is_path, run_words
from exo.config import Config
from exo.download.model_store import model_name
from exo.errors import ConfigError, ExoError
from exo.log import escape
from exo.repetition import STOP_REASON
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
      loop.run(session.open(words.single))
      prompt = words.prompt
      if prompt is not None or words.waits_for_input:
        prompt = "\n\n".join(part for part in (prompt, text_beside(words.waits_for_input).strip("\n")) if part)
        if not prompt:
          raise ConfigError("the prompt is empty")
        loop.run(session.ask(prompt))
        return 0
      return _chat(loop, session, config)
    finally:
      loop.run(session.close())


def _chat(loop: _Loop, session: _Session, config: Config) -> int:
  """Ctrl-C stops an answer; a second one without a word between them leaves."""
  folder = config.state_dir / "chats"
  commands = ChatCommands(session.talk, folder, lambda name: loop.run(session.find_model(name)))
  source = ChatInput(
      config.state_dir / "chat_history",
      lambda line: completions(line, lambda: [path.stem for path in folder.glob("*.json")])
  )
  _tell("A chat: /help tells what it can do, Ctrl-C stops an answer, /bye or Ctrl-D ends it.")
  interrupts = 0
  try:
    while interrupts < 2:
      answering = False
      try:
        loop.run(shown())
        text = source.read()
        interrupts, answering = 0, True
        _answer(loop, session, commands, text)
      except KeyboardInterrupt as error:
        interrupts += 2 if error.args else 1
        _tell("\n(stopped)" if answering else "\n(Ctrl-C once more, Ctrl-D or /bye leaves)")
      except ExoError as error:
        _tell(f"exo: {error}")
  except (EOFError, Leave) as end:
    if isinstance(end, EOFError):
      _tell("")
  finally:
    source.close()
  return 0


def _answer(loop: _Loop, session: _Session, commands: ChatCommands, text: str) -> None:
  if not text.strip():
    return
  told = commands.run(text)
  if told is not None:
    _tell(escape(told))
    return
  loop.run(session.ask(text.removeprefix("/") if text.startswith("//") else text))


def _tell(text: str) -> None:
  print(text, file=sys.stderr)


class _Session:
  """A conversation with one node."""
  def __init__(self, config: Config, model: str | None, max_tokens: int | None) -> None:
    self.talk = Conversation(model, config.system_prompt)
    if config.default_temp is not None:  # also at a node that was started without it
      self.talk.settings["temperature"] = config.default_temp
    if max_tokens is not None:
      self.talk.settings["max_tokens"] = max_tokens
    self._hinted = False
    self._context = node_client(config, model)

  async def open(self, may_be_a_prompt: bool) -> None:
    """Raises `ModelNotFoundError` for a model that nobody knows."""
    self._api = await self._context.__aenter__()
    if self.talk.model is not None:
      try:
        await self.find_model(self.talk.model)
      except ExoError as error:
        if not may_be_a_prompt:
          raise
        raise ExoError(f'{error} (for a prompt of one word: exo run --prompt "{self.talk.model}")') from error

  async def find_model(self, name: str) -> str:
    """The model's id. Raises `ExoError` with the nearest names."""
    return str((await self._api.get(f"/v1/models/{quote(name)}"))["id"])

  async def close(self) -> None:
    await self._context.__aexit__(None, None, None)

  async def ask(self, question: str) -> None:
    """Print the answer as it comes. Cancelling it stops the generation and keeps what was said."""
    messages = self.talk.messages
    messages.append({"role": "user", "content": question})
    said: list[str] = []
    first, tokens, circles = 0.0, 0, False
    progress = LoadProgress(self._api)
    watching = asyncio.create_task(progress.run(), name="progress")
    try:
      async with aclosing(self._api.chat(self.talk.model, self.talk.whole, self.talk.settings)) as deltas:
        async for delta in deltas:
          if delta.text and not first:
            first = time.monotonic()
            await _end(watching)
          progress.heard(delta)
          tokens = delta.usage["completion_tokens"] if delta.usage else tokens + bool(delta.text)
          said.append(delta.text)
          # a model may have been taught to drive a terminal
          sys.stdout.write(escape(delta.text) if sys.stdout.isatty() else delta.text)
          sys.stdout.flush()
          await taken()
          circles = circles or delta.stop_reason == STOP_REASON
    finally:
      await _end(watching)
      if any(said):
        messages.append({"role": "assistant", "content": "".join(said)})
      else:
        messages.pop()
    sys.stdout.write("\n")
    sys.stdout.flush()
    await taken()
    if circles:
      print(
          "stopped: the model says the same over and over (--max-tokens N or --no-repetition-guard lets it go on)",
          file=sys.stderr
      )
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
      try:
        time.sleep(0.2)  # let it tell the ring
      except KeyboardInterrupt:
        raise KeyboardInterrupt("twice") from None
      raise

  def __exit__(self, *_: object) -> None:
    self._loop.call_soon_threadsafe(self._loop.stop)
    self._thread.join(5)
    self._loop.close()
