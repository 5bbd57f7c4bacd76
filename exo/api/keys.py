"""Who may use the API: one key given by hand, and named ones of which only hashes are stored."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from exo.errors import ConfigError
from exo.log import say
from exo.private_files import write_private

GIVEN = "--api-key"
Role = Literal["admin", "user"]
ROLES: tuple[Role, ...] = get_args(Role)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MIN_CHARACTERS, MAX_CHARACTERS = 16, 1024
STRONG_CHARACTERS = 32
_MAX_KEYS = 1000
_MAX_FILE_BYTES = 1 << 20
_LOOK_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class ApiKey:
  """A key as it is stored. `sha256` suffices: keys are 256 random bits, which nobody guesses. `created` is Unix time.

  A `user` asks models; an `admin` may do whatever changes the node for others, too.
  """
  name: str
  sha256: str
  created: int
  role: Role = "admin"


def _digest(text: str) -> str:
  return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def check_given(text: str | None) -> None:
  """Raises `ConfigError` for a key given by hand that others could guess, or that no header can carry."""
  if text is None:
    return
  key, advice = text.strip(), "`exo key api new NAME` makes a key"
  if not (key.isascii() and key.isprintable()):
    raise ConfigError(
        f"--api-key (EXO_API_KEY) must be printable ASCII characters, since it travels in a header: {advice}"
    )
  if not MIN_CHARACTERS <= len(key) <= MAX_CHARACTERS:
    raise ConfigError(
        f"--api-key (EXO_API_KEY) has {len(key)} characters, from {MIN_CHARACTERS} to {MAX_CHARACTERS} are needed so that "
        f"nobody guesses it: {advice}; give it to the clients, and leave --api-key and EXO_API_KEY out"
    )


class ApiKeyStore:
  """The named keys of this EXO_HOME, in a file with mode 0600."""
  def __init__(self, state_dir: Path) -> None:
    self.path = state_dir / "api_keys.json"

  def stored(self) -> list[ApiKey]:
    """Raises `ConfigError` for a file that is damaged: an API that forgets its keys would stand open."""
    try:
      with self.path.open("rb") as file:
        keys = [ApiKey(**entry) for entry in json.loads(file.read(_MAX_FILE_BYTES))["keys"]]
      if not all(
          _NAME.fullmatch(key.name) and re.fullmatch(r"[0-9a-f]{64}", key.sha256) and key.role in ROLES for key in keys
      ):
        raise ValueError("an entry is not a key")
    except FileNotFoundError:
      return []
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
      raise ConfigError(f"the API keys in {self.path} cannot be read ({error}): repair or delete the file") from error
    return keys

  def add(self, name: str, role: Role = "admin") -> str:
    """A new key of this name, which is shown once and never stored. Raises `ConfigError`."""
    keys = self.stored()
    if not _NAME.fullmatch(name):
      raise ConfigError(f"an API key's name is up to 64 letters, digits, '-', '_' and '.', not {name!r}")
    if any(key.name == name for key in keys):
      raise ConfigError(f"there is an API key named {name} already: remove it first, or choose another name")
    if len(keys) >= _MAX_KEYS:
      raise ConfigError(f"there are {len(keys)} API keys already")
    text = f"exo-{secrets.token_urlsafe(32)}"
    self._write([*keys, ApiKey(name, _digest(text), int(time.time()), role)])
    return text

  def remove(self, name: str) -> None:
    """Raises `ConfigError` when there is none of this name."""
    keys = self.stored()
    if not any(key.name == name for key in keys):
      raise ConfigError(f"there is no API key named {name}: `exo key api ls` lists them")
    self._write([key for key in keys if key.name != name])

  def _write(self, keys: list[ApiKey]) -> None:
    write_private(self.path, json.dumps({"keys": [asdict(key) for key in keys]}, indent=1))


class ApiKeys:
  """The keys that a running node accepts. Stored ones that are added or removed count within a second.

  A node that has asked for keys goes on asking, also when the last one is removed, until it is started again.
  """
  def __init__(self, given: str | None, store: ApiKeyStore) -> None:
    self._store = store
    self._given = [] if given is None else [ApiKey(GIVEN, _digest(given.strip()), 0)]
    self._guessable = given is not None and len(given.strip()) < STRONG_CHARACTERS
    self._stored = store.stored()
    self._stamp, self._looked_at = self._stamp_now(), time.monotonic()
    self._told = ""
    self._required = bool(self._given or self._stored)

  @property
  def required(self) -> bool:
    self._look()
    return self._required

  def is_guessable(self, key: ApiKey) -> bool:
    """Made up by a person, and short; what `exo key api new` makes never is."""
    return self._guessable and key in self._given

  def find(self, text: str) -> ApiKey | None:
    """The key that `text` is, in a time that tells nothing of the keys; None for no key."""
    self._look()
    digest, found = _digest(text), None
    for key in (*self._given, *self._stored):
      if hmac.compare_digest(digest, key.sha256):
        found = key
    return found

  def _stamp_now(self) -> tuple[int, int] | None:
    try:
      status = self._store.path.stat()
    except OSError:
      return None
    return status.st_mtime_ns, status.st_ino

  def _look(self) -> None:
    now = time.monotonic()
    if now - self._looked_at < _LOOK_EVERY_S:
      return
    self._looked_at, stamp = now, self._stamp_now()
    if stamp == self._stamp:
      return
    try:
      self._stored = self._store.stored()
    except ConfigError as error:
      if str(error) != self._told:
        self._told = str(error)
        say(f"kept the API keys of before: {error}")
      return
    self._stamp, self._told = stamp, ""
    self._required = self._required or bool(self._stored)
