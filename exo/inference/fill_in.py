"""The tokens by which models that were trained for it fill the gap between two texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from exo.inference.plain_text import PlainText
from exo.inference.tokenizer import Tokenizer


@dataclass(frozen=True)
class FillIn:
  """One family's tokens. `suffix_first`: what follows the gap stands before what precedes it; a `middle` of "" is none.

  `file` stands before the name of each further file, `repo` before that of the repository, where a family knows them. `ends` are the
  names of tokens at which what fills the gap is over, beside those that end every text.
  """
  prefix: str
  suffix: str
  middle: str = ""
  suffix_first: bool = False
  repo: str = ""
  file: str = ""
  ends: tuple[str, ...] = ()

  @property
  def names(self) -> tuple[str, ...]:
    """Of all its tokens."""
    return tuple(filter(None, (*self.ends, self.prefix, self.suffix, self.middle, self.repo, self.file)))


# the first all of whose tokens a vocabulary has
_KNOWN = (
    # Qwen 2.5 and later, Granite 4
    FillIn(
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        repo="<|repo_name|>",
        file="<|file_sep|>",
        ends=("<|fim_pad|>", "<|endoftext|>", "<|cursor|>", "<|file_separator|>")
    ),
    # StarCoder 2, Granite, Stable Code, Refact
    FillIn(
        "<fim_prefix>",
        "<fim_suffix>",
        "<fim_middle>",
        repo="<repo_name>",
        file="<file_sep>",
        ends=("<fim_pad>", "<|endoftext|>")
    ),
    FillIn("<fim-prefix>", "<fim-suffix>", "<fim-middle>", ends=("<fim-pad>", "<|endoftext|>")),  # SantaCoder
    FillIn("▁<PRE>", "▁<SUF>", "▁<MID>", ends=("▁<EOT>", )),  # Code Llama
    FillIn("<PRE>", "<SUF>", "<MID>", ends=("<EOT>", )),
    FillIn("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", ends=("<|EOT|>", )),  # DeepSeek
    FillIn("<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>", suffix_first=True),  # Seed
    FillIn("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # GLM
    FillIn("[PREFIX]", "[SUFFIX]", suffix_first=True, ends=("[MIDDLE]", )),  # Mistral
)


@dataclass(frozen=True)
class GapFiller:
  """A model's way. Its prompts are made of token ids, so that what a client sends never becomes a mark of the gap."""
  tokenizer: Tokenizer
  form: FillIn

  @property
  def end_ids(self) -> frozenset[int]:
    """Tokens that end what fills a gap."""
    return frozenset(i for name in self.form.names if (i := self.tokenizer.id_of(name)) is not None)

  def prompt(self,
             before: str,
             after: str,
             files: Sequence[tuple[str, str]] = (),
             most: int | None = None) -> tuple[list[int], bool]:
    """(token ids, whether they are not all of it). `files` are others that the model may look at, each with its name. Blocks.

    Of what has more than `most` tokens that stays which is next to the gap: a quarter of them behind it, as far as there is so much,
    the others before it; of the files what is left, the last ones first.
    """
    form, bos = self.form, self.tokenizer.bos_id
    begin = [bos] if self.tokenizer.add_bos and bos is not None else []
    middle = [self._id(form.middle)] if form.middle else []
    head, tail, others = self.plain(before), self.plain(after), self._files(files)
    whole = len(head) + len(tail) + len(others)
    if most is not None:
      room = max(0, most - len(begin) - len(middle) - 2)
      behind = min(len(tail), max(room // 4, room - len(head)))
      tail = tail[:behind]
      head = head[max(0, len(head) - (room - behind)):]
      others = others[max(0, len(others) - (room - behind - len(head))):]
    is_cut = len(head) + len(tail) + len(others) < whole
    head, tail = [self._id(form.prefix), *head], [self._id(form.suffix), *tail]
    gap = [*tail, *head] if form.suffix_first else [*head, *tail]
    return [*begin, *others, *gap, *middle], is_cut

  def _files(self, files: Sequence[tuple[str, str]]) -> list[int]:
    ids: list[int] = []
    mark = self.tokenizer.id_of(self.form.file) if self.form.file else None
    repo = self.tokenizer.id_of(self.form.repo) if self.form.repo else None
    if files and mark is not None and repo is not None:
      ids += [repo, *self.plain("project\n")]
    for name, text in files:
      ids += self.plain(f"\n\n--- {name} ---\n\n{text}") if mark is None else [mark, *self.plain(f"{name}\n{text}\n")]
    if files and mark is not None:
      ids += [mark, *self.plain("file\n")]
    return ids

  def plain(self, text: str) -> list[int]:
    """A text's tokens, in which the names of the gap's marks and of special tokens are plain letters."""
    return [token_id for piece in self._plain_text.pieces(text) for token_id in self.tokenizer.encode(piece)]

  @cached_property
  def _plain_text(self) -> PlainText:
    return PlainText({*self.form.names, *self.tokenizer.special_names})

  def _id(self, name: str) -> int:
    found = self.tokenizer.id_of(name)
    assert found is not None
    return found


def fill_in_of(tokenizer: Tokenizer) -> GapFiller | None:
  """None for a model whose vocabulary has no such tokens."""
  for form in _KNOWN:
    names = [name for name in (form.prefix, form.suffix, form.middle) if name]
    if all(tokenizer.id_of(name) is not None for name in names):
      return GapFiller(tokenizer, form)
  return None
