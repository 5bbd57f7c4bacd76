"""The vocabulary of a tokenizer of the `tokenizers` library. What its decoders do is done here one token at a time, in bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import tokenizers

from exo.inference.vocabulary import Vocabulary

_ID_LIMIT = 2**32  # the library's ids are 32 bits wide

# GPT-2's printable character for each byte: printable bytes stand for themselves, the others for U+0100 and on
_PRINTABLE = [*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {chr(0x100 + i): byte for i, byte in enumerate(_OTHERS)}
_BYTE_TOKENS = {f"<0x{byte:{form}}>": bytes([byte]) for byte in range(256) for form in ("02X", "02x")}
_SPACE = "\u2581"  # SentencePiece's


class BackendVocabulary(Vocabulary):
  """A tokenizer of the `tokenizers` library. Bytes are found when they are asked for, since vocabularies are large."""
  def __init__(self, backend: tokenizers.Tokenizer) -> None:
    self.backend = backend
    self._byte_level, self.joins_bytes, self.stripped_spaces = _kind(backend)
    added = backend.get_added_tokens_decoder()
    self._added = {i: token.content for i, token in added.items()}
    self.special = frozenset(i for i, token in added.items() if token.special)
    self._known: dict[int, bytes] = {}

  @property
  def size(self) -> int:
    return int(self.backend.get_vocab_size(with_added_tokens=True))

  def ids(self, text: str) -> list[int]:
    # only the library's form for several texts gives the interpreter free
    ids: list[int] = self.backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
    return ids

  def text(self, ids: Sequence[int]) -> str:
    if self.joins_bytes:
      return super().text(ids)
    return str(self.backend.decode([i for i in ids if 0 <= i < _ID_LIMIT], skip_special_tokens=False))

  def id_of(self, name: str) -> int | None:
    token_id: int | None = self.backend.token_to_id(name)
    return token_id

  def token_bytes(self, token_id: int) -> bytes:
    data = self._known.get(token_id)
    if data is None:
      data = self._known[token_id] = self._find(token_id)
    return data

  def _find(self, token_id: int) -> bytes:
    try:
      piece = self.backend.id_to_token(token_id)
    except OverflowError:  # negative, or wider than the library's ids
      return b""
    if piece is None:
      return b""
    if not self.joins_bytes:
      alone: str = self.backend.decode([token_id], skip_special_tokens=False)
      return alone.encode()
    if not self._byte_level:
      return _BYTE_TOKENS.get(piece) or piece.replace(_SPACE, " ").encode()
    if any(character not in _BYTE_OF for character in piece):
      return piece.encode("utf-8", "replace")
    data = bytes(_BYTE_OF[character] for character in piece)
    return self._added[token_id].encode() if token_id in self._added and not _is_text(data) else data


def _is_text(data: bytes) -> bool:
  try:
    data.decode()
  except UnicodeDecodeError:
    return False
  return True


def _kind(backend: tokenizers.Tokenizer) -> tuple[bool, bool, int]:
  """(tokens are written in GPT-2's characters, `joins_bytes`, `stripped_spaces`) of a tokenizer's decoder."""
  decoder: dict[str, Any] = json.loads(backend.decoder.__getstate__()) if backend.decoder else {}
  steps = decoder["decoders"] if decoder.get("type") == "Sequence" else [decoder]
  kinds = [step.get("type") for step in steps]
  if kinds == ["ByteLevel"]:
    return True, True, 0
  if kinds[:3] == ["Replace", "ByteFallback", "Fuse"] and kinds[3:] in ([], ["Strip"]):
    replaced = steps[0]
    strip: dict[str, Any] = steps[3] if len(steps) > 3 else {"content": " ", "start": 0, "stop": 0}
    spaces = replaced.get("pattern") == {"String": _SPACE} and replaced.get("content") == " "
    if spaces and strip["content"] == " " and not strip["stop"]:
      return False, True, int(strip["start"])
  return "ByteLevel" in kinds, False, 0
