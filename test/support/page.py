"""The web page in a real browser: what its tests do with it, and fixtures of a page as at a first visit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from test.support.browser import IS_INSTALLED, chromium, complaints, requests
from test.support.nodes import NodeProcess, ring

DUMMY = ("--inference-engine", "dummy", "--default-model", "dummy")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
  if not IS_INSTALLED:
    pytest.skip("chromium and chromedriver are not installed (scripts/test-deps.sh)")
  with chromium(tmp_path_factory.mktemp("chromium")) as driver:
    yield driver


@pytest.fixture(scope="module")
def page_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
  with ring(tmp_path_factory.mktemp("page"), 1, *DUMMY, "--max-generate-tokens", "4000") as (node, ):
    yield node


@pytest.fixture
def page(browser: Chrome, page_node: NodeProcess) -> Iterator[Chrome]:
  """The page as at a first visit; whatever a test does, nothing may complain and nothing leave this host."""
  node = page_node
  browser.set_window_size(1400, 900)
  browser.get(f"{node.url}/health")  # where nothing is kept running that would be written down as the page is left
  browser.execute_script("localStorage.clear(); sessionStorage.clear()")
  complaints(browser), requests(browser)
  browser.get(node.url)
  until(browser, lambda: "1 node" in by_id(browser, "summary").text)
  yield browser
  asked = [url for url in requests(browser) if not url.startswith((node.url, "chrome", "data:", "about:", "blob:"))]
  assert not asked
  assert not complaints(browser)


def until(driver: Chrome, condition: Any, timeout_s: float = 15) -> Any:
  """What is looked at may be drawn anew meanwhile."""
  drawn_anew = (StaleElementReferenceException, )
  return WebDriverWait(driver, timeout_s, poll_frequency=0.05,
                       ignored_exceptions=drawn_anew).until(lambda _: condition())


def by_id(driver: Chrome, name: str) -> WebElement:
  return driver.find_element(By.ID, name)


def all_of(driver: Chrome, selector: str) -> list[WebElement]:
  return driver.find_elements(By.CSS_SELECTOR, selector)


def ask(driver: Chrome, text: str) -> None:
  by_id(driver, "prompt").send_keys(text, Keys.ENTER)


def finished(driver: Chrome) -> Any:
  return until(driver, lambda: by_id(driver, "send").is_enabled() and not all_of(driver, "article.running"), 30)


def set_field(driver: Chrome, name: str, value: str) -> None:
  field = by_id(driver, name)
  field.clear()
  field.send_keys(value)


def settle(driver: Chrome, **fields: str) -> None:
  """Fill the settings and save them."""
  by_id(driver, "open-settings").click()
  for name, value in fields.items():
    set_field(driver, f"set-{name}", value)
  by_id(driver, "settings").find_element(By.CSS_SELECTOR, "button[type=submit]").click()


def with_field(driver: Chrome, name: str, value: Any) -> None:
  """Let the page's next requests carry a field that it has no setting for, and keep what it sends in `sent`."""
  driver.execute_script(
      """
    const [name, value] = arguments, original = window.fetch;
    window.sent = [];
    window.fetch = (path, options) => {
      if (!options?.body) return original(path, options);
      const body = JSON.parse(options.body);
      window.sent.push(body);
      return original(path, { ...options, body: JSON.stringify({ ...body, [name]: value }) });
    };
  """, name, value
  )


def shown(message: dict[str, Any], conversation: dict[str, Any]) -> list[dict[str, Any]]:
  """The messages down to this one."""
  parent = next((m for m in conversation["messages"] if m["id"] == message["parent"]), None)
  return [*(shown(parent, conversation) if parent else []), message]


def stored(driver: Chrome) -> list[dict[str, Any]]:
  """The conversations of this browser, newest first; `shown` are the messages of the branch that the page shows."""
  texts = driver.execute_script(
      "return Object.keys(localStorage).filter(k => k.startsWith('exo.chat.')).map(k => localStorage.getItem(k))"
  )
  found = sorted((json.loads(text) for text in texts), key=lambda c: -c["changed"])
  for conversation in found:
    leaf = next(m for m in conversation["messages"] if m["id"] == conversation["leaf"])
    conversation["shown"] = shown(leaf, conversation)
  return found


def show(driver: Chrome, answer: str, **fields: Any) -> WebElement:
  """Open the page with a conversation that ends with this answer, and return the answer's element."""
  messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer} | fields]
  conversation = {"id": "c", "title": "t", "changed": 1, "messages": messages}
  driver.execute_script(
      "localStorage.setItem('exo.chat.c', arguments[0]); sessionStorage.setItem('exo.current', 'c')",
      json.dumps(conversation)
  )
  driver.refresh()
  return until(driver, lambda: driver.find_element(By.CSS_SELECTOR, "article.assistant"))  # type: ignore[no-any-return]


def button(driver: Chrome, within: str, label: str) -> WebElement:
  """By what stands on it."""
  return next(b for b in all_of(driver, f"{within} button") if b.text == label)
