"""The page on a phone, by keyboard and for screen readers, in a real browser."""

from __future__ import annotations

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
