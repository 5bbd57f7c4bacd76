"""Issue 22, line 7: conversations on the page, in a real browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from test.support.browser import IS_INSTALLED
from test.support.nodes import NodeProcess, wait_until
from test.support.page import all_of, ask, button, by_id, finished, set_field, settle, stored, until, with_field

if not IS_INSTALLED:
  pytest.skip("chromium and chromedriver are not installed (scripts/test-deps.sh)", allow_module_level=True)


def names(page: Chrome) -> list[str]:
  return [e.text for e in all_of(page, ".chat-name")]


def questions(page: Chrome) -> list[str]:
  return [e.text for e in all_of(page, "article.user .typed")]


def downloads(page: Chrome, folder: Path) -> None:
  page.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})


def downloaded(folder: Path, name: str) -> str:
  wait_until((folder / name).exists, 10, f"the export {name}")
  return (folder / name).read_text()


def test_22_line_7_each_chat_has_a_key_and_tabs_share_them(page: Chrome, page_node: NodeProcess) -> None:
  settle(page, max_tokens="5")
  ask(page, "from the first tab")
  finished(page)
  first = page.current_window_handle
  page.switch_to.new_window("tab")
  try:
    page.get(page_node.url)
    until(page, lambda: questions(page) == ["from the first tab"])
    ask(page, "from the second tab")
    finished(page)
    by_id(page, "new-chat").click()
    ask(page, "another chat")
    finished(page)
    page.switch_to.window(first)
    until(page, lambda: names(page) == ["another chat", "from the first tab"])
    until(page, lambda: questions(page) == ["from the first tab", "from the second tab"])
    ask(page, "and once more")  # a tab that knew less would have written over what the other one said
    finished(page)
    kept = {c["title"]: [m["content"] for m in c["shown"] if m["role"] == "user"] for c in stored(page)}
    assert kept == {
        "from the first tab": ["from the first tab", "from the second tab", "and once more"],
        "another chat": ["another chat"]
    }
    page.find_element(By.CSS_SELECTOR, "[aria-label='Delete “another chat”']").click()
  finally:
    page.switch_to.window(next(handle for handle in page.window_handles if handle != first))
    until(page, lambda: names(page) == ["from the first tab"])
    page.close()
    page.switch_to.window(first)


def test_22_line_7_conversations_of_the_version_before_are_adopted(page: Chrome) -> None:
  old = [{
      "id": "old", "title": "of before", "changed": 5, "messages": [{"role": "user", "content": "kept?"},
                                                                    {"role": "assistant", "content": "yes"}]
  }]
  page.execute_script("localStorage.setItem('exo.conversations', arguments[0])", json.dumps(old))
  page.refresh()
  until(page, lambda: "of before" in names(page))
  assert page.execute_script("return localStorage.getItem('exo.conversations')") is None
  assert [m["content"] for m in stored(page)[0]["shown"]] == ["kept?", "yes"]


def test_22_line_7_deleting_is_undone(page: Chrome) -> None:
  settle(page, max_tokens="5")
  ask(page, "not this one")
  finished(page)
  page.find_element(By.CSS_SELECTOR, "[aria-label='Delete “not this one”']").click()
  until(page, lambda: stored(page) == [] and not all_of(page, "article"))
  assert "is deleted" in by_id(page, "toast").text
  button(page, "#toast", "Undo").click()
  until(page, lambda: names(page)[:1] == ["not this one"] and questions(page) == ["not this one"])
  assert len(stored(page)[0]["shown"]) == 2 and by_id(page, "toast").text == ""


def test_22_line_7_editing_and_asking_again_keep_what_was_there(page: Chrome) -> None:
  settle(page, max_tokens="8", temperature="1")
  ask(page, "first")
  finished(page)
  ask(page, "second")
  finished(page)
  button(page, "article:nth-of-type(1)", "Edit").click()
  page.find_element(By.CSS_SELECTOR, "form.edit textarea").send_keys(" anew")
  page.find_element(By.CSS_SELECTOR, "form.edit button[type=submit]").click()
  finished(page)
  assert questions(page) == ["first anew"] and page.find_element(By.CSS_SELECTOR, ".versions").text == "‹\n2/2\n›"
  page.find_element(By.CSS_SELECTOR, "[aria-label='Version before']").click()
  until(page, lambda: questions(page) == ["first", "second"])
  button(page, "article:nth-of-type(4)", "Regenerate").click()
  finished(page)
  page.refresh()
  until(page, lambda: questions(page) == ["first", "second"])
  assert [e.text.replace("\n", " ") for e in all_of(page, ".versions")] == ["‹ 1/2 ›", "‹ 2/2 ›"]
  page.find_element(By.CSS_SELECTOR, "[aria-label='Next version']:enabled").send_keys(Keys.ENTER)
  until(page, lambda: questions(page) == ["first anew"])
  assert page.switch_to.active_element.get_attribute("aria-label") == "Version before"
  assert len(stored(page)[0]["messages"]) == 7


def test_22_line_7_renaming_and_searching(page: Chrome) -> None:
  settle(page, max_tokens="5")
  for text in ("about apples", "about pears"):
    by_id(page, "new-chat").click()
    ask(page, text)
    finished(page)
  page.find_element(By.CSS_SELECTOR, "[aria-label='Rename “about apples”']").click()
  page.switch_to.active_element.send_keys("Fruit of autumn", Keys.ENTER)
  until(page, lambda: "Fruit of autumn" in names(page))
  assert page.switch_to.active_element.get_attribute("aria-label") == "Rename “Fruit of autumn”"
  page.find_element(By.CSS_SELECTOR, "[aria-label='Rename “about pears”']").click()
  page.switch_to.active_element.send_keys("thrown away", Keys.ESCAPE)
  until(page, lambda: "about pears" in names(page))
  set_field(page, "chat-search", "autumn fruit")
  until(page, lambda: names(page) == ["Fruit of autumn"])
  set_field(page, "chat-search", "APPLES")  # in a message
  until(page, lambda: names(page) == ["Fruit of autumn"])
  set_field(page, "chat-search", "nowhere")
  until(page, lambda: by_id(page, "no-chats").is_displayed())
  assert {c["title"] for c in stored(page)} == {"Fruit of autumn", "about pears"}


def test_22_line_7_export_and_import(page: Chrome, tmp_path: Path) -> None:
  downloads(page, tmp_path)
  settle(page, max_tokens="5")
  by_id(page, "open-chat-settings").click()
  set_field(page, "set-system", "Be brief.")
  page.find_element(By.CSS_SELECTOR, "#settings button[type=submit]").click()
  ask(page, "<!-- exo:user -->\nis no mark")  # Enter sends the first line
  finished(page)
  before = stored(page)[0]
  title = before["title"]
  by_id(page, "export").click()
  everything = downloaded(tmp_path, "exo conversations.json")
  by_id(page, "export-chat").click()
  name = next(iter(wait_until(lambda: list(tmp_path.glob("*.md")), 10, "the Markdown"))).name
  markdown = (tmp_path / name).read_text()
  assert "## You" in markdown and "Be brief." in markdown and "\\<!-- exo:user -->" in markdown
  page.execute_script("localStorage.clear(); sessionStorage.clear()")
  page.refresh()
  until(page, lambda: "1 node" in by_id(page, "summary").text and not all_of(page, "article"))
  box = by_id(page, "import-file")
  box.send_keys(str(tmp_path / "exo conversations.json"))
  until(page, lambda: names(page) == [title])
  again = stored(page)[0]
  assert [m["content"] for m in again["shown"]] == [m["content"] for m in before["shown"]]
  assert again["settings"] == {"system": "Be brief."} and json.loads(everything)["version"] == 2
  box.send_keys(str(tmp_path / name))
  until(page, lambda: len(stored(page)) == 2)
  for conversation in stored(page):
    assert [m["content"] for m in conversation["shown"]] == [m["content"].strip() for m in before["shown"]]
    assert conversation["settings"] == {"system": "Be brief."}
  plain = tmp_path / "of another.md"
  plain.write_text("# Of another\n\n## User\n\nHello\n\n## Assistant\n\nHi there\n")
  box.send_keys(str(plain))
  until(page, lambda: questions(page) == ["Hello"])
  (tmp_path / "broken.json").write_text('{"format": ')
  box.send_keys(str(tmp_path / "broken.json"))
  until(page, lambda: "is damaged" in by_id(page, "toast").text)
  (tmp_path / "none.txt").write_text("Nothing of the kind")
  box.send_keys(str(tmp_path / "none.txt"))
  until(page, lambda: "has no conversation in it" in by_id(page, "toast").text)


def test_22_line_7_a_chat_has_its_own_system_prompt_and_parameters(page: Chrome) -> None:
  settle(page, max_tokens="6", temperature="0", system="For all.")
  with_field(page, "user", "test")
  by_id(page, "open-chat-settings").click()
  assert by_id(page, "set-temperature").get_attribute("placeholder") == "0" and not by_id(page, "theme").is_displayed()
  set_field(page, "set-system", "For this one.")
  set_field(page, "set-temperature", "1.5")
  page.find_element(By.CSS_SELECTOR, "#settings button[type=submit]").click()
  ask(page, "one")
  finished(page)
  by_id(page, "new-chat").click()
  ask(page, "two")
  finished(page)
  one, two = page.execute_script("return window.sent")
  assert one["messages"][0]["content"] == "For this one." and (one["temperature"], one["max_tokens"]) == (1.5, 6)
  assert two["messages"][0]["content"] == "For all." and (two["temperature"], two["max_tokens"]) == (0, 6)


def test_22_line_7_what_was_cut_says_so_and_goes_on(page: Chrome) -> None:
  settle(page, max_tokens="12", seed="5", temperature="1")
  with_field(page, "ignore_eos", True)
  ask(page, "go on")
  finished(page)
  stats = page.find_element(By.CSS_SELECTOR, "article.assistant .stats")
  assert "cut at the most tokens" in stats.text and by_id(page, "status").text == "The answer was cut"
  before = stored(page)[0]["shown"][1]["content"]
  button(page, "article.assistant", "Continue").click()
  finished(page)
  after = stored(page)[0]["shown"]
  assert len(after) == 2 and after[1]["content"].startswith(before) and len(after[1]["content"]) > len(before)
  assert page.execute_script("return window.sent.at(-1)")["continue_final_message"] is True


def endless(page: Chrome) -> None:
  settle(page, temperature="1.5", seed="3", max_tokens="3000")
  with_field(page, "ignore_eos", True)


def length(page: Chrome) -> int:
  return len(page.execute_script("return document.querySelector('article.assistant .markdown')?.textContent ?? ''"))


def test_22_line_7_an_answer_goes_on_while_another_chat_is_open(page: Chrome) -> None:
  endless(page)
  ask(page, "a long one")
  until(page, lambda: length(page) > 50)
  by_id(page, "new-chat").click()
  until(page, lambda: not all_of(page, "article"))
  assert by_id(page, "send").is_enabled() and not by_id(page, "stop").is_enabled()
  until(page, lambda: all_of(page, ".busy-mark"))
  ask(page, "a second one beside it")
  until(page, lambda: length(page) > 50)
  by_id(page, "stop").click()
  finished(page)
  page.execute_script(
      "[...document.querySelectorAll('.chat-name')].find(b => b.textContent.includes('a long one')).click()"
  )
  until(page, lambda: all_of(page, "article.assistant.running"))
  before = length(page)
  until(page, lambda: length(page) > before + 50)
  assert by_id(page, "stop").is_enabled()
  by_id(page, "stop").click()
  finished(page)
  assert by_id(page, "status").text == "Stopped" and not all_of(page, ".busy-mark")


def test_22_line_7_an_answer_goes_on_over_a_reload(page: Chrome) -> None:
  endless(page)
  ask(page, "a long one")
  until(page, lambda: length(page) > 50)
  page.refresh()
  until(page, lambda: all_of(page, "article.assistant.running"))
  before = length(page)
  assert before > 50
  until(page, lambda: length(page) > before + 50)
  text = page.execute_script("return document.querySelector('article.assistant .markdown').textContent")
  button(page, "#form", "Stop").click()
  finished(page)
  (body, ) = [c for c in stored(page) if c["title"] == "a long one"]
  assert body["shown"][1]["stopped"] and "run" not in body["shown"][1] and len(text) > before


def test_22_line_7_an_answer_that_ended_meanwhile_is_whole_after_a_reload(page: Chrome, page_node: NodeProcess) -> None:
  fields = {"seed": 3, "temperature": 1.5, "max_tokens": 1500, "ignore_eos": True}
  settle(page, temperature="1.5", seed="3", max_tokens="1500")
  with_field(page, "ignore_eos", True)
  ask(page, "a long one")
  until(page, lambda: length(page) > 20)
  page.get("about:blank")
  expected = page_node.chat("a long one", **fields)[1]["choices"][0]["message"]["content"]
  page.get(page_node.url)
  finished(page)
  until(page, lambda: stored(page)[0]["shown"][1].get("cut"))
  assert stored(page)[0]["shown"][1]["content"] == expected and len(expected) > 500


def test_22_line_7_what_the_node_keeps_no_more_is_said(page: Chrome) -> None:
  for content, where in (("so far", ".stats"), ("", ".error")):
    message = {"role": "assistant", "content": content, "run": {"id": "chatcmpl-gone", "last": 3, "tab": "x"}}
    conversation = {"id": "c", "title": "t", "changed": 1, "messages": [{"role": "user", "content": "q"}, message]}
    page.execute_script(
        "localStorage.setItem('exo.chat.c', arguments[0]); sessionStorage.setItem('exo.current', 'c')",
        json.dumps(conversation)
    )
    page.refresh()
    told = until(page, lambda where=where: page.find_element(By.CSS_SELECTOR, f"article.assistant {where}"))
    until(page, lambda told=told: "lost" in told.text and "ten minutes" in told.text)
  page.get_log("browser")  # the browser's own lines of a 404


def test_22_line_7_stopping_on_a_switch_is_for_who_asks_for_it(page: Chrome) -> None:
  by_id(page, "open-settings").click()
  by_id(page, "set-stop").click()
  page.find_element(By.CSS_SELECTOR, "#settings button[type=submit]").click()
  endless(page)
  ask(page, "a long one")
  until(page, lambda: length(page) > 50)
  by_id(page, "new-chat").click()
  until(page, lambda: stored(page)[0]["shown"][1].get("stopped"))
  assert not all_of(page, ".busy-mark")


def test_22_line_7_a_full_browser_is_said_and_loses_nothing(page: Chrome) -> None:
  settle(page, max_tokens="5")
  ask(page, "kept")
  finished(page)
  page.execute_script(
      """for (let size = 1 << 22; size >= 1;) {
        try { localStorage.setItem("other" + size + Math.random(), "x".repeat(size)); } catch { size >>= 1; }
      }"""
  )
  ask(page, "no room for this")
  finished(page)
  until(page, lambda: "has no room" in by_id(page, "toast").text)
  assert stored(page)[0]["shown"][0]["content"] == "kept" and len(questions(page)) == 2
