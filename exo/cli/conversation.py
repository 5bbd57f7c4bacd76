"""A conversation as `exo run` holds it: what was said, how it is to be answered, and its file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from exo.api.schema import SamplingFields
from exo.errors import ConfigError
from exo.private_files import write_private

SETTINGS = (
    "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty", "seed",
    "max_tokens", "stop"
)
_LARGEST = 64 * 2**20  # bytes of a file


class _Message(msgspec.Struct, forbid_unknown_fields=False):
  role: str
  content: str


class _File(msgspec.Struct):
  """What is kept of a conversation, with messages as OpenAI's API has them."""
  messages: list[_Message]
  model: str | None = None
  settings: dict[str, Any] = {}


@dataclass
class Conversation:
  """`model` None is the node's default; `settings` are fields of a request; `file` is where it is kept."""
  model: str | None = None
  system: str | None = None
  messages: list[dict[str, str]] = field(default_factory=list)
  settings: dict[str, Any] = field(default_factory=dict)
  file: Path | None = None

  def take(self, other: Conversation) -> None:
    """Become another one."""
    self.model, self.system, self.file = other.model, other.system, other.file
    self.messages, self.settings = list(other.messages), dict(other.settings)

  @property
  def whole(self) -> list[dict[str, str]]:
    """The messages with the system prompt."""
    return [*([] if self.system is None else [{"role": "system", "content": self.system}]), *self.messages]

  def set(self, name: str, text: str) -> None:
    """Change a setting. Raises `ConfigError` for one that there is not, or a value that cannot be."""
    if name not in SETTINGS:
      raise ConfigError(f"{name} cannot be set: choose from {', '.join(SETTINGS)}")
    if text == "none":
      self.settings.pop(name, None)
    else:
      self.settings |= checked({name: _value(name, text)})

  def save(self, path: Path) -> None:
    """Write it for this user alone. Raises `ConfigError`."""
    kept = {"model": self.model, "messages": self.whole, "settings": self.settings}
    try:
      write_private(path, json.dumps(kept, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
      raise ConfigError(f"{path} cannot be written ({error.strerror})") from error


def checked(settings: dict[str, Any]) -> dict[str, Any]:
  """Settings that a request may have. Raises `ConfigError`."""
  try:
    msgspec.convert(settings, SamplingFields)
  except msgspec.ValidationError as error:
    what, _, where = str(error).partition(" - at `$.")
    words = what.replace("`", "")
    raise ConfigError(f"{where.strip('`') or ', '.join(settings)}: {words[:1].lower()}{words[1:]}") from None
  return settings


def _value(name: str, text: str) -> Any:
  if name == "stop" and not text.startswith(('"', "[")):
    return text
  try:
    return json.loads(text)
  except ValueError:
    raise ConfigError(f"{name} takes a number, not {text!r}" if name != "stop" else f"{text} is no text") from None


def read_conversation(path: Path) -> Conversation:
  """One that `save` wrote. Raises `ConfigError`."""
  try:
    with path.open("rb") as file:
      kept = msgspec.json.decode(file.read(_LARGEST), type=_File)
  except OSError as error:
    raise ConfigError(f"{path} cannot be read ({error.strerror})") from error
  except (msgspec.MsgspecError, UnicodeDecodeError) as error:
    raise ConfigError(f"{path} holds no chat ({error})") from error
  messages = [{"role": message.role, "content": message.content} for message in kept.messages]
  system = None
  if messages and messages[0]["role"] == "system":
    system = messages.pop(0)["content"]
  settings = checked({name: value for name, value in kept.settings.items() if name in SETTINGS})
  return Conversation(kept.model, system, messages, settings)
