"""The web page in a real browser, served by real nodes."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from exo.api.page import WEB_ROOT
from test.support.browser import AXE, IS_INSTALLED, chromium, complaints, requests, violations
from test.support.nodes import NodeProcess, ring, wait_until

if not IS_INSTALLED:
  pytest.skip("chromium and chromedriver are not installed (scripts/test-deps.sh)", allow_module_level=True)

DUMMY = ("--inference-engine", "dummy", "--default-model", "dummy")
MAX_PAGE_BYTES = 150_000

HOSTILE = r"""
<script>window.harmed = 1</script><img src=x onerror="window.harmed = 2"><svg onload="window.harmed = 3">
<iframe src="javascript:parent.harmed = 4"></iframe><style>body { display: none }</style>

[a](javascript:window.harmed=5) [b](data:text/html,<script>harmed=6</script>) [c](  JaVaScRiPt:harmed=7 "t")
[d](vbscript:x) [e](/v1/models) [f](//evil.example/x) ![pixel](https://evil.example/pixel.png) <javascript:harmed=8>
<https://example.org/"onmouseover="harmed=9> https://example.org/?q=<b>

[![x](https://evil.example/y.png)](https://evil.example/z)

| <img src=x onerror=harmed=10> | b |
|---|---|
| `<script>harmed=11</script>` | [x](javascript:harmed=12) |

```html"><script>harmed=13</script>
<script>harmed=14</script>
```

$\href{javascript:harmed=15}{x}$ $$\text{<img src=x onerror=harmed=16>}$$ $\class{x"onload="harmed=17}{y}$

- [ ] <details open ontoggle=harmed=18>
> <base href="https://evil.example/"><link rel=stylesheet href="https://evil.example/s.css"><meta http-equiv=refresh content="0;url=https://evil.example">
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
  with chromium(tmp_path_factory.mktemp("chromium")) as driver:
    yield driver


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
  with ring(tmp_path_factory.mktemp("page"), 1, *DUMMY, "--max-generate-tokens", "4000") as (node, ):
    yield node


@pytest.fixture
def page(browser: Chrome, node: NodeProcess) -> Iterator[Chrome]:
  """The page as at a first visit; whatever a test does, nothing may complain and nothing leave this host."""
  browser.set_window_size(1400, 900)
  browser.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": node.url, "storageTypes": "local_storage"})
  complaints(browser), requests(browser)
  browser.get(node.url)
  until(browser, lambda: "1 node" in by_id(browser, "summary").text)
  yield browser
  asked = [url for url in requests(browser) if not url.startswith((node.url, "chrome", "data:", "about:"))]
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


def stored(driver: Chrome) -> list[dict[str, Any]]:
  return json.loads(
      driver.execute_script("return localStorage.getItem('exo.conversations') ?? '[]'")
  )  # type: ignore[no-any-return]


def show(driver: Chrome, answer: str, **fields: Any) -> WebElement:
  """Open the page with a conversation that ends with this answer, and return the answer's element."""
  conversation = {
      "id": "c", "title": "t", "changed": 0, "messages": [{"role": "user", "content": "q"},
                                                          {"role": "assistant", "content": answer} | fields]
  }
  driver.execute_script("localStorage.setItem('exo.conversations', arguments[0])", json.dumps([conversation]))
  driver.refresh()
  return until(driver, lambda: driver.find_element(By.CSS_SELECTOR, "article.assistant"))  # type: ignore[no-any-return]


def test_a_chat_is_streamed_with_its_speed_and_kept(page: Chrome) -> None:
  settle(page, max_tokens="400", temperature="0", system="be brief")
  ask(page, "hello")
  answer = until(page, lambda: page.find_element(By.CSS_SELECTOR, "article.assistant.running .markdown"))
  until(page, lambda: len(answer.text) > 5)
  finished(page)
  stats = page.find_element(By.CSS_SELECTOR, "article.assistant .stats").text
  assert "first token" in stats and "tokens/s" in stats and "dummy" in stats
  messages = stored(page)[0]["messages"]
  assert [m["role"] for m in messages] == ["user", "assistant"] and len(messages[1]["content"]) > 20
  page.refresh()
  until(page, lambda: all_of(page, "article.assistant"))
  assert page.find_element(By.CSS_SELECTOR, "article.user .typed").text == "hello"


def test_stop_ends_the_generation_on_the_node_too(page: Chrome, node: NodeProcess) -> None:
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
    with urllib.request.urlopen(f"{node.url}/metrics", timeout=5) as response:
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
  first_answer = stored(page)[0]["messages"][1]["content"]
  next(b for b in all_of(page, "article.assistant button") if b.text == "Regenerate").click()
  finished(page)
  messages = stored(page)[0]["messages"]
  assert [m["content"] for m in messages if m["role"] == "user"] == ["first"] and len(all_of(page, "article")) == 2
  assert messages[1]["content"] != first_answer
  page.find_element(By.XPATH, "//article[1]//button[text()='Edit']").click()
  box = page.find_element(By.CSS_SELECTOR, "form.edit textarea")
  assert box.get_attribute("value") == "first" and box == page.switch_to.active_element
  box.send_keys(" and more")
  page.find_element(By.CSS_SELECTOR, "form.edit button[type=submit]").click()
  finished(page)
  assert [m["content"] for m in stored(page)[0]["messages"] if m["role"] == "user"] == ["first and more"]


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


def test_hostile_markdown_is_harmless(page: Chrome) -> None:
  answer = show(page, HOSTILE)
  until(page, lambda: "<script>window.harmed = 1</script>" in answer.text)
  for selector in (
      "script", "img", "iframe", "style", "svg", "base", "link", "meta", "object", "[onload]", "[onerror]"
  ):
    assert not answer.find_elements(By.CSS_SELECTOR, selector), selector
  links = [link.get_attribute("href") for link in answer.find_elements(By.CSS_SELECTOR, "a")]
  assert links and all(link.startswith("https://") for link in links)
  for link in answer.find_elements(By.CSS_SELECTOR, "a"):
    assert link.get_attribute("rel") == "noopener noreferrer nofollow" and link.get_attribute("target") == "_blank"
  assert len(answer.find_elements(By.CSS_SELECTOR, ".no-link")) >= 5
  for element in answer.find_elements(By.CSS_SELECTOR, "summary, .no-link"):
    page.execute_script("arguments[0].click()", element)
  assert page.execute_script("return window.harmed") is None
  attributes = page.execute_script(
      "return [...arguments[0].querySelectorAll('*')].flatMap(e => [...e.attributes].map(a => a.name))", answer
  )
  assert not [name for name in attributes if name.startswith("on") or name in ("src", "style", "srcdoc", "xlink:href")]


def test_hostile_markdown_is_harmless_in_every_state_of_streaming(page: Chrome) -> None:
  """Each prefix is shown, as while it is written, and ends as the whole text does."""
  harmed, same = page.execute_async_script(
      """
    const [text, done] = arguments;
    import("/static/markdown.js").then(({ MarkdownView }) => {
      const one = document.createElement("div"), other = document.createElement("div");
      document.body.append(one, other);
      const view = new MarkdownView(one);
      for (let end = 1; end <= text.length; end += 3) view.update(text.slice(0, end));
      view.update(text);
      new MarkdownView(other).update(text);
      setTimeout(() => { done([window.harmed ?? null, one.isEqualNode(other)]); one.remove(); other.remove(); }, 200);
    });
  """, HOSTILE
  )
  assert harmed is None and same


SLOW = [
    "*a " * 30_000, "[" * 60_000, "`" * 60_000, "$" * 60_000, "> " * 20_000, "- " * 20_000, "_a" * 40_000,
    "**" * 40_000, "# " + "# " * 50_000, "|" * 50_000 + "\n" + "|-" * 20_000, "\\(" * 30_000, "![](" * 20_000,
    "$" + "{" * 4_000 + "$", "```\n" + '"' * 60_000, "<http://" * 10_000, " " * 60_000 + "x", "\n" * 60_000
]


def test_no_text_makes_rendering_slow(page: Chrome) -> None:
  """A deadline, not a measurement: what is quadratic in these takes minutes."""
  page.set_script_timeout(20)
  for text in SLOW:
    assert page.execute_async_script(
        """
      const [text, done] = arguments;
      import("/static/markdown.js").then(({ MarkdownView }) => { new MarkdownView(document.createElement("div")).update(text); done(true); });
    """, text
    ), text[:6]


def test_markdown_code_math_and_thoughts(page: Chrome) -> None:
  answer = show(
      page, """<think>Let me see: **hm**</think># Title
Some *em*, **strong**, ~~gone~~, `code`, [link](https://example.org/a_(b)) and snake_case_name, 2 * 3 * 4.

1. one
2. two
   - nested

> quoted

| a | b |
|:-:|--:|
| 1 | 2 |

```python
def f(x):  # comment
  return "s" + 1
```

Inline $\\frac{a^2}{b_1}$ and \\(x \\le 1\\), a price of $5 and $6, and unknown $\\frobnicate{x}$:

$$\\sum_{i=1}^{n} i = \\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}$$
"""
  )
  find = lambda selector: answer.find_elements(By.CSS_SELECTOR, selector)  # noqa: E731
  assert [e.text for e in find("h3")] == ["Title"] and [e.text for e in find(".body > .markdown > p > em")] == ["em"]
  assert find(".body > .markdown > p > strong")[0].text == "strong" and find("del")[
      0].text == "gone" and find(".body > .markdown > p > code")[0].text == "code"
  assert find("a")[0].get_attribute("href") == "https://example.org/a_(b)"
  paragraph = find(".body > .markdown > p")[0].text
  assert "snake_case_name" in paragraph and "2 * 3 * 4" in paragraph
  assert [e.text.split("\n")[0]
          for e in find(".body > .markdown > ol > li")] == ["one", "two"] and find("ol ul > li")[0].text == "nested"
  assert find("blockquote")[0].text == "quoted" and [e.text for e in find("td")] == ["1", "2"]
  assert [e.text for e in find(".tok-keyword")] == ["def", "return"] and find(".tok-comment")[0].text == "# comment"
  assert find(".tok-string")[0].text == '"s"' and find(".tok-number")[0].text == "1" and find(".tok-call"
                                                                                              )[0].text == "f"
  assert len(find("math")) == 3 and find("mfrac msup") and find("munderover") and len(find("mtd")) == 4
  assert "$5 and $6" in answer.text and find("code.tex")[0].text == "$\\frobnicate{x}$"
  details = find("details.think")[0]
  assert details.find_element(By.TAG_NAME, "summary").text == "Thought" and details.get_attribute("open") is None
  details.find_element(By.TAG_NAME, "summary").click()
  assert find("details.think strong")[0].text == "hm"
  page.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]})
  find(".copy")[0].click()
  until(page, lambda: find(".copy")[0].text == "Copied")
  copied = page.execute_async_script(
      "navigator.clipboard.readText().then(arguments[0], (e) => arguments[0](String(e)))"
  )
  assert copied == 'def f(x):  # comment\n  return "s" + 1'


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
    assert "dummy on none; 0 MB used of" in held and "; dummy 0–3 of 8" in held and "; dummy 4–7 of 8" in held
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


def test_weight_and_first_load(page: Chrome, node: NodeProcess) -> None:
  assert sum(path.stat().st_size for path in WEB_ROOT.iterdir()) < MAX_PAGE_BYTES
  loads = []
  for _ in range(3):  # the best of three: other work on this machine must not fail it
    page.execute_cdp_cmd("Network.clearBrowserCache", {})
    page.get(node.url)
    until(page, lambda: page.execute_script("return performance.getEntriesByName('usable').length"))
    loads.append(page.execute_script("return performance.getEntriesByName('usable')[0].startTime"))
    if loads[-1] < 1000:
      break
  assert min(loads) < 1000, f"usable after {loads} ms"


def test_the_page_is_strict_about_what_it_runs(node: NodeProcess) -> None:
  with urllib.request.urlopen(f"{node.url}/", timeout=5) as response:
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
  conditional = urllib.request.Request(f"{node.url}/", headers={"If-None-Match": etag})
  with pytest.raises(urllib.error.HTTPError) as unchanged:
    urllib.request.urlopen(conditional, timeout=5)
  assert unchanged.value.code == 304
  unchanged.value.close()
  for path in ("/static/../api/page.py", "/static/%2e%2e/static/index.html", "/static/nothing.js", "/static/.hidden"):
    assert node.get(path)[0] == 404
