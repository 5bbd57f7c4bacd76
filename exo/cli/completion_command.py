"""`exo completion`: what a shell needs to complete commands, flags and choices, made from the parsers themselves."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from exo.cli.parser import Parser

SHELLS = ("bash", "zsh", "fish")

_HOW = """\
  bash   eval "$(exo completion bash)"          in ~/.bashrc
  zsh    eval "$(exo completion zsh)"           in ~/.zshrc, after compinit
  fish   exo completion fish | source           in ~/.config/fish/config.fish"""

_BASH = """\
_exo() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} command="" known="" i
  for ((i = 1; i < COMP_CWORD; i++)); do
    case "${{COMP_WORDS[i]}}" in -*) ;; *) command=${{COMP_WORDS[i]}}; break ;; esac
  done
  case "$command $before" in
{values}
  esac
  case "$command" in
{words}
  esac
  if [ "${{known:-}}" = FILES ]; then COMPREPLY=($(compgen -f -- "$word")); return; fi
  COMPREPLY=($(compgen -W "$known" -- "$word"))
}}
complete -o default -F _exo exo
"""
_ZSH = """\
#compdef exo
_exo() {{
  local command="" known i
  for ((i = 2; i < CURRENT; i++)); do
    case "$words[i]" in -*) ;; *) command=$words[i]; break ;; esac
  done
  case "$command $words[CURRENT-1]" in
{values}
  esac
  case "$command" in
{words}
  esac
  if [[ "$known" == FILES ]]; then _files; return; fi
  compadd -- ${{=known}} || _files
}}
compdef _exo exo
"""


@dataclass(frozen=True, slots=True)
class _Flag:
  """`choices` None: it takes no value; empty: any text; `FILES`: a file."""
  names: tuple[str, ...]
  choices: tuple[str, ...] | None
  help: str


def build_parser() -> Parser:
  parser = Parser(
      prog="exo completion",
      description="Print what your shell needs to complete commands, flags and their values.\n\n" + _HOW
  )
  parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
  return parser


def completion_command(
    arguments: argparse.Namespace, parsers: Mapping[str, Callable[[], Parser]], summaries: Mapping[str, str]
) -> int:
  """Print the script. `parsers` has "" for `exo` alone."""
  flags = {name: list(_flags(parser())) for name, parser in parsers.items()}
  choices = {name: tuple(_choices(parser())) for name, parser in parsers.items()}
  choices[""] = tuple(summaries)
  choices["help"] = tuple(summaries)
  print(
      _fish(flags, choices, summaries) if arguments.shell == "fish" else _posix(arguments.shell, flags, choices),
      end=""
  )
  return 0


def _flags(parser: Parser) -> Iterator[_Flag]:
  """Those that its help shows."""
  for action in parser._actions:
    if action.option_strings and action.help != argparse.SUPPRESS:
      taken: tuple[str, ...] | None = tuple(str(choice) for choice in action.choices or ())
      if action.nargs == 0:
        taken = None
      elif not taken and action.metavar in ("FILE", "DIR"):
        taken = ("FILES", )
      yield _Flag(tuple(action.option_strings), taken, action.help or "")


def _choices(parser: Parser) -> Iterator[str]:
  for action in parser._actions:
    if not action.option_strings and action.choices:
      yield from (str(choice) for choice in action.choices)


def _posix(shell: str, flags: Mapping[str, list[_Flag]], choices: Mapping[str, tuple[str, ...]]) -> str:
  values, words = [], []
  for command, its in flags.items():
    for flag in its:
      if flag.choices is not None:
        names = "|".join(f'"{command} {name}"' for name in flag.names)
        values.append(f'    {names}) known="{" ".join(flag.choices)}" ;;')
    known = [*choices[command], *(name for flag in its for name in flag.names if name.startswith("--"))]
    words.append(f'    "{command}") : "${{known:={" ".join(known)}}}" ;;')
  values = [line for line in values if 'known=""' not in line] + [
      line.replace('known=""', "return" if shell == "zsh" else "COMPREPLY=(); return")
      for line in values if 'known=""' in line
  ]
  template = _BASH if shell == "bash" else _ZSH
  return template.format(values="\n".join(values), words="\n".join(words))


def _fish(
    flags: Mapping[str, list[_Flag]], choices: Mapping[str, tuple[str, ...]], summaries: Mapping[str, str]
) -> str:
  names = " ".join(summaries)
  alone = f"not __fish_seen_subcommand_from {names}"
  lines = [f"complete -c exo -n '{alone}' -f -a {name} -d {_fish_text(summary)}" for name, summary in summaries.items()]
  for command, its in flags.items():
    when = f"__fish_seen_subcommand_from {command}" if command else alone
    if choices[command] and command:
      lines.append(f"complete -c exo -n '{when}' -f -a '{' '.join(choices[command])}'")
    for flag in its:
      spelled = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in flag.names)
      value = "" if flag.choices is None else " -r -F" if flag.choices == (
          "FILES",
      ) else f" -x -a '{' '.join(flag.choices)}'"
      lines.append(f"complete -c exo -n '{when}' {spelled}{value} -d {_fish_text(flag.help)}")
  return "\n".join(lines) + "\n"


def _fish_text(text: str) -> str:
  short = re.split(r"[:;(]", text)[0].strip()[:60]
  escaped = short.replace("\\", "\\\\").replace("'", "\\'")
  return f"'{escaped}'"
