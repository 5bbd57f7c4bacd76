"""What is kept for a client, and how a client is known to own it."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import zlib
from functools import lru_cache
from typing import Annotated, Literal

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec import Meta, Struct

from exo.errors import RecordDamagedError
from exo.networking.record_messages import MAX_RECORD_BYTES, MAX_RECORD_JSON

_ID = re.compile(r"(?:resp|conv)_[0-9a-f]{32}")
_SALT = b"exo kept records 1"
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 1 << 14, 8, 1
_NONCE_BYTES = 12
_Hex = Annotated[str, Meta(max_length=64)]
_Purpose = Literal["found", "change"]


def is_record_id(text: str) -> bool:
  """Of a response or a conversation; such an id is a file's name, too."""
  return _ID.fullmatch(text) is not None


class Record(Struct, frozen=True, kw_only=True):
  """`data` is packed JSON. Whoever can make the proof that `seal` is the hash of may have it. `tag` follows from the data and
  the owner's secret: nobody else can make a record that its owner takes for one of his, and each version has another one. `key`
  stays with the disk: with it a record is sealed on its way to its owner, whoever has asked for it.
  """
  id: Annotated[str, Meta(max_length=64)]
  seal: _Hex
  tag: _Hex
  key: Annotated[bytes, Meta(max_length=32)] = b""
  data: Annotated[bytes, Meta(max_length=MAX_RECORD_BYTES)]

  def to_bytes(self) -> bytes:
    return msgspec.msgpack.encode(self)

  def sealed(self) -> bytes:
    """As it travels."""
    return seal(self.key, "found", self.id, msgspec.structs.replace(self, key=b"").to_bytes())

  def opened(self, sealed: bytes) -> RecordChange:
    """What its owner wants of it. Raises `RecordDamagedError` for what somebody else does."""
    data = unseal(self.key, "change", self.id, sealed)
    try:
      return msgspec.msgpack.decode(data, type=RecordChange)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
      raise RecordDamagedError(f"a change of {self.id} cannot be read") from error

  def is_shown(self, proof: str) -> bool:
    """The proof is that of its owner."""
    return hmac.compare_digest(self.seal, hashlib.sha256(proof.encode("utf-8", "replace")).hexdigest())

  def json(self) -> bytes:
    """Raises `RecordDamagedError` for what was not packed by this program, or unpacks without end."""
    unpacking = zlib.decompressobj()
    try:
      out = unpacking.decompress(self.data, MAX_RECORD_JSON)
    except zlib.error as error:
      raise RecordDamagedError(f"what was kept of {self.id} is damaged") from error
    if not unpacking.eof:
      raise RecordDamagedError(f"what was kept of {self.id} is damaged or too large")
    return out


class RecordChange(Struct, frozen=True, kw_only=True):
  """Put `record` (as bytes) in the place of the version `tag`; empty: forget it."""
  tag: _Hex
  record: bytes = b""


def seal(key: bytes, purpose: _Purpose, record_id: str, data: bytes) -> bytes:
  nonce = os.urandom(_NONCE_BYTES)
  return nonce + AESGCM(key).encrypt(nonce, data, f"{purpose} {record_id}".encode())


def unseal(key: bytes, purpose: _Purpose, record_id: str, sealed: bytes) -> bytes:
  """Raises `RecordDamagedError` for what was sealed for another purpose or by somebody else."""
  try:
    return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], f"{purpose} {record_id}".encode())
  except (InvalidTag, ValueError) as error:
    raise RecordDamagedError(f"what came of {record_id} is none of its owner's") from error


def record_from(data: bytes) -> Record:
  """Raises `RecordDamagedError`."""
  try:
    record = msgspec.msgpack.decode(data, type=Record)
  except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
    raise RecordDamagedError("what was kept is damaged") from error
  if not is_record_id(record.id):
    raise RecordDamagedError("what was kept is damaged: it has no name")
  return record


class Owner:
  """Of records. `key` is the hash of an API key; "" stands for all clients where none is wanted."""
  def __init__(self, key: str) -> None:
    self.is_nobody = not key
    self._secret = _secret(key)
    self.folder = self._mac(b"folder")[:32]

  def _mac(self, text: bytes) -> str:
    return hmac.new(self._secret, text, hashlib.sha256).hexdigest()

  def proof(self, record_id: str) -> str:
    """Other nodes are shown this, from which neither the key follows nor the proof for another record."""
    return self._mac(b"proof " + record_id.encode())

  def key(self, record_id: str) -> bytes:
    """Under which the record travels."""
    return hmac.new(self._secret, b"key " + record_id.encode(), hashlib.sha256).digest()

  def seal(self, record_id: str, json: bytes) -> Record:
    """A record of his. It may be too large to be kept."""
    data = zlib.compress(json, 3)
    return Record(
        id=record_id,
        seal=hashlib.sha256(self.proof(record_id).encode()).hexdigest(),
        tag=self._tag(record_id, data),
        data=data,
        key=self.key(record_id)
    )

  def owns(self, record: Record) -> bool:
    """Nobody has made or changed it but for this owner."""
    return hmac.compare_digest(record.tag, self._tag(record.id, record.data))

  def _tag(self, record_id: str, data: bytes) -> str:
    return self._mac(b"data " + record_id.encode() + b" " + data)


@lru_cache(maxsize=1024)
def owner_of(key: str) -> Owner:
  """Takes some ten milliseconds for a key that is new: a key that a person has made up is not to be guessed from a proof."""
  return Owner(key)


def _secret(key: str) -> bytes:
  return hashlib.scrypt(key.encode(), salt=_SALT, n=_SCRYPT_N, r=_SCRYPT_R, p=_SCRYPT_P, maxmem=64 * 2**20, dklen=32)
