"""The page's model picker in a real browser: sizes, what fits, download with progress, cancel, use, delete."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from test.support.browser import IS_INSTALLED, chromium, complaints
from test.support.hub import Hub, hub
from test.support.nodes import ROOT, NodeProcess, ring
from test.support.page import all_of, ask, by_id, finished, settle, until

stores = pytest.importorskip("test.support.stores", reason="the routes of models are not part of this version")

if not IS_INSTALLED:
  pytest.skip("chromium and chromedriver are not installed (scripts/test-deps.sh)", allow_module_level=True)

REPO, SMALL = "org/big", "tiny/llama"  # the second one can be asked


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
  folder = tmp_path_factory.mktemp("repo") / "big"
  with hub({REPO: stores.write_big(folder, 12), SMALL: ROOT / "test" / "data" / "goldens" / "llama"}) as playing:
    yield playing


@pytest.fixture(scope="module")
def node(server: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
  home = tmp_path_factory.mktemp("home")
  env = {"HF_ENDPOINT": server.url, "HF_HOME": str(home / "hf"), "PIP_NO_INDEX": "1"}
  with ring(home, 1, "--inference-engine", "onnx", env=env) as (one, ):
    yield one


@pytest.fixture
def page(node: NodeProcess, tmp_path: Path) -> Iterator[Chrome]:
  with chromium(tmp_path / "profile") as driver:
    driver.get(node.url)
    by_id(driver, "models-section").find_element(By.TAG_NAME, "summary").click()
    until(driver, lambda: all_of(driver, "#models li"))
    yield driver


def search(page: Chrome, text: str) -> None:
  box = by_id(page, "model-search")
  box.clear()
  box.send_keys(text)


def row(page: Chrome, model: str) -> WebElement:
  return page.find_element(By.CSS_SELECTOR, f"#models [data-model='{model}']")


def press(page: Chrome, model: str, label: str) -> None:
  until(page, lambda: any(b.text == label for b in row(page, model).find_elements(By.TAG_NAME, "button")))
  next(b for b in row(page, model).find_elements(By.TAG_NAME, "button") if b.text == label).click()


def text_of(page: Chrome, model: str) -> str:
  """At one moment: rows are made anew while a download goes on."""
  return str(
      page.execute_script(
          "return document.querySelector(`#models [data-model='${arguments[0]}']`)?.textContent ?? ''", model
      )
  )


def test_the_picker_knows_sizes_and_what_the_ring_can_hold(page: Chrome) -> None:
  search(page, "405")
  until(page, lambda: "cannot run: it needs about" in text_of(page, "llama-3.1-405b"))
  assert " GB" in text_of(page, "llama-3.1-405b")
  search(page, "smollm2-135m")
  until(page, lambda: "fits here" in text_of(page, "smollm2-135m"))
  search(page, "no such thing")
  until(page, lambda: "No known model" in by_id(page, "models").text)


def test_download_cancel_use_and_delete(page: Chrome, server: Hub) -> None:
  server.faults.bytes_per_s = 3e6
  search(page, REPO)
  press(page, REPO, "Download")
  until(page, lambda: all_of(page, "#models progress") and "B of" in text_of(page, REPO), 20)
  press(page, REPO, "Cancel")
  until(page, lambda: not all_of(page, "#models progress") and "Download" in text_of(page, REPO), 20)
  server.faults.bytes_per_s = None
  press(page, REPO, "Download")
  until(page, lambda: "here" in text_of(page, REPO) and "Use" in text_of(page, REPO), 30)
  press(page, REPO, "Use")
  assert by_id(page, "model").get_attribute("value") == REPO
  press(page, REPO, "Delete")
  until(page, by_id(page, "confirm").is_displayed)
  assert "can be downloaded again" in by_id(page, "confirm-text").text
  by_id(page, "confirm-yes").click()
  until(page, lambda: "Use" not in text_of(page, REPO) and "here" not in text_of(page, REPO).split("·")[-1], 20)
  assert by_id(page, "model").get_attribute("value") == ""
  assert not complaints(page)


def test_a_download_that_cannot_be_says_why(page: Chrome, server: Hub) -> None:
  server.faults.bytes_per_s = None
  search(page, "org/nothing")
  press(page, "org/nothing", "Download")
  until(
      page, lambda: "org/nothing" in by_id(page, "models-note").text or "hub has no" in by_id(page, "models").text, 30
  )


def names(page: Chrome) -> list[str]:
  return [e.text for e in all_of(page, "#models strong")]


def test_22_line_8_the_picker_says_what_is_default_here_and_fits_and_sorts_by_that(page: Chrome) -> None:
  until(page, lambda: "default" in text_of(page, "smollm2-135m"))
  told = text_of(page, "smollm2-135m")
  assert " MB" in told and "Q4_1" in told and "in use" in told
  marks = page.execute_script(
      "return [...document.querySelectorAll('#models li:has([data-action^=Download])')].map(row => row.textContent)"
  )
  fits = [i for i, text in enumerate(marks) if "fits here" in text]
  nowhere = [i for i, text in enumerate(marks) if "cannot run" in text]
  assert fits and nowhere and max(fits) < min(nowhere), "what fits comes before what does not"
  search(page, "llama-3.1-8b")
  until(page, lambda: names(page)[:1] == ["Llama 3.1 8B"] or all_of(page, "#models select"))
  forms = page.find_element(By.CSS_SELECTOR, "#models select")
  assert {"gguf", "mlx"} <= {option.text for option in forms.find_elements(By.TAG_NAME, "option")}
  until(page, lambda: "Default: SmolLM2" in by_id(page, "model").text)


def test_22_line_8_a_download_is_seen_and_cancelled_in_the_chat_and_a_model_loaded_and_unloaded(
    page: Chrome, server: Hub
) -> None:
  server.faults.bytes_per_s = 1e5
  page.execute_script("localStorage.setItem('exo.model', arguments[0])", SMALL)
  page.refresh()
  settle(page, max_tokens="3")
  ask(page, "hello")
  waiting = until(page, lambda: page.find_element(By.CSS_SELECTOR, "article.running .waiting"), 30)
  until(page, lambda: "Downloading tiny/llama" in waiting.text and re.search(r" of \d+ [kK]B", waiting.text), 20)
  assert "Downloading tiny/llama" in by_id(page, "status").text
  waiting.find_element(By.TAG_NAME, "button").click()
  finished(page)
  assert page.find_element(By.CSS_SELECTOR, "article.assistant .error").text
  server.faults.bytes_per_s = None
  page.get_log("browser")  # the browser's own line of what was cancelled, if there is one
  next(b for b in all_of(page, "article.assistant button") if b.text == "Regenerate").click()
  finished(page)
  assert "3 tokens" in page.find_element(By.CSS_SELECTOR, "article.assistant .stats").text
  by_id(page, "models-section").find_element(By.TAG_NAME, "summary").click()
  search(page, SMALL)
  press(page, SMALL, "Unload")
  until(page, lambda: "Load" in text_of(page, SMALL) and "loaded" not in text_of(page, SMALL), 20)
  press(page, SMALL, "Load")
  until(page, lambda: "loaded" in text_of(page, SMALL) and "Unload" in text_of(page, SMALL), 20)
  assert names(page) == ["llama"]
  assert page.execute_script("return document.querySelector('#model optgroup').label") == "Loaded"
  assert not complaints(page)
