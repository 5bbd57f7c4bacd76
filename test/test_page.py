"""The web page in a real browser, served by real nodes."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from exo.api.page import WEB_ROOT
from test.support.browser import complaints
from test.support.nodes import NodeProcess, ring, wait_until
from test.support.page import DUMMY, all_of, ask, by_id, finished, settle, show, stored, until, with_field

MAX_PAGE_BYTES = 150_000


def test_a_chat_is_streamed_with_its_speed_and_kept(page: Chrome) -> None:
  settle(page, max_tokens="400", temperature="0", system="be brief")
  ask(page, "hello")
  answer = until(page, lambda: page.find_element(By.CSS_SELECTOR, "article.assistant.running .markdown"))
  until(page, lambda: len(answer.text) > 5)
  finished(page)
  stats = page.find_element(By.CSS_SELECTOR, "article.assistant .stats").text
  assert "first token" in stats and "tokens/s" in stats and "dummy" in stats
  messages = stored(page)[0]["shown"]
  assert [m["role"] for m in messages] == ["user", "assistant"] and len(messages[1]["content"]) > 20
  page.refresh()
  until(page, lambda: all_of(page, "article.assistant"))
  assert page.find_element(By.CSS_SELECTOR, "article.user .typed").text == "hello"


def test_stop_ends_the_generation_on_the_node_too(page: Chrome, page_node: NodeProcess) -> None:
  settle(page, temperature="1.5", seed="3")
  with_field(page, "logit_bias", {"256": -100})  # the end of text, which the dummy model would come to soon
  ask(page, "go on for ever")
  answer = until(page, lambda: page.find_element(By.CSS_SELECTOR, "article.assistant.running .markdown"))
  until(page, lambda: len(answer.text) > 20)
  stop = by_id(page, "stop")
  assert stop.is_enabled()
  stop.click()
  finished(page)
  assert by_id(page, "status").text == "Stopped"
  assert "stopped" in page.find_element(By.CSS_SELECTOR, "article.assistant .stats").text
  length = len(answer.text)
  assert length > 20

  def cancelled() -> bool:
    with urllib.request.urlopen(f"{page_node.url}/metrics", timeout=5) as response:
      return 'exo_requests_total{model="dummy",outcome="cancelled"}' in response.read().decode()

  wait_until(cancelled, 5, "the cancelling of the request")
  assert len(answer.text) == length


def test_edit_and_regenerate_go_back_to_before(page: Chrome) -> None:
  settle(page, max_tokens="30", temperature="1")
  ask(page, "first")
  finished(page)
  ask(page, "second")
  finished(page)
  assert len(all_of(page, "article")) == 4
  first_answer = stored(page)[0]["shown"][1]["content"]
  next(b for b in all_of(page, "article.assistant button") if b.text == "Regenerate").click()
  finished(page)
  messages = stored(page)[0]["shown"]
  assert [m["content"] for m in messages if m["role"] == "user"] == ["first"] and len(all_of(page, "article")) == 2
  assert messages[1]["content"] != first_answer
  page.find_element(By.XPATH, "//article[1]//button[text()='Edit']").click()
  box = page.find_element(By.CSS_SELECTOR, "form.edit textarea")
  assert box.get_attribute("value") == "first" and box == page.switch_to.active_element
  box.send_keys(" and more")
  page.find_element(By.CSS_SELECTOR, "form.edit button[type=submit]").click()
  finished(page)
  assert [m["content"] for m in stored(page)[0]["shown"] if m["role"] == "user"] == ["first and more"]


def test_several_conversations(page: Chrome) -> None:
  settle(page, max_tokens="5")
  for text in ("about one", "about two"):
    by_id(page, "new-chat").click()
    ask(page, text)
    finished(page)
  names = [e.text for e in all_of(page, ".chat-name")]
  assert names == ["about two", "about one"]
  all_of(page, ".chat-name")[1].click()
  until(page, lambda: page.find_element(By.CSS_SELECTOR, "article.user .typed").text == "about one")
  page.find_element(By.CSS_SELECTOR, "[aria-label='Delete “about one”']").click()
  until(page, lambda: [c["title"] for c in stored(page)] == ["about two"])


def test_settings_and_system_prompt_are_sent(page: Chrome) -> None:
  settle(page, max_tokens="7", seed="11", top_p="0.5", system="You are terse.")
  with_field(page, "user", "test")
  ask(page, "hi")
  finished(page)
  (body, ) = page.execute_script("return window.sent")
  assert body["messages"][0] == {"role": "system", "content": "You are terse."
                                 } and body["messages"][1]["content"] == "hi"
  assert (body["max_tokens"], body["seed"], body["top_p"], body["stream"]) == (7, 11, 0.5, True)
  assert "temperature" not in body
  assert "7 tokens" in page.find_element(By.CSS_SELECTOR, "article.assistant .stats").text.split(" · ")


def test_an_error_says_what_to_do(browser: Chrome, page: Chrome) -> None:
  page.execute_script("localStorage.setItem('exo.model', 'smolm2')")
  page.refresh()
  until(page, lambda: "1 node" in by_id(page, "summary").text)
  ask(page, "hi")
  fault = until(page, lambda: page.find_element(By.CSS_SELECTOR, "article.assistant .error"))
  assert "Did you mean" in fault.text and "smollm2-135m" in fault.text and fault.get_attribute("role") == "alert"
  page.execute_script("localStorage.clear()")
  assert all("404" in line for line in complaints(browser))  # the browser's own line about the answer's status


def test_thoughts_that_the_api_tells_apart(page: Chrome) -> None:
  answer = show(page, "The answer.", reasoning="Considered.")
  until(page, lambda: answer.find_elements(By.CSS_SELECTOR, "details.think"))
  assert answer.find_element(By.CSS_SELECTOR, ":scope > .body > .markdown").text == "The answer."


def test_workers_are_under_their_node(browser: Chrome, tmp_path: Path) -> None:
  with ring(tmp_path, 1, *DUMMY, "--devices", "one,two") as (node, ):
    browser.get(node.url)
    until(browser, lambda: "1 node," in by_id(browser, "summary").text)
    ask(browser, "count")
    until(browser, lambda: all_of(browser, "#picture .hop"))
    terms = until(browser, lambda: [row.text for row in all_of(browser, "#nodes dt")])
    assert terms.count("one") == terms.count("two") == 1
    held = by_id(browser, "nodes").text
    assert "dummy on none; 0 B used of" in held and "; dummy 0–3 of 8" in held and "; dummy 4–7 of 8" in held
    finished(browser)


def test_the_topology_follows_as_a_node_joins_and_is_killed(browser: Chrome, tmp_path: Path) -> None:
  with ring(tmp_path, 1, *DUMMY, "--max-generate-tokens", "3000") as (one, ):
    browser.get(one.url)
    text = lambda: by_id(browser, "summary").text  # noqa: E731
    until(browser, lambda: "1 node," in text())
    port = one.process.args[one.process.args.index("--listen-port") + 1]  # type: ignore[union-attr,index]
    other = NodeProcess(tmp_path, *DUMMY, "--listen-port", port, "--broadcast-port", port, node_id="other")
    try:
      other.wait_ready()
      until(browser, lambda: "2 nodes," in text())
      until(browser, lambda: len(all_of(browser, "#picture [data-node]")) == 2)
      until(browser, lambda: " ms" in browser.find_element(By.CSS_SELECTOR, "#picture .link-label").text)
      assert "over" in by_id(browser, "nodes").text  # the interface
      ask(browser, "count")
      until(browser, lambda: len(all_of(browser, "#picture .hop")) == 2)
      until(browser, lambda: all_of(browser, "#picture .frame"))  # frames on their way
      held = by_id(browser, "nodes").text
      assert "dummy 0–3 of 8" in held and "dummy 4–7 of 8" in held and "dummy on none" in held and "GB free of" in held
      label = until(browser, lambda: browser.find_element(By.CSS_SELECTOR, "#picture svg").get_attribute("aria-label"))
      assert label and "2 nodes" in label and "dummy over" in label
      finished(browser)
      other.kill()
      killed = time.monotonic()
      until(browser, lambda: "1 node," in text() and len(all_of(browser, "#picture [data-node]")) == 1, 5)
      assert time.monotonic() - killed < 5 and "other" not in by_id(browser, "nodes").text
    finally:
      other.stop()
  until(browser, lambda: "does not answer" in text())
  browser.get("about:blank")
  complaints(browser)


def test_a_key_is_asked_for_once_and_kept(browser: Chrome, tmp_path: Path) -> None:
  """http_api.md 37: the static page is open to all, and asks for the key that everything else wants."""
  key = "k" * 40
  with ring(tmp_path, 1, *DUMMY, "--api-key", key, wait=False) as (one, ):
    browser.get(one.url)
    dialog = by_id(browser, "key-dialog")
    until(browser, dialog.is_displayed)
    assert browser.switch_to.active_element == by_id(browser, "key")
    by_id(browser, "key").send_keys("wrong" * 10, Keys.ENTER)
    until(browser, lambda: by_id(browser, "key-wrong").is_displayed())
    by_id(browser, "key").send_keys(key, Keys.ENTER)
    until(browser, lambda: "1 node" in by_id(browser, "summary").text)
    assert not dialog.is_displayed()
    browser.refresh()
    until(browser, lambda: "1 node" in by_id(browser, "summary").text)
    settle(browser, max_tokens="5")
    ask(browser, "hi")
    finished(browser)
    assert "5 tokens" in browser.find_element(By.CSS_SELECTOR, "article.assistant .stats").text
    assert not by_id(browser, "key-dialog").is_displayed()
  browser.get("about:blank")
  assert all("401" in line or "ERR_" in line for line in complaints(browser))


def test_weight_and_first_load(page: Chrome, page_node: NodeProcess) -> None:
  assert sum(path.stat().st_size for path in WEB_ROOT.iterdir()) < MAX_PAGE_BYTES
  loads = []
  for _ in range(3):  # the best of three: other work on this machine must not fail it
    page.execute_cdp_cmd("Network.clearBrowserCache", {})
    page.get(page_node.url)
    until(page, lambda: page.execute_script("return performance.getEntriesByName('usable').length"))
    loads.append(page.execute_script("return performance.getEntriesByName('usable')[0].startTime"))
    if loads[-1] < 1000:
      break
  assert min(loads) < 1000, f"usable after {loads} ms"


def test_the_page_is_strict_about_what_it_runs(page_node: NodeProcess) -> None:
  with urllib.request.urlopen(f"{page_node.url}/", timeout=5) as response:
    policy, etag = response.headers["Content-Security-Policy"], response.headers["ETag"]
    text = response.read().decode()
  assert "unsafe" not in policy and "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
  assert "require-trusted-types-for 'script'" in policy
  assert "http://" not in text and "https://" not in text and " style=" not in text and " onclick=" not in text
  for path in WEB_ROOT.glob("*.js"):
    source = path.read_text()
    assert not any(
        word in source for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "eval(", "new Function")
    ), path.name
  conditional = urllib.request.Request(f"{page_node.url}/", headers={"If-None-Match": etag})
  with pytest.raises(urllib.error.HTTPError) as unchanged:
    urllib.request.urlopen(conditional, timeout=5)
  assert unchanged.value.code == 304
  unchanged.value.close()
  for path in ("/static/../api/page.py", "/static/%2e%2e/static/index.html", "/static/nothing.js", "/static/.hidden"):
    assert page_node.get(path)[0] == 404
