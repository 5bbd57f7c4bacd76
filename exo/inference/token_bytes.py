"""What each token of a vocabulary adds to a text, as bytes: what the library's decoders do, one token at a time."""

from __future__ import annotations

import json
from typing import Any

import tokenizers

# GPT-2's printable character for each byte: printable bytes stand for themselves, the others for U+0100 and on
_PRINTABLE = [*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100)]
_CHARACTER_OF = {byte: chr(byte)
                 for byte in _PRINTABLE} | {
                     byte: chr(0x100 + i)
                     for i, byte in enumerate(byte for byte in range(256) if byte not in _PRINTABLE)
                 }
_BYTE_OF = {character: byte for byte, character in _CHARACTER_OF.items()}
_BYTE_TOKENS = {f"<0x{byte:{form}}>": bytes([byte]) for byte in range(256) for form in ("02X", "02x")}
_SPACE = "\u2581"  # SentencePiece's


class TokenBytes:
  """By token id; empty for ids that there are not.

  `exact`: a text is the bytes of its tokens, joined, but for up to `stripped_spaces` at its beginning. Otherwise the
  bytes are those of each token's text alone. Found when they are asked for, since vocabularies are large.
  """
  def __init__(self, backend: tokenizers.Tokenizer) -> None:
    self._backend = backend
    self._byte_level, self.exact, self.stripped_spaces = _kind(backend)
    self._added = {i: token.content for i, token in backend.get_added_tokens_decoder().items()}
    self._known: dict[int, bytes] = {}

  def __getitem__(self, token_id: int) -> bytes:
    data = self._known.get(token_id)
    if data is None:
      data = self._known[token_id] = self._find(token_id)
    return data

  def piece_of(self, byte: int) -> str:
    """How the vocabulary writes an ASCII character."""
    return _CHARACTER_OF[byte] if self._byte_level else chr(byte)

  def _find(self, token_id: int) -> bytes:
    try:
      piece = self._backend.id_to_token(token_id)
    except OverflowError:  # negative, or wider than the library's ids
      return b""
    if piece is None:
      return b""
    if not self.exact:
      alone: str = self._backend.decode([token_id], skip_special_tokens=False)
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
  """(tokens are written in GPT-2's characters, `exact`, `stripped_spaces`) of a tokenizer's decoder."""
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
