"""Issue 21, line 10: the page under a path of a reverse proxy, in a real browser."""

from __future__ import annotations

from pathlib import Path

from test.support.browser import chromium, complaints, requests
from test.support.nodes import NodeProcess
from test.support.page import DUMMY, all_of, ask, by_id, finished, until
from test.support.path_proxy import path_proxy


def test_21_line_10_the_page_works_under_a_path(tmp_path: Path) -> None:
  flags = (*DUMMY, "--discovery-module", "none", "--max-generate-tokens", "50", "--trusted-proxy", "127.0.0.1")
  node = NodeProcess(tmp_path / "home", *flags, node_id="behind")
  try:
    node.wait_ready()
    with path_proxy(node.url, "/exo") as proxy, chromium(tmp_path / "chromium") as browser:
      browser.get(proxy.url)
      until(browser, lambda: "1 node" in by_id(browser, "summary").text)
      ask(browser, "hello")
      finished(browser)
      assert len(all_of(browser, "article.assistant")) == 1 and all_of(browser, "article.assistant")[0].text
      assert not complaints(browser)
      asked = [url for url in requests(browser) if url.startswith("http")]
      assert asked and all(url.startswith(proxy.url) for url in asked), asked
  finally:
    node.stop()
