"""What models write, as the page shows it in a real browser: whatever it is, harmless and quick."""

from __future__ import annotations

from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from test.support.page import show, until

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
