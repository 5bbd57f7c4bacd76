"""Text to token ids and back: one class for every source of tokenizers, over the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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

  def render_chat(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None) -> str:
    """The prompt's text; models without a template get ChatML."""
    return render_chat(self.chat_template or CHATML, messages, special_tokens=self.special_tokens, tools=tools)

  def encode_chat(self,
                  messages: Sequence[Mapping[str, Any]],
                  tools: Sequence[Mapping[str, Any]] | None = None) -> list[int]:
    """Token ids of the rendered prompt; the beginning-of-text token is not doubled where the template writes it."""
    return self.encode(self.render_chat(messages, tools), add_bos=True)

  def token_text(self, token_id: int) -> str:
    """One token alone, as log probabilities show it (bytes of a cut character become U+FFFD)."""
    return self.decode([token_id], skip_special=False)

  def detokenizer(self) -> Detokenizer:
    return Detokenizer(self)


class Detokenizer:
  """Turns a stream of token ids into a stream of text without ever splitting a character."""
  def __init__(self, tokenizer: Tokenizer) -> None:
    self._tokenizer = tokenizer
    self._stream = DecodeStream(skip_special_tokens=True)
    self._pending: list[int] = []

  def push(self, token_ids: Iterable[int]) -> str:
    """The text that these tokens complete; what is cut in mid-character waits for the next call."""
    parts = []
    for token_id in token_ids:
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
