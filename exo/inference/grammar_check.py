"""What the library of grammars says of a grammar without a vocabulary. Runs in the grammars' process."""

from __future__ import annotations

import re
from typing import Any

from exo.errors import EngineUnavailableError, InvalidRequestError

_LISTING = re.compile(r"\n\s*\d+ \|")
_PLACE = re.compile(r"^at \d+\(\d+\): |failed to compile JSON schema: ")
_REGEX = re.compile(r"regex parse error:.*\nerror: ", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|.)", re.DOTALL)
_HEAD = re.compile(r"^%llguidance \{\}\s*", re.MULTILINE)

# (what is wrong with a grammar, "" for nothing; what of it the library passes over)
Finding = tuple[str, tuple[str, ...]]


def library() -> Any:
  try:
    import llguidance
  except ImportError as error:
    raise EngineUnavailableError(
        "structured output needs the package llguidance, which is not installed on the node that samples: pip install llguidance"
    ) from error
  return llguidance


def limits() -> Any:
  """The library's own bounds on states, items and fuel are what ends a pathological grammar."""
  return library().LLParserLimits(max_grammar_size=100_000, verbose_errors=False)


def reason(text: str) -> str:
  """The library's reason, without the listing of the grammar that it adds."""
  return " ".join(_PLACE.sub("", _LISTING.split(_REGEX.sub("", text), maxsplit=1)[0]).split())[:400]


def findings(grammars: list[str]) -> list[Finding]:
  """One for each grammar."""
  return [_finding(grammar) for grammar in grammars]


def _finding(grammar: str) -> Finding:
  failed, said = library().LLMatcher.validate_grammar_with_warnings(grammar, limits=limits())
  told = [reason(text) for text in said]
  return (told[0] if told else "it cannot be used", ()) if failed else ("", tuple(told))


def lark_of(gbnf: str) -> str:
  """A grammar in llama.cpp's notation in the library's. Raises `InvalidRequestError` that says what is wrong with it."""
  try:
    lark: str = library().gbnf_to_lark(_ESCAPE.sub(_character, gbnf))
  except EngineUnavailableError:
    raise
  except Exception as error:  # the library has no error of its own for half of them
    raise InvalidRequestError(" ".join(str(error).split())[:400]) from error
  return _HEAD.sub("", lark)


def _character(escape: re.Match[str]) -> str:
  """A letter written by its number as itself: the library loses its leading zeros."""
  number = int(escape[1] or escape[2] or "0", 16)
  plain = 0x20 < number < 0x110000 and not 0xd800 <= number < 0xe000 and chr(number) not in "\\\"[]^-"
  return chr(number) if plain else escape[0]
