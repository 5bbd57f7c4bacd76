"""The terminal view of a node: the ring as it is now above, what happens below."""

from __future__ import annotations

import asyncio
from collections import deque

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from exo import log
from exo.orchestration.node import Node

_REFRESH_S = 0.5
_KEPT_LINES = 200


class TopologyViz:
  """Owns the terminal while it runs: log lines go to its lower pane instead of through it."""
  def __init__(self, node: Node, api_url: str) -> None:
    self._node, self._api_url = node, api_url
    self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
    self._console = Console()

  async def run(self) -> None:
    """Show the ring until cancelled."""
    log.set_sink(self._lines.append)
    try:
      with Live(self._render(), console=self._console, auto_refresh=False, screen=True) as live:
        while True:
          live.update(self._render(), refresh=True)
          await asyncio.sleep(_REFRESH_S)
    finally:
      log.set_sink(None)

  def _render(self) -> Group:
    ring = Panel(self._ring(), title=f"exo · {self._api_url}", border_style="cyan")
    room = max(3, self._console.size.height - len(self._node.topology().nodes) - 8)
    lines = Text("\n".join(list(self._lines)[-room:]), overflow="ellipsis", no_wrap=True)
    return Group(ring, Panel(lines, title="log", border_style="dim", height=room + 2))

  def _ring(self) -> Table:
    node, view, peers = self._node, self._node.topology(), self._node.mesh.peers()
    layers: dict[str, list[str]] = {}
    for plan in node.plans.plans:
      for stage in plan.stages:
        layers.setdefault(stage.node_id,
                          []).append(f"{plan.model_id} {stage.shard.start_layer}-{stage.shard.end_layer}")
    table = Table(expand=True, box=None)
    for title in ("", "node", "device", "memory", "TFLOPS", "engine", "layers", "link"):
      table.add_column(title, overflow="ellipsis", no_wrap=True)
    for node_id, capabilities in view.all_nodes():
      peer = peers.get(node_id)
      link = f"{peer.interface or peer.address} {peer.rtt_ms:.1f} ms" if peer else "this node"
      hello = peer.hello if peer else node.hello
      table.add_row(
          "●" if node_id == view.active_node_id else " ", node_id, f"{capabilities.model}, {capabilities.chip}",
          f"{capabilities.memory / 1024:.1f} GB", f"{capabilities.flops.fp16:g}", hello.engine,
          ", ".join(layers.get(node_id, ["–"])), link
      )
    return table
