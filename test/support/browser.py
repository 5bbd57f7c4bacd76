"""Debian's chromium, headless, with what tests ask of it: what it logged, what it asked for, what a screen reader meets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium.webdriver import Chrome, ChromeOptions, ChromeService

from test.support.nodes import ROOT

AXE = ROOT / ".test-tools" / "node_modules" / "axe-core" / "axe.min.js"
IS_INSTALLED = bool(shutil.which("chromium") and shutil.which("chromedriver"))


@contextmanager
def chromium(profile: Path, *flags: str) -> Iterator[Chrome]:
  options = ChromeOptions()
  options.binary_location = shutil.which("chromium") or ""
  for flag in (
      "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
      "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
      "--window-size=1400,900", f"--user-data-dir={profile}", *flags
  ):
    options.add_argument(flag)
  options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
  driver = Chrome(options=options, service=ChromeService(shutil.which("chromedriver")))
  try:
    yield driver
  finally:
    driver.quit()


def requests(driver: Chrome) -> list[str]:
  """The URLs that pages asked for since this was asked last, as the browser's own network log has them."""
  found = []
  for entry in driver.get_log("performance"):
    message = json.loads(entry["message"])["message"]
    if message["method"] == "Network.requestWillBeSent":
      found.append(message["params"]["request"]["url"])
  return found


def complaints(driver: Chrome) -> list[str]:
  """Errors and warnings of the console since this was asked last."""
  return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def violations(driver: Chrome) -> list[str]:
  """What axe-core finds on the page as it is, of every impact."""
  driver.execute_script(AXE.read_text())
  result: dict[str, Any] = driver.execute_async_script(
      "const done = arguments[arguments.length - 1]; axe.run(document).then(done, (e) => done({violations: [{id: String(e), nodes: []}]}));"
  )
  return [f"{v['id']} ({v.get('impact')}): {[n['html'][:120] for n in v['nodes'][:3]]}" for v in result["violations"]]
