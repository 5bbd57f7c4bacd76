"""Ask the Open Source Vulnerabilities database (osv.dev) about every version in requirements.lock.

  python scripts/audit.py                what is known against the locked versions; status 1 when there is something
  python scripts/audit.py --json FILE    also keep the answer, for the release notes
  python scripts/audit.py --url URL      another server with the same interface

Only needs Python. Where the database cannot be reached, nothing was audited: it says so and ends with status 2.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

LOCK = Path(__file__).resolve().parents[1] / "requirements.lock"
OSV = "https://api.osv.dev"
_BATCH = 500
_TIMEOUT_S = 30
_PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==([^\s;]+)")


def locked(text: str) -> list[tuple[str, str]]:
  """(name, version) of every pinned package, for all platforms."""
  return sorted({(m[1].lower(), m[2]) for line in text.splitlines() if (m := _PIN.match(line))})


def ask(url: str, body: dict[str, Any] | None = None) -> Any:
  data = None if body is None else json.dumps(body).encode()
  request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
  with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
    return json.load(response)


def findings(url: str, packages: list[tuple[str, str]]) -> dict[str, list[str]]:
  """Advisories by "name version". Raises OSError or ValueError when the database does not answer."""
  found: dict[str, list[str]] = {}
  for start in range(0, len(packages), _BATCH):
    part = packages[start:start + _BATCH]
    queries = [{"package": {"ecosystem": "PyPI", "name": name}, "version": version} for name, version in part]
    results = ask(f"{url}/v1/querybatch", {"queries": queries})["results"]
    for (name, version), result in zip(part, results, strict=True):
      if ids := [entry["id"] for entry in result.get("vulns") or []]:
        found[f"{name} {version}"] = ids
  return found


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--lock", type=Path, default=LOCK)
  parser.add_argument("--url", default=OSV)
  parser.add_argument("--json", type=Path, metavar="FILE")
  arguments = parser.parse_args()
  packages = locked(arguments.lock.read_text())
  try:
    found = findings(arguments.url.rstrip("/"), packages)
    details = {i: ask(f"{arguments.url.rstrip('/')}/v1/vulns/{i}") for ids in found.values() for i in ids}
  except (OSError, ValueError, KeyError) as error:
    print(f"audit: {arguments.url} cannot be asked ({error}): nothing was audited", file=sys.stderr)
    return 2
  for package, ids in found.items():
    for advisory in ids:
      print(f"{package}: {advisory} {details[advisory].get('summary', '')}".rstrip())
  print(f"{len(packages)} locked versions, {len(found)} with advisories")
  if arguments.json:
    arguments.json.write_text(json.dumps({"packages": len(packages), "advisories": found}, indent=2) + "\n")
  return 1 if found else 0


if __name__ == "__main__":
  sys.exit(main())
