"""Text to token ids and back: one class for every source of vocabularies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from exo.inference.chat_template import CHATML, render_chat
from exo.inference.detokenizer import Detokenizer
from exo.inference.plain_text import PlainText, split_at
from exo.inference.vocabulary import Vocabulary
from exo.inference.whole_characters import whole_characters

_SLICE = 64 * 1024  # characters that are tokenized in one go where a text may be too long


class TooManyTokensError(Exception):
  """A text has more tokens than were allowed: `count` of them, or at least as many where that is not `exact`."""
  def __init__(self, count: int, *, exact: bool) -> None:
    super().__init__(f"{'' if exact else 'at least '}{count} tokens")
    self.count, self.exact = count, exact


@dataclass(frozen=True)
class Tokenizer:
  """`eos_ids` end a generation. `special_tokens` are the template's variables, such as `bos_token`. `tool_template` stands in for the
  template where there are tools, if the model has one of its own for these. `response_template` says how its answers are to be
  read, as JSON in the form of transformers."""
  vocabulary: Vocabulary
  eos_ids: frozenset[int]
  bos_id: int | None = None
  add_bos: bool = False
  chat_template: str | None = None
  special_tokens: Mapping[str, str] = field(default_factory=dict)
  tool_template: str | None = None
  response_template: Any = None

  @property
  def vocab_size(self) -> int:
    return self.vocabulary.size

  def encode(self, text: str, *, add_bos: bool = False, mark: str = "") -> list[int]:
    """Token ids of `text`, in which the names of special tokens become those tokens. Blocks, and lets other threads run.

    What is before and behind a `mark` is tokenized apart: see `PlainText.marked`.
    """
    ids = [token_id for piece in split_at(text, mark) for token_id in self._ids(piece)]
    if add_bos and self.add_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
      return [self.bos_id, *ids]
    return ids

  def encode_within(self, text: str, most: int, *, add_bos: bool = False, mark: str = "") -> list[int]:
    """As `encode`, for a prompt of at most `most` tokens. Raises `TooManyTokensError` for others, found as early as may be.

    What has more bytes than `most` of the longest tokens is not tokenized at all, where tokens are bytes. Of what else is
    long, slices are counted first, until they have twice as many tokens as there may be, so that no text costs more time
    and memory than that.
    """
    size = len(whole_characters(text).encode())
    if self.joins_bytes and size > most * self.longest_token:
      raise TooManyTokensError(-(-size // self.longest_token), exact=False)
    if size > max(_SLICE, 2 * most):
      self._count_slices(text, 2 * most)
    ids = self.encode(text, add_bos=add_bos, mark=mark)
    if len(ids) > most:
      raise TooManyTokensError(len(ids), exact=True)
    return ids

  def _count_slices(self, text: str, enough: int) -> None:
    """Raises `TooManyTokensError` once slices of the text have more than `enough` tokens; a cut adds few."""
    count = start = 0
    while start < len(text):
      end = min(len(text), start + _SLICE)
      if end < len(text) and (space := text.rfind(" ", start + 1, end)) > 0:
        end = space
      count += len(self._ids(text[start:end]))
      start = end
      if count > enough:
        raise TooManyTokensError(count, exact=False)

  @cached_property
  def longest_token(self) -> int:
    """The bytes of the vocabulary's longest entry."""
    return max((len(self.token_bytes(i)) for i in range(self.vocab_size)), default=0) or 1

  def _ids(self, text: str) -> list[int]:
    return self.vocabulary.ids(whole_characters(text))

  def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
    """The text of `ids`; U+FFFD for bytes that are no characters, nothing for ids that there are not."""
    return self.vocabulary.text([i for i in ids if not (skip_special and i in self.vocabulary.special)])

  def render_chat(
      self,
      messages: Sequence[Mapping[str, Any]],
      tools: Sequence[Mapping[str, Any]] | None = None,
      extra: Mapping[str, Any] | None = None
  ) -> str:
    """The prompt's text; models without a template get ChatML. `extra` are further variables of the template."""
    source = self.template_for(tools=bool(tools)) or CHATML
    return render_chat(source, messages, special_tokens=self.special_tokens, tools=tools, extra=extra)

  def template_for(self, *, tools: bool) -> str | None:
    return self.tool_template if tools and self.tool_template is not None else self.chat_template

  def encode_chat(self,
                  messages: Sequence[Mapping[str, Any]],
                  tools: Sequence[Mapping[str, Any]] | None = None) -> list[int]:
    """Token ids of the rendered prompt; the beginning-of-text token is not doubled where the template writes it."""
    return self.encode(self.render_chat(messages, tools), add_bos=True)

  @property
  def end_id(self) -> int | None:
    """What ends an answer, for the most part."""
    named = self.special_names.get(self.special_tokens.get("eos_token", ""))
    return named if named is not None else min(self.eos_ids, default=None)

  def token_text(self, token_id: int) -> str:
    """One token alone, as log probabilities show it (bytes of a cut character become U+FFFD)."""
    return self.decode([token_id], skip_special=False)

  def token_bytes(self, token_id: int) -> bytes:
    """What the token adds to a text, also where that is a part of a character. Special tokens give their names."""
    return self.vocabulary.token_bytes(token_id)

  @property
  def joins_bytes(self) -> bool:
    """A text is the bytes of its tokens, joined; otherwise the vocabulary knows how words become a text."""
    return self.vocabulary.joins_bytes

  @property
  def stripped_spaces(self) -> int:
    """How many spaces at most a text loses at its beginning when tokens become text."""
    return self.vocabulary.stripped_spaces

  def id_of(self, text: str) -> int | None:
    """The id of the token that is written so, if there is one."""
    return self.vocabulary.id_of(text)

  def special_id(self, text: str) -> int | None:
    """The id of a token with this name that the plain text of a prompt or an answer does not show."""
    token_id = self.vocabulary.id_of(text)
    return token_id if token_id in self.vocabulary.special else None

  @cached_property
  def special_names(self) -> Mapping[str, int]:
    """The ids of all such tokens by their names."""
    names = {self.token_bytes(i).decode("utf-8", "replace"): i for i in sorted(self.vocabulary.special, reverse=True)}
    known = self.vocabulary.ids_of(name for name in names if name)
    return {name: i for name, i in names.items() if known.get(name) == i}

  @cached_property
  def plain_text(self) -> PlainText:
    """Texts in which the names of all such tokens are letters."""
    return PlainText(self.special_names)

  def is_special(self, token_id: int) -> bool:
    """Whether plain text leaves this token out."""
    return token_id in self.vocabulary.special

  def detokenizer(self, after: Sequence[int] = (), visible: Iterable[int] = (), *, echoed: bool = False) -> Detokenizer:
    """For a text that begins where the tokens `after` end; see `Detokenizer`."""
    return Detokenizer(self, after, frozenset(visible), echoed)
