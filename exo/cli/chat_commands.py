"""What begins with / in a chat: `/help`, `/save` and their like."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from exo.cli.conversation import SETTINGS, Conversation, read_conversation
from exo.cli.parser import nearest
from exo.errors import ConfigError

HELP = {
    "/help": "this",
    "/bye": "end, as Ctrl-D does",
    "/clear": "forget what was said; the system prompt and settings stay",
    "/system [TEXT]": "show or set the system prompt; none takes it away",
    "/model [NAME]": "show or change the model (exo models lists them)",
    "/set [NAME VALUE]": f"show or change {', '.join(SETTINGS)}; the value none takes it back",
    "/save NAME": "keep this chat, under a name or as FILE.json",
    "/load [NAME]": "go on with one that was kept; alone: those there are",
    '"""': "before and after a text of several lines; or a \\ at each line's end",
    "//TEXT": "a text that begins with /",
    "Ctrl-C": "stops an answer; twice leaves",
}
COMMANDS = tuple(name.split()[0] for name in HELP if re.match(r"/[a-z]", name))
_OWN = "the model's own"
_DEFAULT = "the node's default model"
_NAME = re.compile(r"[^/\\.\0][^/\\\0]{0,99}")


class Leave(Exception):
  """The chat is to end."""


@dataclass(frozen=True)
class ChatCommands:
  """Changes a conversation as lines say. `folder` is where chats are kept; `find_model` returns a model's id or raises `ExoError`."""
  talk: Conversation
  folder: Path
  find_model: Callable[[str], str]

  def run(self, line: str) -> str | None:
    """What is to be shown for a line that is a command; None for one that is a message.

    Raises `ExoError` for what cannot be done, `Leave` for the end.
    """
    word, _, rest = line.strip().partition(" ")
    if not re.fullmatch(r"/[a-zA-Z?]+", word):
      return None
    name, rest = word.lower(), rest.strip()
    actions: Mapping[str, Callable[[str], str]] = {
        "/help": self._help, "/?": self._help, "/bye": self._bye, "/exit": self._bye, "/quit": self._bye,
        "/clear": self._clear, "/system": self._system, "/model": self._model, "/set": self._set, "/save": self._save,
        "/load": self._load
    }  # yapf: disable
    if name not in actions:
      near = nearest(name, COMMANDS)
      hint = f"did you mean {near}?" if near else "/help shows those there are"
      raise ConfigError(f"there is no command {word}: {hint} (a text that begins with / is written with //)")
    return actions[name](rest)

  def _help(self, _: str) -> str:
    width = min(shutil.get_terminal_size().columns, 100)
    column = max(map(len, HELP)) + 2 if width >= 60 else 4
    lines = []
    for name, text in HELP.items():
      head = f"{name:<{column}}" if len(name) < column else f"{name}: "
      lines += textwrap.wrap(head + text, width - 1, subsequent_indent=" " * column, drop_whitespace=True)
    return "\n".join(lines)

  def _bye(self, _: str) -> str:
    raise Leave

  def _clear(self, _: str) -> str:
    self.talk.messages.clear()
    return "what was said is forgotten"

  def _system(self, text: str) -> str:
    if not text:
      return self.talk.system or "there is no system prompt"
    self.talk.system = None if text == "none" else text
    return "there is no system prompt now" if self.talk.system is None else "the system prompt is set"

  def _model(self, name: str) -> str:
    if not name:
      return self.talk.model or _DEFAULT
    self.talk.model = self.find_model(name)
    return f"{self.talk.model} answers from now on"

  def _set(self, text: str) -> str:
    name, _, value = text.replace("=", " ", 1).partition(" ")
    if not name:
      held = [f"{name} {value}" for name, value in self.talk.settings.items()]
      return "\n".join(held) or f"everything is the model's own; /set NAME VALUE changes {', '.join(SETTINGS)}"
    if not value.strip():
      raise ConfigError(f"/set {name} needs a value, or none for the model's own")
    self.talk.set(name, value.strip())
    return f"{name} is {self.talk.settings.get(name, _OWN)}"

  def _save(self, name: str) -> str:
    if not name:
      raise ConfigError("/save needs a name, or a file as notes/chat.json")
    path = self._path(name)
    if path.exists() and path != self.talk.file:
      raise ConfigError(f"there is a chat {name} already: choose another name, or delete {path}")
    self.talk.save(path)
    self.talk.file = path
    return f"kept in {path}"

  def _load(self, name: str) -> str:
    if not name:
      kept = sorted(path.stem for path in self.folder.glob("*.json"))
      return "\n".join(kept) or "no chat is kept yet: /save NAME keeps this one"
    path = self._path(name)
    if not path.exists():
      near = nearest(name, [path.stem for path in self.folder.glob("*.json")])
      raise ConfigError(f"there is no chat {name}: " + (f"did you mean {near}?" if near else "/load alone lists them"))
    found = read_conversation(path)
    if found.model is not None:
      found = replace(found, model=self.find_model(found.model))
    self.talk.take(replace(found, file=path))
    return f"{name}: {len(found.messages)} messages, {found.model or _DEFAULT}"

  def _path(self, name: str) -> Path:
    """Of a name, in the folder of chats; of what looks like a file, that file."""
    try:
      if name.endswith(".json") or "/" in name:
        return Path(name).expanduser().absolute()
    except (RuntimeError, OSError) as error:
      raise ConfigError(f"{name} cannot be found ({error})") from error
    if not _NAME.fullmatch(name):
      raise ConfigError(f"{name!r} cannot be a chat's name")
    return self.folder / f"{name}.json"


def completions(line: str, kept: Callable[[], list[str]]) -> list[str]:
  """What may come in place of the last word of a line; `kept` are the names of chats."""
  words = line.split(" ")
  if len(words) == 1:
    found = [name for name in COMMANDS if line.startswith("/")]
  elif len(words) == 2 and words[0] == "/set":
    found = list(SETTINGS)
  elif len(words) == 2 and words[0] in ("/load", "/save"):
    found = kept()
  else:
    found = []
  return [name for name in found if name.startswith(words[-1])]
