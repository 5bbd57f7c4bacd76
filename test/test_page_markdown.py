"""What models write, as the page shows it in a real browser: whatever it is, harmless and quick."""

from __future__ import annotations

from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from test.support.page import by_id, show, until

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
  assert len(find("math")) == 4 and find("mfrac msup") and find("munderover") and len(find("mtd")) == 4
  assert "$5 and $6" in answer.text and find("math .unknown")[0].text == "\\frobnicate"
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


FORMULAS = {
    r"\sqrt{x} + \sqrt[3]{\frac{1}{x}}": "msqrt, mroot mfrac",
    r"\left( \frac{\frac{1}{2}}{3} \middle| x \right]": "mo[fence][stretchy=true]",
    r"A \xrightarrow[k_2]{k_1 + 1} B": "munderover mo[stretchy=true]",
    r"A \xleftarrow{a} B": "mover mo[stretchy=true]",
    r"x \stackrel{\text{def}}{=} y": "mover mtext",
    r"\color{red}{x} + \textcolor{#00f}{y} \color{blue} z": "mstyle[mathcolor=red], mstyle[mathcolor='#00f'], mstyle[mathcolor=blue]",
    r"\sum_{\substack{i < n \\ j > 1}} a_{ij}": "munder mtable mtr",
    r"\cancel{5}\bcancel{x}\xcancel{y}": ".cancel, .bcancel, .xcancel",
    r"e = mc^2 \tag{1}": "msup",
    r"\lVert v \rVert_2 \leqslant \left\| w \right\|": "msub",
    r"\mathbb{R} \mathcal{L} \mathbf{v} \mathfrak{g} \boldsymbol{\alpha}": "mi",
    r"\begin{cases} x & \text{if $x > 0$} \\ -x & \text{else} \end{cases}": "mtd.side-l mtext",
    r"\begin{align*} a &= b \\ c &= d \end{align*}": "mtable.pairs mtd.side-r",
    r"\begin{array}{l|r} 1 & 2 \\ \hline 3 & 4 \end{array}": "mtd.side-r",
    r"\operatorname*{argmax}_{x} f(x), \bigl( y \bigr), \widehat{abc}, \overline{AB}": "munder, mo[minsize], .overline",
    r"\underbrace{a+b}_{n} \iff \nexists x'^2 \hspace{1em} \phantom{x}": "munder, mphantom",
}


def test_22_line_9_formulas_are_drawn(page: Chrome) -> None:
  answer = show(page, "\n\n".join(f"$${source}$$" for source in FORMULAS))
  drawn = answer.find_elements(By.TAG_NAME, "math")
  assert len(drawn) == len(FORMULAS) and not answer.find_elements(By.CSS_SELECTOR, ".unknown, code.tex")
  for element, (source, selector) in zip(drawn, FORMULAS.items(), strict=True):
    found = [element.find_elements(By.CSS_SELECTOR, part) for part in selector.split(", ")]
    assert all(found), source
  text = answer.text
  assert "(1)" in text and "ℝ" in text and "ℒ" in text and "𝐯" in text and "𝔤" in text and "𝛂" in text and "‖" in text
  heights = page.execute_script(
      """return [...arguments[0].querySelectorAll("mo[fence], msqrt")].map(e => [e.localName, e.getBoundingClientRect().height])""",
      answer
  )
  stretched = [height for name, height in heights if name == "mo"]
  assert max(stretched) > 2 * min(stretched), "fences stretch to what is between them"


def test_22_line_9_an_unknown_command_is_shown_as_such_and_the_rest_drawn(page: Chrome) -> None:
  answer = show(
      page, "$$\\frac{1}{2} + \\frobnicate{x^2} = \\begin{strange} y \\color{;x:url(//e)}{z}$$ and $\\frac{1}{$"
  )
  (formula, ) = answer.find_elements(By.TAG_NAME, "math")
  assert [e.text for e in formula.find_elements(By.CSS_SELECTOR, ".unknown")] == ["\\frobnicate", "\\begin{strange}"]
  assert formula.find_elements(By.TAG_NAME, "mfrac") and formula.find_elements(By.TAG_NAME, "msup")
  assert not formula.find_elements(By.CSS_SELECTOR, "[mathcolor]")
  assert answer.find_element(By.CSS_SELECTOR, "code.tex").text == "$\\frac{1}{$"


def test_22_line_9_each_text_has_its_own_direction(page: Chrome) -> None:
  answer = show(page, "שלום עולם\n\nhello\n\n- مرحبا\n- item\n\n```\ncode\n```")
  directions = page.execute_script(
      "return [...arguments[0].querySelectorAll('p, li, pre')].map(e => getComputedStyle(e).direction)", answer
  )
  assert directions == ["rtl", "ltr", "rtl", "ltr", "ltr"]
  assert by_id(page, "prompt").get_attribute("dir") == "auto"


def test_22_line_9_light_dark_and_system_themes(page: Chrome) -> None:
  colour = lambda: page.execute_script("return getComputedStyle(document.body).backgroundColor")  # noqa: E731
  light, dark = "rgb(255, 255, 255)", "rgb(21, 25, 28)"
  try:
    for scheme, of_system in (("dark", dark), ("light", light)):
      page.execute_cdp_cmd(
          "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
      )
      for theme, expected in (("light", light), ("dark", dark), ("system", of_system)):
        by_id(page, "open-settings").click()
        Select(by_id(page, "theme")).select_by_value(theme)
        by_id(page, "settings-cancel").click()
        assert colour() == expected, (scheme, theme)
        page.refresh()
        until(page, lambda: "1 node" in by_id(page, "summary").text)
        assert colour() == expected, (scheme, theme)
  finally:
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
