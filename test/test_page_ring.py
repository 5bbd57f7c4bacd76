"""Issue 22, line 10: the ring on the page, from one node to forty, in a real browser."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from test.support.browser import AXE, IS_INSTALLED, violations
from test.support.nodes import NodeProcess
from test.support.page import all_of, ask, button, by_id, finished, until

if not IS_INSTALLED:
  pytest.skip("chromium and chromedriver are not installed (scripts/test-deps.sh)", allow_module_level=True)

# what the node says of its ring is multiplied before the page reads it: forty processes are too many for a test
MULTIPLIED = """
  const original = window.fetch;
  window.fetch = async (path, options) => {
    const response = await original(path, options);
    if (!String(path).includes("topology/stream")) return response;
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    const multiplied = (text) => text.replace(/^data: (.*)$/gm, (_, json) => {
      const state = JSON.parse(json), [id] = Object.keys(state.nodes), one = state.nodes[id], nodes = {};
      for (let i = 0; i < COUNT; i += 1) {
        const shard = { start_layer: i, end_layer: i, n_layers: COUNT, model: "m" };
        const name = i % 3 ? "host-" + i : "a-rather-long-host-name-" + i;
        nodes[i ? "node" + i : id] = { ...one, name, layers: [shard], load: i / COUNT, chip: i % 2 ? "Chip A" : "Chip B" };
      }
      const ids = Object.keys(nodes);
      const stages = ids.map((node_id, i) => ({ node_id, worker: "cpu", start_layer: i, end_layer: i, n_layers: COUNT }));
      const links = ids.slice(1).map((node_id) => ({ nodes: [id, node_id], rtt_ms: 1.5, interface: "eth0" }));
      return "data: " + JSON.stringify({ ...state, nodes, rings: [{ model: "m", stages }], links });
    });
    const out = new ReadableStream({ async pull(controller) {
      const { done, value } = await reader.read();
      if (done) controller.close(); else controller.enqueue(new TextEncoder().encode(multiplied(value)));
    } });
    return new Response(out, { headers: response.headers });
  };
"""


@pytest.fixture
def sized(page: Chrome, page_node: NodeProcess) -> Iterator[Any]:
  """Opens the page with a ring of so many nodes, in a window of some width."""
  added = []

  def open_page(count: int, width: int = 1400) -> None:
    for old in added:
      page.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", {"identifier": old})
    added.clear()
    source = MULTIPLIED.replace("COUNT", str(count))
    added.append(page.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": source})["identifier"])
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    )
    page.get(page_node.url)
    until(page, lambda: f"{count} node" in by_id(page, "summary").get_attribute("textContent"))
    if width < 1216:
      by_id(page, "toggle-side").click()

  yield open_page
  for old in added:
    page.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", {"identifier": old})
  page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def boxes(page: Chrome, selector: str) -> list[dict[str, float]]:
  return page.execute_script(  # type: ignore[no-any-return]
      "return [...document.querySelectorAll(arguments[0])].map(e => e.getBoundingClientRect().toJSON())", selector
  )


def overlap(a: dict[str, float], b: dict[str, float]) -> bool:
  return a["left"] < b["right"] and b["left"] < a["right"] and a["top"] < b["bottom"] and b["top"] < a["bottom"]


@pytest.mark.parametrize("width", [320, 1400])
def test_22_line_10_every_node_can_be_read_from_one_to_thirty(page: Chrome, sized: Any, width: int) -> None:
  for count in (1, 2, 3, 6, 7, 13, 30):
    sized(count, width)
    until(page, lambda count=count: len(all_of(page, "#picture [data-node]")) == count)
    names, picture = boxes(page, "#picture .name"), boxes(page, "#picture")[0]
    assert len(names) == count
    crossing = [(a, b) for a, b in itertools.combinations(names, 2) if overlap(a, b)]
    assert not crossing, (count, crossing)
    outside = [b for b in names if b["left"] < picture["left"] - 1 or b["right"] > picture["right"] + 1]
    assert not outside, (count, outside)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width


def test_22_line_10_beyond_thirty_there_are_groups(page: Chrome, sized: Any) -> None:
  sized(40)
  until(page, lambda: len(all_of(page, "#nodes > details[data-group]")) == 2)
  assert not by_id(page, "picture").is_displayed()
  groups = [e.text for e in all_of(page, "#nodes > details > summary")]
  assert [g.split(",")[0] for g in groups] == ["20 × Chip B", "20 × Chip A"] and all("% busy" in g for g in groups)
  page.find_element(By.CSS_SELECTOR, "#nodes > details > summary").click()
  assert len([e for e in all_of(page, "#nodes [data-node] > summary") if e.is_displayed()]) == 20


def test_22_line_10_a_click_opens_a_nodes_page(page: Chrome, page_node: NodeProcess) -> None:
  ask(page, "count")
  finished(page)
  until(page, lambda: all_of(page, "#picture [data-node]"))
  until(page, lambda: page.find_element(By.CSS_SELECTOR, "#picture [data-node] .mark").click() or True)
  dialog = by_id(page, "node-page")
  until(page, dialog.is_displayed)
  text = by_id(page, "node-facts").text
  assert page_node.node_id in text and "Version" in text and "Worker" in text and "dummy" in text and "Load" in text
  until(page, lambda: len(by_id(page, "node-log").text) > 20)
  status, answer = page_node.get("/v1/log")
  assert status == 200 and answer["data"] and answer["node_id"] == page_node.node_id
  assert answer["data"][-1].split("] ")[-1][:20] in by_id(page, "node-log").text
  if AXE.is_file():
    assert violations(page) == []
  by_id(page, "node-close").click()
  until(page, lambda: not dialog.is_displayed())
  button(page, "#nodes", "Page of this node").click()
  until(page, dialog.is_displayed)
  by_id(page, "node-close").click()


def test_22_line_10_another_nodes_page_says_where_its_log_is(page: Chrome, sized: Any) -> None:
  sized(3)
  until(page, lambda: page.find_element(By.CSS_SELECTOR, "#picture [data-node='node2'] .mark").click() or True)
  until(page, lambda: by_id(page, "node-title").text == "host-2")
  assert "1.5 ms over eth0" in by_id(page, "node-facts").text
  assert "on its own page" in by_id(page, "node-log").text


def test_22_line_10_the_log_is_for_admins(page_node: NodeProcess) -> None:
  import urllib.error
  import urllib.request

  request = urllib.request.Request(f"{page_node.url}/v1/log", headers={"X-Forwarded-For": "192.0.2.1"})
  with pytest.raises(urllib.error.HTTPError) as refused:
    urllib.request.urlopen(request, timeout=5)
  with refused.value as answer:
    assert answer.code == 403 and "admins" in json.load(answer)["error"]["message"]
