"""Takes the README's pictures anew from a real run: two nodes here, a question on the page, its terminal in tmux.

python scripts/pictures.py   (needs chromium, chromedriver and tmux; EXO_TEST_HOME as the tests)
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from test.support.browser import chromium  # noqa: E402
from test.support.nodes import NodeProcess, free_port, wait_until  # noqa: E402

QUESTION = "Write a short story about the sea, with a list of three animals in it."
COLUMNS, ROWS = 100, 26


def tmux(socket_path: str, *arguments: str, home: Path) -> str:
  environment = os.environ | {"EXO_HOME": str(home), "DEBUG": "1", "LC_ALL": "C.UTF-8", "PYTHONPATH": str(ROOT)}
  return subprocess.run(["tmux", "-S", socket_path, *arguments],
                        capture_output=True,
                        text=True,
                        check=False,
                        cwd=ROOT,
                        env=environment).stdout


def terminal_page(ansi: str) -> str:
  """The terminal's cells as HTML with their colours."""
  console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True, color_system="truecolor")
  console.print(Text.from_ansi(ansi), soft_wrap=True)
  body = console.export_html(theme=MONOKAI, inline_styles=True, code_format="<pre>{code}</pre>")
  style = "body{margin:0}pre{display:inline-block;margin:0;padding:14px;background:#0c0c0c;color:#d9d9d9;font:14px/17px 'DejaVu Sans Mono',monospace}"
  return f"<!doctype html><meta charset=utf-8><style>{style}</style>{body}"


def main() -> None:
  home = Path(os.environ.get("EXO_TEST_HOME", ROOT / ".test-home"))
  port = str(free_port(socket.SOCK_DGRAM))
  beacons = ("--listen-port", port, "--broadcast-port", port)
  with tempfile.TemporaryDirectory() as scratch:
    socket_path = str(Path(scratch) / "tmux")
    command = f"{sys.executable} -m exo --node-id desk --chatgpt-api-port 0 {' '.join(beacons)}"
    tmux(socket_path, "new-session", "-d", "-s", "v", "-x", str(COLUMNS), "-y", str(ROWS), command, home=home)
    laptop = NodeProcess(home, *beacons, node_id="laptop")
    try:
      laptop.wait_ready()
      desk = wait_until(lambda: next((url for url in urls(home, "desk")), None), 30, "the desk's API")
      wait_until(lambda: laptop.peers() == {"desk", "laptop"}, 20, "a ring of two")
      laptop.chat("hello", max_tokens=2)
      with chromium(Path(scratch) / "profile") as browser:
        browser.set_window_size(1400, 900)
        browser.get(desk)
        time.sleep(1)
        browser.find_element(By.ID, "prompt").send_keys(QUESTION, Keys.ENTER)
        time.sleep(2.5)
        (ROOT / "docs" / "page.png").write_bytes(browser.get_screenshot_as_png())
        ansi = tmux(socket_path, "capture-pane", "-e", "-p", "-t", "v", home=home)
        page = Path(scratch) / "terminal.html"
        page.write_text(terminal_page(ansi))
        browser.get(page.as_uri())
        (ROOT / "docs" / "terminal.png").write_bytes(browser.find_element(By.TAG_NAME, "pre").screenshot_as_png)
    finally:
      laptop.stop()
      tmux(socket_path, "send-keys", "-t", "v", "C-c", home=home)
      time.sleep(2)
      tmux(socket_path, "kill-server", home=home)


def urls(home: Path, node_id: str) -> list[str]:
  files = [json.loads(path.read_text()) for path in (home / ".exo" / "nodes").glob("*.json")]
  return [f"http://127.0.0.1:{info['api_port']}" for info in files if info["node_id"] == node_id]


if __name__ == "__main__":
  main()
