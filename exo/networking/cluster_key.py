"""The cluster key: one secret text that every node of a ring holds, and what is derived from it.

A text may be any 32 or more printable characters. It is stretched with scrypt, so that a passphrase costs a guesser
50 ms and 32 MB a try, then HKDF (RFC 5869) gives each use a key of its own. During a rotation two texts are valid: the
first is used, both are accepted.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from exo.config import Config
from exo.errors import ConfigError
from exo.log import say
from exo.private_files import write_private

MIN_CHARACTERS = 32
MAX_CHARACTERS = 4096
_MAX_KEYS = 2
_LOOK_EVERY_S = 1.0
_SALT = b"exo cluster key 1"
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 1 << 15, 8, 1


@dataclass(frozen=True)
class ClusterKey:
  """Keys for each use. `name` tells clusters apart and may be shown: nothing follows from it."""
  name: str
  datagram_mac: bytes = field(repr=False)
  datagram_cipher: bytes = field(repr=False)
  label_salt: bytes = field(repr=False)  # of the labels under which clients' requests wait
  authority_secret: int = field(repr=False)  # the private value of the cluster's certificate authority, on P-256


def new_key_text() -> str:
  """256 random bits as 43 characters."""
  while (text := secrets.token_urlsafe(32)).startswith("-"):  # which is taken for a flag after --cluster-key
    pass
  return text


def check_key_text(text: str, source: str) -> str:
  """`text` without surrounding space. Raises `ConfigError` that names `source` and never repeats the key."""
  text = text.strip()
  if not MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS or not text.isprintable():
    raise ConfigError(
        f"{source}: a cluster key is {MIN_CHARACTERS} or more printable characters on one line; this has {len(text)}. "
        "`exo key new` makes one"
    )
  return text


def parse_key_texts(text: str, source: str) -> tuple[str, ...]:
  """One key a line, at most two. Raises `ConfigError`."""
  lines = [line for line in text.splitlines() if line.strip()]
  if not 1 <= len(lines) <= _MAX_KEYS:
    raise ConfigError(f"{source}: one cluster key a line, two while they are changed over; this has {len(lines)}")
  return tuple(check_key_text(line, source) for line in lines)


@lru_cache(maxsize=8)
def derive(text: str) -> ClusterKey:
  """The keys of a text that `check_key_text` accepted; takes about 50 ms."""
  from cryptography.hazmat.primitives.hashes import SHA256
  from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
  from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
  master = Scrypt(salt=_SALT, length=32, n=_SCRYPT_N, r=_SCRYPT_R, p=_SCRYPT_P).derive(text.encode())

  def expand(use: bytes, length: int) -> bytes:
    return HKDFExpand(SHA256(), length, b"exo " + use).derive(master)

  order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256's group
  # 48 bytes, reduced: the bias is below 2^-128 (FIPS 186-5, A.2.1)
  authority = int.from_bytes(expand(b"authority", 48), "big") % (order - 1) + 1
  return ClusterKey(
      expand(b"name", 4).hex(), expand(b"datagram mac", 32), expand(b"datagram cipher", 32),
      expand(b"client labels", 32), authority
  )


class ClusterKeyring:
  """The keys in force. With `path`, the file is looked at again now and then, so that keys change without a restart."""
  def __init__(self, texts: tuple[str, ...], path: Path | None = None) -> None:
    self._path = path
    self._texts = texts
    self._looked_at = time.monotonic()
    self._stamp = _stamp(path)
    self._told = ""

  @property
  def texts(self) -> tuple[str, ...]:
    """The key texts, the one in use first."""
    self._look()
    return self._texts

  @property
  def accepted(self) -> tuple[ClusterKey, ...]:
    """All valid keys, the one in use first."""
    return tuple(derive(text) for text in self.texts)

  @property
  def current(self) -> ClusterKey:
    """The key that this node uses for what it sends."""
    return self.accepted[0]

  def _look(self) -> None:
    now = time.monotonic()
    if self._path is None or now - self._looked_at < _LOOK_EVERY_S:
      return
    self._looked_at = now
    stamp = _stamp(self._path)
    if stamp == self._stamp:
      return
    try:
      texts = read_key_file(self._path)
    except ConfigError as error:
      if str(error) != self._told:
        self._told = str(error)
        say(f"kept the cluster key of before: {error}")
      return
    self._stamp, self._told = stamp, ""
    if texts != self._texts:
      self._texts = texts
      say("cluster key: " + ", then ".join(derive(text).name for text in texts) + " from now on")


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
  try:
    status = path.stat() if path is not None else None
  except OSError:
    return None
  return None if status is None else (status.st_mtime_ns, status.st_size, status.st_ino)


def default_key_file(config: Config) -> Path:
  """Where `exo key new` writes and every node of this EXO_HOME looks."""
  return config.state_dir / "cluster.key"


def read_key_file(path: Path) -> tuple[str, ...]:
  """Raises `ConfigError` for a file that is not there, is too open, or holds no key."""
  try:
    mode = path.stat().st_mode
    with path.open("rb") as file:
      text = file.read(4 * MAX_CHARACTERS * _MAX_KEYS).decode()
  except (OSError, UnicodeDecodeError) as error:
    reason = error.strerror if isinstance(error, OSError) else "it is not text"
    raise ConfigError(f"the cluster key file {path} cannot be read: {reason}") from error
  if mode & 0o077:
    raise ConfigError(
        f"the cluster key file {path} can be read by other users: chmod 600 {path}, or where its file system keeps no "
        "permissions put it elsewhere and name it with --cluster-key-file"
    )
  return parse_key_texts(text, str(path))


def write_key_file(path: Path, texts: tuple[str, ...]) -> None:
  """With mode 0600, complete from the moment it has its name."""
  write_private(path, "".join(f"{text}\n" for text in texts))


def open_keyring(config: Config) -> ClusterKeyring | None:
  """The keys that the configuration names, else those of the default file; None where there is no key.

  Raises `ConfigError`.
  """
  if config.cluster_key is not None:
    return ClusterKeyring(parse_key_texts(config.cluster_key, "the cluster key"))
  path = config.cluster_key_file or default_key_file(config)
  if config.cluster_key_file is None and not path.exists():
    return None
  return ClusterKeyring(read_key_file(path), path)
