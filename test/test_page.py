"""The web page in a real browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from test.support.nodes import ring

if not (shutil.which("chromium") and shutil.which("chromedriver")):
  pytest.skip("chromium and chromedriver are not installed (scripts/test-deps.sh)", allow_module_level=True)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chrome]:
  options = ChromeOptions()
  options.binary_location = shutil.which("chromium") or ""
  for flag in (
      "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
      "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
      f"--user-data-dir={tmp_path / 'profile'}"
  ):
    options.add_argument(flag)
  options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
  driver = Chrome(options=options, service=ChromeService(shutil.which("chromedriver")))
  yield driver
  driver.quit()


def test_ring_and_chat(browser: Chrome, tmp_path: Path) -> None:
  with ring(tmp_path / "home", 2, "--inference-engine", "dummy", "--default-model", "dummy") as (one, other):
    wait = WebDriverWait(browser, 15)
    browser.get(one.url)
    nodes = browser.find_element(By.ID, "nodes")
    wait.until(lambda _: one.node_id in nodes.text and other.node_id in nodes.text)
    assert "2 nodes" in browser.find_element(By.ID, "summary").text

    prompt, send = browser.find_element(By.ID, "prompt"), browser.find_element(By.ID, "send")
    prompt.send_keys("hello <img src=x onerror=alert(1)>")
    send.click()
    answer = wait.until(lambda _: browser.find_element(By.CSS_SELECTOR, "#log .assistant"))
    wait.until(lambda _: send.is_enabled() and len(answer.text) > 20)
    wait.until(lambda _: "dummy 0–3" in nodes.text and "dummy 4–7" in nodes.text)
    assert not browser.find_elements(By.CSS_SELECTOR, "#log img")

    prompt.send_keys("again, and go on")
    send.click()
    stop = browser.find_element(By.ID, "stop")
    if stop.is_enabled():
      stop.click()
    wait.until(lambda _: send.is_enabled())

    other.kill()
    wait.until(lambda _: other.node_id not in nodes.text)
    assert "1 node," in browser.find_element(By.ID, "summary").text
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
