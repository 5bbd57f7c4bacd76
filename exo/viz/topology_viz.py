"""The terminal view of a node: the ring as it is now above, what happens in it below, and the log."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from rich.console import RenderableType

from exo import log
from exo.orchestration.node import Node
from exo.orchestration.ring_view import ring_view
from exo.viz.canvas import Canvas
from exo.viz.screen import DownloadLine, PromptLine, screen

_REFRESH_S = 0.25
_KEPT_LINES = 500
_SHOWN_PROMPTS = 4


class TopologyViz:
  """Owns the terminal while it runs: log lines go to its lower pane instead of through it."""
  def __init__(self, node: Node, api_url: str, code: Sequence[str] = ()) -> None:
    """`code` is a QR code of the address, as lines."""
    self._node, self._api_url, self._code = node, api_url, code
    self._lines: deque[str] = deque(log.recent(), maxlen=_KEPT_LINES)
    self._canvas = Canvas()

  async def run(self) -> None:
    """Show the ring until cancelled, or until there is no terminal any more."""
    log.set_sink(self._note)
    try:
      while not self._canvas.is_gone:
        self._canvas.show(self._render())
        await asyncio.sleep(_REFRESH_S)
    finally:
      log.set_sink(None)
      await asyncio.to_thread(self._canvas.close)

  def _note(self, line: str) -> None:
    self._lines.extend(line.split("\n"))

  def _render(self) -> RenderableType:
    node, (width, height) = self._node, self._canvas.size
    names = node.names()
    prompts = [
        PromptLine(r.title, r.tail, r.outcome, r.tokens, r.tokens_per_s) for r in node.activity.recent[-_SHOWN_PROMPTS:]
    ]
    downloads = [
        DownloadLine(
            f"{d.model_id} on {names.get(node_id, node_id)}", d.downloaded_bytes, d.total_bytes, d.bytes_per_s, d.left_s
        ) for node_id, of_node in {node.node_id: node.sharing.downloads, **node.sharing.remote_downloads}.items()
        for d in of_node.values() if not d.ended
    ]
    title = f"exo · {self._api_url}"
    return screen(ring_view(node), prompts, downloads, list(self._lines), title, width, height, self._code)
