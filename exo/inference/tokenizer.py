"""Text to token ids and back: one class for every source of tokenizers, over the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import tokenizers
from tokenizers.decoders import DecodeStream

from exo.inference.chat_template import CHATML, render_chat


@dataclass(frozen=True)
class Tokenizer:
  """`eos_ids` end a generation. `special_tokens` are the template's variables, such as `bos_token`."""
  backend: tokenizers.Tokenizer
  eos_ids: frozenset[int]
  bos_id: int | None = None
  add_bos: bool = False
  chat_template: str | None = None
  special_tokens: Mapping[str, str] = field(default_factory=dict)

  @property
  def vocab_size(self) -> int:
    return int(self.backend.get_vocab_size(with_added_tokens=True))

  def encode(self, text: str, *, add_bos: bool = False) -> list[int]:
    """Token ids of `text`, in which the names of special tokens become those tokens."""
    ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
    if add_bos and self.add_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
      return [self.bos_id, *ids]
    return ids

  def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
    return str(self.backend.decode(list(ids), skip_special_tokens=skip_special))

  def render_chat(
      self,
      messages: Sequence[Mapping[str, Any]],
      tools: Sequence[Mapping[str, Any]] | None = None,
      extra: Mapping[str, Any] | None = None
  ) -> str:
    """The prompt's text; models without a template get ChatML. `extra` are further variables of the template."""
    return render_chat(
        self.chat_template or CHATML, messages, special_tokens=self.special_tokens, tools=tools, extra=extra
    )

  def encode_chat(self,
                  messages: Sequence[Mapping[str, Any]],
                  tools: Sequence[Mapping[str, Any]] | None = None) -> list[int]:
    """Token ids of the rendered prompt; the beginning-of-text token is not doubled where the template writes it."""
    return self.encode(self.render_chat(messages, tools), add_bos=True)

  def token_text(self, token_id: int) -> str:
    """One token alone, as log probabilities show it (bytes of a cut character become U+FFFD)."""
    return self.decode([token_id], skip_special=False)

  def token_bytes(self, token_id: int) -> bytes:
    """What the token adds to a text, also where that is a part of a character. Special tokens give their names."""
    added = self._added.get(token_id)
    if added is not None:
      return added.encode()
    piece = self.backend.id_to_token(token_id)
    if piece is None:
      return b""
    if self._byte_level:
      return b"".join(bytes([b]) if (b := _BYTE_OF.get(c)) is not None else c.encode() for c in piece)
    if self._byte_fallback and len(piece) == 6 and piece.startswith("<0x"):
      return bytes([int(piece[3:5], 16)])
    return piece.replace("▁", " ").encode() if self._byte_fallback else self.token_text(token_id).encode()

  def byte_token(self, byte: int) -> int | None:
    """The token of this ASCII character alone, if there is one."""
    token_id: int | None = self.backend.token_to_id(_CHARACTER_OF[byte] if self._byte_level else chr(byte))
    return token_id

  def special_id(self, text: str) -> int | None:
    """The id of a token with this name that the plain text of a prompt or an answer does not show."""
    token_id: int | None = self.backend.token_to_id(text)
    return token_id if token_id in self._special else None

  def is_special(self, token_id: int) -> bool:
    """Whether plain text leaves this token out."""
    return token_id in self._special

  @cached_property
  def _special(self) -> frozenset[int]:
    return frozenset(i for i, token in self.backend.get_added_tokens_decoder().items() if token.special)

  @cached_property
  def _added(self) -> dict[int, str]:
    return {i: token.content for i, token in self.backend.get_added_tokens_decoder().items()}

  @cached_property
  def _byte_level(self) -> bool:
    return b"ByteLevel" in self.backend.decoder.__getstate__() if self.backend.decoder else False

  @cached_property
  def _byte_fallback(self) -> bool:
    return b"ByteFallback" in self.backend.decoder.__getstate__() if self.backend.decoder else False

  def detokenizer(self, after: Sequence[int] = (), visible: Iterable[int] = ()) -> Detokenizer:
    return Detokenizer(self, after, frozenset(visible))


# GPT-2's printable character for each byte: printable bytes stand for themselves, the others for U+0100 and on
_PRINTABLE = [*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100)]
_CHARACTER_OF = {byte: chr(byte)
                 for byte in _PRINTABLE} | {
                     byte: chr(0x100 + i)
                     for i, byte in enumerate(byte for byte in range(256) if byte not in _PRINTABLE)
                 }
_BYTE_OF = {character: byte for byte, character in _CHARACTER_OF.items()}


class Detokenizer:
  """Turns a stream of token ids into a stream of text without ever splitting a character.

  `after` are the tokens that the text continues: with them the first word keeps a space before it. Special tokens are
  left out but for those in `visible`, which show their names.
  """
  def __init__(self, tokenizer: Tokenizer, after: Sequence[int] = (), visible: frozenset[int] = frozenset()) -> None:
    self._tokenizer, self._visible = tokenizer, visible
    self._stream = DecodeStream(list(after[-8:]), skip_special_tokens=True)
    self._pending: list[int] = []

  def push(self, token_ids: Iterable[int]) -> str:
    """The text that these tokens complete; what is cut in mid-character waits for the next call."""
    parts = []
    for token_id in token_ids:
      if token_id in self._visible:
        parts.append(self.finish() + self._tokenizer.token_text(token_id))
        self._stream = DecodeStream(skip_special_tokens=True)
        continue
      self._pending.append(token_id)
      text = self._stream.step(self._tokenizer.backend, token_id)
      if text is not None:
        self._pending.clear()
        parts.append(text)
    return "".join(parts)

  def finish(self) -> str:
    """What is still waiting, with U+FFFD for bytes that no character completes; once, at the end."""
    rest = self._tokenizer.decode(self._pending) if self._pending else ""
    self._pending.clear()
    return rest
