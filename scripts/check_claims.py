"""Runs the checks of what README and docs claim (docs/claims.toml).

  python scripts/check_claims.py [--quick] [--only WORD] [--home DIR]

Each claim quotes the document that makes it: a quote that is not there any more fails, too. Commands run in the project's folder with
`exo` and `python` of this environment, HOME_OF_MODELS as EXO_HOME for those that want a model, an empty EXO_HOME for the others, and
URL of a node where they want one.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CLAIMS = ROOT / "docs" / "claims.toml"
_START_S, _MOST_S = 60.0, 900.0


@dataclass(frozen=True, slots=True)
class Claim:
  """`quote` stands in the file `where`; what `command` prints matches `expect`, and its exit status is `status`.

  `slow` ones take longer than seconds; `node`: a node runs meanwhile; `model`: the default model is needed.
  """
  where: str
  quote: str
  command: str
  expect: str
  status: int = 0
  slow: bool = False
  node: bool = False
  model: bool = False


def claims() -> list[Claim]:
  return [Claim(**entry) for entry in tomllib.loads(CLAIMS.read_text())["claim"]]


def check(claim: Claim, environment: dict[str, str]) -> str:
  """What is wrong with it; "" where it holds."""
  text = " ".join((ROOT / claim.where).read_text().split())
  if " ".join(claim.quote.split()) not in text:
    return f"{claim.where} does not say so any more: mend docs/claims.toml"
  try:
    done = subprocess.run(["bash", "-c", claim.command], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=_MOST_S, check=False)  # yapf: disable
  except subprocess.TimeoutExpired:
    return f"took longer than {_MOST_S:g} s"
  said = done.stdout + done.stderr
  if done.returncode != claim.status:
    return f"exit status {done.returncode}: {said[-2000:]}"
  return "" if re.search(claim.expect, said, re.MULTILINE) else f"{claim.expect!r} is not in: {said[-2000:]}"


@contextmanager
def _node(environment: dict[str, str]) -> Iterator[str]:
  """The URL of a node that belongs to no ring."""
  home = Path(environment["EXO_HOME"])
  command = [sys.executable, "-m", "exo", "--disable-tui", "--chatgpt-api-port", "0", "--discovery-module", "none"]
  command += ["--inference-engine", "dummy", "--default-model", "dummy"]
  with (home / "node.log").open("wb") as log:
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
  try:
    deadline = time.monotonic() + _START_S
    while not (found := re.search(r"API +(http://\S+)", (home / "node.log").read_text())):
      if process.poll() is not None or time.monotonic() > deadline:
        raise RuntimeError(f"the node did not start: {(home / 'node.log').read_text()}")
      time.sleep(0.1)
    urllib.request.urlopen(f"{found[1]}/healthcheck", timeout=_START_S).close()
    yield found[1]
  finally:
    process.terminate()
    process.wait(30)


def run(chosen: list[Claim], model_home: str | None) -> list[tuple[Claim, str]]:
  """Each with what is wrong with it; those that cannot run here are left out."""
  found = []
  with ExitStack() as at_end:
    home = at_end.enter_context(tempfile.TemporaryDirectory())
    own = os.environ | {
        "EXO_HOME": home, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "200"
    }
    url = at_end.enter_context(_node(own)) if any(claim.node for claim in chosen) else ""
    for claim in chosen:
      if claim.model and model_home is None:
        continue
      more = {"URL": url} | ({"EXO_HOME": model_home} if claim.model and model_home is not None else {})
      found.append((claim, check(claim, own | more)))
  return found


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--quick", action="store_true", help="only those that take seconds")
  parser.add_argument("--only", default="", metavar="WORD", help="only those with this word in their quotes")
  parser.add_argument(
      "--home", default=os.environ.get("EXO_TEST_HOME"), metavar="DIR", help="an EXO_HOME with the default model"
  )
  arguments = parser.parse_args()
  chosen = [c for c in claims() if not (arguments.quick and c.slow) and arguments.only in c.quote]
  outcomes = run(chosen, arguments.home)
  for claim, wrong in outcomes:
    print(
        f"{'WRONG' if wrong else 'holds'}  {claim.where}: {' '.join(claim.quote.split())}" +
        (f"\n       {wrong}" if wrong else "")
    )
  left = len(chosen) - len(outcomes)
  print(
      f"{sum(not wrong for _, wrong in outcomes)} of {len(outcomes)} hold" + (f"; {left} need --home" if left else "")
  )
  return int(any(wrong for _, wrong in outcomes))


if __name__ == "__main__":
  sys.exit(main())
