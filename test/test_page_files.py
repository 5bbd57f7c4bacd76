"""Issue 22, line 11: files that go with a question, in a real browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from test.support.browser import IS_INSTALLED
from test.support.page import all_of, ask, by_id, finished, settle, stored, until, with_field
from test.support.pdfs import pdf

if not IS_INSTALLED:
  pytest.skip("chromium and chromedriver are not installed (scripts/test-deps.sh)", allow_module_level=True)


def attach(page: Chrome, *files: Path) -> None:
  by_id(page, "attach-file").send_keys("\n".join(str(file) for file in files))


def attached(page: Chrome) -> list[str]:
  return [e.text.removesuffix("\n×") for e in all_of(page, "#attached li")]


def test_22_line_11_text_code_and_pdf_go_with_a_question(page: Chrome, tmp_path: Path) -> None:
  code, paper = tmp_path / "f.py", tmp_path / "paper.pdf"
  code.write_text('def f():\n  """Has ```ticks```."""\n')
  paper.write_bytes(pdf(["A paper about rings", "Its second page"], packed=True))
  settle(page, max_tokens="3")
  with_field(page, "user", "test")
  attach(page, code, paper)
  until(page, lambda: attached(page) == ["f.py, 34 B", "paper.pdf, 36 B"])
  ask(page, "What is this?")
  finished(page)
  body = page.execute_script("return window.sent.at(-1)")
  assert body["messages"][-1]["content"] == (
      'f.py:\n\n````\ndef f():\n  """Has ```ticks```."""\n````\n\n'
      "paper.pdf:\n\n```\nA paper about rings\n\nIts second page\n```\n\nWhat is this?"
  )
  assert not attached(page) and stored(page)[0]["title"] == "What is this?"
  folded = all_of(page, "article.user details.attached")
  assert [f.find_element(By.TAG_NAME, "summary").text
          for f in folded] == ["f.py, 34 B of text", "paper.pdf, 36 B of text"]
  page.refresh()
  until(page, lambda: len(all_of(page, "article.user details.attached")) == 2)


def test_22_line_11_what_was_too_long_or_is_no_text_is_said(page: Chrome, tmp_path: Path) -> None:
  files = {
      "long.txt": b"word " * 50_000, "picture.png": b"\x89PNG\r\n\x1a\n\0\0\0", "empty.txt": b" \n",
      "scan.pdf": pdf([""]), "broken.pdf": b"%PDF-1.7 and nothing more", "wide.txt": "große Ringe".encode("utf-16")
  }
  for name, data in files.items():
    (tmp_path / name).write_bytes(data)
  attach(page, tmp_path / "long.txt")
  until(page, lambda: attached(page))
  assert "cut: the first 200,000 of 250,000 characters are sent" in attached(page)[0]
  page.find_element(By.CSS_SELECTOR, "[aria-label='Remove long.txt']").click()
  assert not attached(page)
  for name, words in (("picture.png", "no text and no PDF"), ("empty.txt", "no text in it"),
                      ("scan.pdf", "pages are pictures"), ("broken.pdf", "damaged")):
    attach(page, tmp_path / name)
    until(page, lambda name=name, words=words: name in by_id(page, "toast").text and words in by_id(page, "toast").text)
  assert not attached(page) and by_id(page, "send").is_enabled()
  attach(page, tmp_path / "wide.txt")
  until(page, lambda: attached(page) == ["wide.txt, 11 B"])
  attach(page, *[tmp_path / "wide.txt"] * 1)
  until(page, lambda: len(attached(page)) == 2)
  page.get_log("browser")  # the browser's own lines of what the node refused


def test_22_line_11_files_are_dropped_and_pasted(page: Chrome) -> None:
  page.execute_script(
      """
    const data = new DataTransfer();
    data.items.add(new File(["dropped words"], "drop.md"));
    document.querySelector("main").dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
    const pasted = new DataTransfer();
    pasted.items.add(new File(["pasted words"], "paste.md"));
    document.getElementById("prompt").dispatchEvent(new ClipboardEvent("paste", { clipboardData: pasted, bubbles: true, cancelable: true }));
  """
  )
  until(page, lambda: sorted(attached(page)) == ["drop.md, 13 B", "paste.md, 12 B"])
