"""Words of a request that mean tokens: which are favoured or banned (`logit_bias`), and which break a repetition (DRY)."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence

from exo.errors import InvalidRequestError
from exo.inference.tokenizer import Tokenizer

MAX_BIASES = 1024
MAX_BREAKERS = 16
MAX_BREAKER_CHARS = 32
DEFAULT_BREAKERS = ("\n", ":", '"', "*")  # llama.cpp's
_MAX_BIAS_CHARS = 256
_BANNED = -100.0

Bias = Mapping[str, float | bool] | Sequence[tuple[int | str, float | bool]]


def biases(bias: Bias | None, tokenizer: Tokenizer, n_words: int) -> dict[int, float]:
  """`logit_bias` by token id. A number is an id, another text a token; in a list of pairs it may be several, each of which
  counts, also where it stands in other words. False bans. Blocks for as long as the tokenizer takes.

  Raises `InvalidRequestError` that names the bad key or value.
  """
  if not bias:
    return {}
  pairs = list(bias.items()) if isinstance(bias, Mapping) else list(bias)
  if len(pairs) > MAX_BIASES:
    raise InvalidRequestError(f"logit_bias has {len(pairs)} entries, {MAX_BIASES} are allowed", "logit_bias")
  out: dict[int, float] = {}
  for key, value in pairs:
    if value is True or not -100 <= value <= 100:
      raise InvalidRequestError(f"logit_bias: {value} for token {str(key)[:40]} is not from -100 to 100", "logit_bias")
    for token_id in _tokens(key, tokenizer, n_words, 1 if isinstance(bias, Mapping) else _MAX_BIAS_CHARS):
      out[token_id] = _BANNED if value is False else value
  return out


def _tokens(key: int | str, tokenizer: Tokenizer, n_words: int, most: int) -> list[int]:
  text = str(key)
  if isinstance(key, int) or text.removeprefix("-").isdecimal():
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) < n_words):
      raise InvalidRequestError(
          f"logit_bias: {text[:40]!r} is no token id of this model (0 to {n_words - 1})", "logit_bias"
      )
    return [int(text)]
  ids = tokenizer.encode(text) if len(text) <= _MAX_BIAS_CHARS else []
  if not 1 <= len(ids) <= most or max(ids) >= n_words:
    several = f", but of {len(ids)}: [[text, bias], …] takes such a text" if len(ids) > 1 else ""
    raise InvalidRequestError(
        f"logit_bias: {text[:40]!r} is neither a token id of this model (0 to {n_words - 1}) nor the text of one{several}",
        "logit_bias"
    )
  return ids


_lock = threading.Lock()
_known: weakref.WeakKeyDictionary[object, dict[str, tuple[int, ...]]] = weakref.WeakKeyDictionary()


def breakers(texts: Sequence[str] | None, tokenizer: Tokenizer) -> tuple[int, ...]:
  """The tokens in which one of the texts stands. Looks through the vocabulary once for each text: blocks, 0.2 s at worst.

  Raises `InvalidRequestError` for too many or too long ones.
  """
  texts = DEFAULT_BREAKERS if texts is None else texts
  if len(texts) > MAX_BREAKERS or any(not 1 <= len(text) <= MAX_BREAKER_CHARS for text in texts):
    raise InvalidRequestError(
        f"dry_sequence_breakers takes up to {MAX_BREAKERS} texts of 1 to {MAX_BREAKER_CHARS} characters",
        "dry_sequence_breakers"
    )
  with _lock:
    known = _known.setdefault(tokenizer.vocabulary, {})
    for text in texts:
      if text not in known:
        if len(known) > 4 * MAX_BREAKERS:
          known.clear()
        wanted = text.encode("utf-8", "replace")
        known[text] = tuple(i for i in range(tokenizer.vocab_size) if wanted in tokenizer.token_bytes(i))
    return tuple(sorted({i for text in texts for i in known[text]}))
