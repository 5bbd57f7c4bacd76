"""Writes docs/flags.md from the command line's own parsers; with --check it only says whether the file is stale."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from exo.cli.arguments import build_parser
from exo.cli.commands import COMMANDS

FILE = Path(__file__).resolve().parents[1] / "docs" / "flags.md"
HEAD = """# Commands and flags

Made by `python scripts/flags_table.py` from what `exo --help` and `exo COMMAND --help` say.
"""


def parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
  """Of every command that has one of its own."""
  yield "exo", build_parser()
  for name, command in COMMANDS.items():
    yield f"exo {name}", command.parser()


def table() -> str:
  lines = [HEAD]
  for name, parser in parsers():
    lines.append(f"## {name}\n")
    if name != "exo" and parser.description:
      lines.append(
          f"```text\n{parser.description}\n```\n" if "\n  " in parser.description else f"{parser.description}\n"
      )
    for group in parser._action_groups:
      rows = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
      rows = [action for action in rows if "--help" not in action.option_strings]
      if not rows:
        continue
      if group.title not in ("positional arguments", "options"):
        lines.append(f"### {group.title}\n")
      lines += ["| | |", "|---|---|", *(_row(action, parser) for action in rows), ""]
  return "\n".join(lines).rstrip("\n") + "\n"


def _row(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
  value = action.metavar or (f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.dest.upper())
  shown = str(value) if not action.option_strings else ", ".join(action.option_strings)
  if action.option_strings and action.nargs != 0:
    shown += f" {value}"
  help_text = (action.help or "") % {"prog": parser.prog, "default": action.default}
  return f"| `{shown}` | {' '.join(help_text.split())} |".replace("|...", "\\|...")


def main() -> int:
  arguments = argparse.ArgumentParser(description=__doc__)
  arguments.add_argument("--check", action="store_true")
  text = table()
  if arguments.parse_args().check:
    stale = not FILE.exists() or FILE.read_text() != text
    print(f"{FILE.name} is stale: python scripts/flags_table.py" if stale else f"{FILE.name} is what the parsers say")
    return int(stale)
  FILE.write_text(text)
  return 0


if __name__ == "__main__":
  sys.exit(main())
