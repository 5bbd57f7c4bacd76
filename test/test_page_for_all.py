"""The page on a phone, by keyboard and for screen readers, in a real browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from test.support.browser import AXE, violations
from test.support.page import all_of, by_id, show, until


def test_the_phone_layout(page: Chrome) -> None:
  page.execute_cdp_cmd(
      "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
  )
  try:
    until(page, lambda: not by_id(page, "side").is_displayed() and not by_id(page, "chats").is_displayed())
    width = page.execute_script("return document.documentElement.scrollWidth")
    assert width <= 360, "the page scrolls sideways"
    for name in ("prompt", "send", "stop", "model", "toggle-side", "toggle-chats", "open-settings"):
      box = by_id(page, name).rect
      assert box["x"] >= 0 and box["x"] + box["width"] <= 360 and box["y"] >= 0 and box["y"] + box["height"] <= 740, name
      assert box["height"] >= 36 or name == "model", name
    by_id(page, "toggle-side").click()
    side = by_id(page, "side")
    until(page, side.is_displayed)
    assert side.rect["width"] <= 360 and by_id(page, "toggle-side").get_attribute("aria-expanded") == "true"
    until(page, lambda: all_of(page, "#picture [data-node]"))
    page.switch_to.active_element.send_keys(Keys.ESCAPE)
    until(page, lambda: not side.is_displayed())
    assert page.switch_to.active_element == by_id(page, "toggle-side")
    answer = show(page, "```\n" + "x" * 500 + "\n```\n\n| " + "wide | " * 40 + "\n|" + "---|" * 40 + "\n")
    until(page, lambda: answer.find_elements(By.TAG_NAME, "pre"))
    assert page.execute_script("return document.documentElement.scrollWidth") <= 360
  finally:
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_keyboard_reaches_everything(page: Chrome) -> None:
  show(page, "An answer")
  page.execute_script("document.activeElement.blur()")
  seen: list[str] = []
  for _ in range(40):
    page.switch_to.active_element.send_keys(Keys.TAB)
    active = page.switch_to.active_element
    seen.append(active.get_attribute("id") or active.text or active.get_attribute("aria-label") or active.tag_name)
    if seen.count("toggle-chats") > 1:
      break
  assert {"toggle-chats", "open-settings", "toggle-side", "new-chat", "log", "prompt", "model", "send",
          "enlarge"} <= set(seen)
  assert "Regenerate" in seen and "Edit" in seen
  by_id(page, "open-settings").send_keys(Keys.ENTER)
  until(page, lambda: by_id(page, "settings").is_displayed())
  page.switch_to.active_element.send_keys(Keys.ESCAPE)
  until(page, lambda: not by_id(page, "settings").is_displayed())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(page: Chrome, scheme: str) -> None:
  if not AXE.is_file():
    pytest.skip("axe-core is not installed (scripts/test-deps.sh)")
  page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
  try:
    show(
        page,
        "# T\n\n`code` [a](https://example.org)\n\n```python\ndef f(): return 1 # x\n```\n\n|a|\n|-|\n|1|\n\n$x^2$",
        reasoning="r"
    )
    until(page, lambda: "1 node" in by_id(page, "summary").text)
    by_id(page, "models-section").find_element(By.TAG_NAME, "summary").click()
    until(page, lambda: all_of(page, "#models li"))
    assert violations(page) == []
    by_id(page, "open-settings").click()
    assert violations(page) == []
    colour = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert colour == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(21, 25, 28)")
  finally:
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def phone(page: Chrome, width: int) -> None:
  metrics = {"width": width, "height": 640, "deviceScaleFactor": 2, "mobile": True}
  page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def test_22_line_12_everything_fits_320_px(page: Chrome) -> None:
  phone(page, 320)
  try:
    show(page, "An answer $\\sqrt{x}$", cut="cut", stats={"first_ms": 20, "per_s": 5, "tokens": 40, "model": "m"})
    until(page, lambda: not by_id(page, "side").is_displayed())
    for name in ("prompt", "attach", "open-chat-settings", "model", "stop", "send"):
      box = by_id(page, name).rect
      assert box["x"] >= 0 and box["x"] + box["width"] <= 320 and box["y"] + box["height"] <= 640, name
    assert by_id(page, "send").rect["y"] == by_id(page, "attach").rect["y"], "the buttons share a row"
    for opener, opened, closer in (("toggle-chats", "chats", "toggle-chats"), ("toggle-side", "side", "toggle-side"),
                                   ("open-chat-settings", "settings",
                                    "settings-cancel"), ("open-settings", "settings", "settings-cancel")):
      by_id(page, opener).click()
      until(page, by_id(page, opened).is_displayed)
      rect = by_id(page, opened).rect
      assert rect["x"] >= 0 and rect["x"] + rect["width"] <= 320, opened
      assert page.execute_script("return document.documentElement.scrollWidth") <= 320, opened
      by_id(page, closer).click()
      until(page, lambda opened=opened: not by_id(page, opened).is_displayed())
  finally:
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_22_line_12_nothing_new_is_out_of_reach(page: Chrome, tmp_path: Path, theme: str) -> None:
  """Versions, attachments, renaming, a line of news, both settings and the node's page: by axe-core in both themes."""
  if not AXE.is_file():
    pytest.skip("axe-core is not installed (scripts/test-deps.sh)")
  page.execute_script("localStorage.setItem('exo.theme', arguments[0])", theme)
  question = {
      "role": "user", "content": "q", "id": "q", "parent": None, "files": [{"name": "f", "text": "x", "note": "cut"}]
  }
  answers = [{
      "role": "assistant", "content": f"a{i} $\\cancel{{x}} \\nope$", "id": f"a{i}", "parent": "q", "cut": "cut"
  } for i in range(2)]
  chat = {"id": "c", "title": "t", "changed": 1, "leaf": "a1", "messages": [question, *answers]}
  page.execute_script(
      "localStorage.setItem('exo.chat.c', arguments[0]); sessionStorage.setItem('exo.current', 'c')", json.dumps(chat)
  )
  page.refresh()
  until(page, lambda: all_of(page, ".versions") and "1 node" in by_id(page, "summary").text)
  (tmp_path / "f.txt").write_text("words")
  by_id(page, "attach-file").send_keys(str(tmp_path / "f.txt"))
  until(page, lambda: all_of(page, "#attached li"))
  page.find_element(By.CSS_SELECTOR, "details.attached summary").click()
  assert violations(page) == []
  page.find_element(By.CSS_SELECTOR, "[aria-label='Rename “t”']").click()
  assert violations(page) == []
  page.switch_to.active_element.send_keys(Keys.ESCAPE)
  for opener, closer in (("open-chat-settings", "settings-cancel"), ("open-settings", "settings-cancel")):
    by_id(page, opener).click()
    assert violations(page) == []
    by_id(page, closer).click()
  page.find_element(By.CSS_SELECTOR, "[aria-label='Delete “t”']").click()
  until(page, lambda: by_id(page, "toast").text)
  assert violations(page) == []


def test_22_line_12_new_controls_are_reached_by_keyboard(page: Chrome) -> None:
  show(page, "An answer", cut="cut")
  page.execute_script("document.activeElement.blur()")
  seen: list[str] = []
  for _ in range(50):
    page.switch_to.active_element.send_keys(Keys.TAB)
    active = page.switch_to.active_element
    seen.append(active.get_attribute("id") or active.get_attribute("aria-label") or active.text or active.tag_name)
  wanted = {
      "chat-search", "Rename “t”", "Delete “t”", "export", "export-chat", "import", "attach", "open-chat-settings",
      "Continue", "Page of this node"
  }
  assert wanted <= set(seen), wanted - set(seen)
