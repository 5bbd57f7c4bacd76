"""One string that lets a machine join: addresses of a running node and the cluster's key."""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass, field

import msgspec

from exo.errors import ConfigError
from exo.networking.cluster_key import check_key_text
from exo.networking.seeds import parse_seed

_PREFIX = "exo1."
_MAX_CHARACTERS = 16384
_CHECK_BYTES = 4
_WRONG = "this is not a join token: copy the whole line that `exo key token` prints on a machine of the ring"


@dataclass(frozen=True)
class JoinToken:
  """`addresses` are "host:port", best first."""
  addresses: tuple[str, ...]
  key: str = field(repr=False)


class _Body(msgspec.Struct):
  a: list[str]
  k: str


def encode_token(token: JoinToken) -> str:
  body = msgspec.json.encode(_Body(list(token.addresses), token.key))
  return _PREFIX + base64.urlsafe_b64encode(_check(body) + body).decode().rstrip("=")


def decode_token(text: str) -> JoinToken:
  """Raises `ConfigError`, also for a token that was cut off or mistyped."""
  text = text.strip()
  if not text.startswith(_PREFIX) or len(text) > _MAX_CHARACTERS:
    raise ConfigError(_WRONG)
  packed = text.removeprefix(_PREFIX)
  try:
    data = base64.b64decode(packed + "=" * (-len(packed) % 4), altchars=b"-_", validate=True)
    if _check(data[_CHECK_BYTES:]) != data[:_CHECK_BYTES]:
      raise ConfigError(_WRONG)
    body = msgspec.json.decode(data[_CHECK_BYTES:], type=_Body)
  except (binascii.Error, ValueError, msgspec.MsgspecError, RecursionError) as error:
    raise ConfigError(_WRONG) from error
  for address in body.a:
    parse_seed(address)
  return JoinToken(tuple(body.a[:16]), check_key_text(body.k, "the join token"))


def _check(body: bytes) -> bytes:
  return hashlib.sha256(body).digest()[:_CHECK_BYTES]
