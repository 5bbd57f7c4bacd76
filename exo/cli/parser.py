"""A parser of flags whose complaints are one line, with what was probably meant."""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

_WRONG = 2  # the exit status of a command line that cannot be understood
_COMPLAINTS = (  # what argparse says, and what is said instead
    (r"argument (?P<flag>\S+): invalid int value: (?P<value>.*)", r"\g<flag> takes a whole number, not \g<value>"),
    (r"argument (?P<flag>\S+): invalid float value: (?P<value>.*)", r"\g<flag> takes a number, not \g<value>"),
    (r"argument (?P<flag>\S+): expected one argument", r"\g<flag> needs a value after it"),
    (r"argument (?P<flag>\S+): ignored explicit argument (?P<value>.*)", r"\g<flag> takes no value, so not \g<value>"),
    (r"the following arguments are required: (?P<what>.*)", r"it needs \g<what>"),
    (r"argument (?P<flag>\S+): (?P<rest>.*)", r"\g<flag>: \g<rest>"),
)
_CHOICE = re.compile(
    r"argument (?P<flag>\S+): invalid choice: '(?P<value>.*)' \(choose from (?P<choices>.*)\)", re.DOTALL
)


def nearest(word: str, known: Iterable[str], alike: float = 0.6) -> str | None:
  """What was probably meant by a word that is not known; `alike` of 1 is the word itself."""
  close = get_close_matches(word.lower(), list(known), n=1, cutoff=alike)
  return close[0] if close else None


class _HelpText(argparse.HelpFormatter):
  """Fits paragraphs into the terminal; lines that begin with a blank stay as they are."""
  def _fill_text(self, text: str, width: int, indent: str) -> str:
    lines: list[str] = []
    for line in text.splitlines():
      if line.startswith(" ") or not line:
        lines.append(line)
      else:
        lines += textwrap.wrap(line, width)
    return "\n".join(lines)


class Parser(argparse.ArgumentParser):
  """As argparse's, but a mistake is one line that names the nearest flag, and no flag may be shortened.

  `words` names the positional argument that takes all words that stand between flags.
  """
  def __init__(
      self,
      *,
      prog: str,
      description: str = "",
      usage: str | None = None,
      epilog: str | None = None,
      words: str | None = None,
      **settings: Any
  ) -> None:
    settings |= {"allow_abbrev": False, "formatter_class": _HelpText}
    super().__init__(prog=prog, usage=usage, description=description, epilog=epilog, **settings)
    self._words = words

  def parse_args(  # type: ignore[override]  # no namespace of others is wanted here
      self, args: Sequence[str] | None = None, namespace: None = None
  ) -> argparse.Namespace:
    """What was given. A mistake ends the process with status 2."""
    found, rest = self.parse_known_args(args, namespace)
    flags = [word for word in rest if word.startswith("-") and " " not in word]
    if flags:
      self.error(self._unknown(flags[0]))
    if rest and self._words is None:
      self.error(f"nothing is expected after what it has, so not {rest[0]!r}")
    if self._words is not None:
      setattr(found, self._words, [*getattr(found, self._words), *rest])
    return found

  def words_of(self, flag: str) -> int:
    """How many words a flag takes with its value, 0 if there is no such flag."""
    action = self._option_string_actions.get(flag.partition("=")[0])
    return 0 if action is None else 1 if action.nargs == 0 or "=" in flag else 2

  def show_only(self, shown: Iterable[str]) -> None:
    """Leave the flags out of the help that are not named; they are taken nonetheless."""
    kept = {"-h", *shown}
    for action in self._actions:
      if action.option_strings and not kept.intersection(action.option_strings):
        action.help = argparse.SUPPRESS

  def print_help(self, file: Any = None) -> None:
    """As argparse's, which says nothing where it cannot be written."""
    (file or sys.stdout).write(self.format_help())

  def error(self, message: str) -> NoReturn:
    """Say it in one line, and end."""
    sys.stderr.write(f"{self.prog}: {_in_words(message)} (`{self.prog} --help` shows what there is)\n")
    sys.exit(_WRONG)

  def _unknown(self, flag: str) -> str:
    name = flag.partition("=")[0]
    near = nearest(name, self._option_string_actions, alike=0.75)
    return f"there is no flag {name}" + (f"; did you mean {near}?" if near else "")


def _in_words(message: str) -> str:
  choice = _CHOICE.fullmatch(message)
  if choice is not None:
    choices = [name.strip(" '") for name in choice["choices"].split(",")]
    near = nearest(choice["value"], choices)
    meant = f"did you mean {near}?" if near else f"choose from {', '.join(choices)}"
    return f"{choice['flag']} cannot be {choice['value']!r}: {meant}"
  for pattern, words in _COMPLAINTS:
    found = re.fullmatch(pattern, message, re.DOTALL)
    if found is not None:
      return found.expand(words)
  return message
