"""Issue 22, line 13: what README and docs claim is checked, and README is short."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from scripts import check_claims, flags_table
from test.support.nodes import ROOT

CLAIMS = check_claims.claims()


def wrong_of(outcomes: list[tuple[check_claims.Claim, str]]) -> list[str]:
  return [f"{claim.where}: {claim.quote}: {wrong}" for claim, wrong in outcomes if wrong]


def test_22_line_13_the_quick_claims_hold(model_home: Path) -> None:
  quick = [claim for claim in CLAIMS if not claim.slow]
  outcomes = check_claims.run(quick, str(model_home))
  assert len(outcomes) == len(quick) > 15 and not wrong_of(outcomes)


@pytest.mark.slow
def test_22_line_13_every_claim_holds(model_home: Path) -> None:
  """As `python scripts/check_claims.py` does."""
  outcomes = check_claims.run([claim for claim in CLAIMS if claim.slow], str(model_home))
  assert outcomes and not wrong_of(outcomes)


def test_22_line_13_a_claim_that_does_not_hold_is_found() -> None:
  good = check_claims.Claim("README.md", "There is no master", "echo one; echo two >&2", "^two$")
  environment = dict(os.environ)
  assert check_claims.check(good, environment) == ""
  assert "is not in: one" in check_claims.check(replace(good, expect="three"), environment)
  assert "exit status 3" in check_claims.check(replace(good, command="echo two; exit 3"), environment)
  assert check_claims.check(replace(good, command="echo two; exit 3", status=3), environment) == ""
  assert "does not say so any more" in check_claims.check(replace(good, quote="There is a master"), environment)


def test_22_line_13_flags_are_in_one_table_that_is_not_stale() -> None:
  checked = subprocess.run([sys.executable, "scripts/flags_table.py", "--check"], cwd=ROOT, capture_output=True, text=True,
                           check=False)  # yapf: disable
  assert checked.returncode == 0, checked.stdout
  for name, parser in flags_table.parsers():
    silent = [a.dest for a in parser._actions if a.option_strings and not a.help]
    assert not silent, f"{name} says nothing of {silent}"
    shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    flags = [flag for action in shown for flag in action.option_strings if flag.startswith("--") and flag != "--help"]
    text = flags_table.FILE.read_text()
    assert all(flag in text for flag in flags)


def test_22_line_13_readme_fits_two_screens_and_leads_to_every_document() -> None:
  text = (ROOT / "README.md").read_text()
  assert len(text.splitlines()) <= 110 and text.count("![") == 1
  missing = [path.name for path in (ROOT / "docs").glob("*.md") if f"docs/{path.name}" not in text]
  assert not missing
