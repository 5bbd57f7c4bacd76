"""What the terminal view shows, as lines of text for a given size: pure, from what is known at one moment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from exo.log import escape
from exo.orchestration.ring_view import LinkView, NodeView, RingView
from exo.sizes import shown_bytes, shown_mb, shown_seconds

WIDE = 160  # columns from which a node takes one line
_LEAST_LOG = 3
_LEAST_BESIDE = 40  # columns of the log beside a code
_RICH_TFLOPS, _POOR_TFLOPS = 1000.0, 0.1
_HEAT = ("dim", "green", "yellow", "dark_orange", "red")


@dataclass(frozen=True, slots=True)
class PromptLine:
  """A request of this node's clients: its question, what was said last, and its speed."""
  question: str
  answer: str
  outcome: str
  tokens: int
  tokens_per_s: float


@dataclass(frozen=True, slots=True)
class DownloadLine:
  """Bytes; `total` 0 and `left_s` None while unknown."""
  model_id: str
  downloaded: int
  total: int
  bytes_per_s: float = 0.0
  left_s: float | None = None


def screen(
    view: RingView,
    prompts: Sequence[PromptLine],
    downloads: Sequence[DownloadLine],
    log_lines: Sequence[str],
    title: str,
    width: int,
    height: int,
    code: Sequence[str] = ()
) -> RenderableType:
  """Everything, in exactly `height` lines: the ring above, what happens in it, and the log in what is left; beside it a QR code, where it
  has room.
  """
  budget = height - (_LEAST_LOG + 2) - 3  # the log's and the ring's frames, and the bar
  activity = [*(_download(d, width - 4) for d in downloads), *(_prompt(p, width - 4) for p in reversed(prompts))]
  per_node = 1 if width >= WIDE else 3
  ring_lines = _ring_height(view, per_node)
  activity = activity[:max(2, min(6, budget - ring_lines))]
  shown = max(1, (budget - len(activity) - (2 if activity else 0)) // per_node)
  nodes = _in_ring_order(view)
  ring = _wide_ring(view, nodes[:shown]) if per_node == 1 else _narrow_ring(view, nodes[:shown], width - 4)
  used = len(nodes[:shown]) if per_node == 1 else len(_narrow_lines(view, nodes[:shown], width - 4))
  parts: list[RenderableType] = [ring]
  if len(nodes) > shown:
    parts.append(Text(f"… and {len(nodes) - shown} more", style="dim"))
    used += 1
  parts.append(_power(view, width - 4))
  panels: list[RenderableType] = [Panel(Group(*parts), title=title, border_style="cyan", height=used + 3)]
  taken = used + 3
  if activity:
    panels.append(Panel(Group(*activity), title="prompts and downloads", border_style="dim", height=len(activity) + 2))
    taken += len(activity) + 2
  room = max(1, height - taken - 2)
  lines = Text("\n".join(list(log_lines)[-room:]), overflow="ellipsis", no_wrap=True)
  panels.append(_beside(Panel(lines, title="log", border_style="dim", height=room + 2), code, width, room))
  return Group(*panels)


def _beside(log: Panel, code: Sequence[str], width: int, room: int) -> RenderableType:
  columns = max(map(len, code), default=0)
  if not code or room + 2 < len(code) or width - columns < _LEAST_BESIDE:
    return log
  table = Table.grid(expand=True)
  table.add_column(ratio=1)
  table.add_column(width=columns)
  table.add_row(log, Text("\n".join(code), "bright_white on black", no_wrap=True))
  return table


def _ring_height(view: RingView, per_node: int) -> int:
  return len(view.nodes) * per_node


def _in_ring_order(view: RingView) -> list[NodeView]:
  staged = [stage.node_id for chain in view.chains for stage in chain.stages]
  by_id = {node.node_id: node for node in view.nodes}
  order = dict.fromkeys([*staged, *by_id])
  return [by_id[node_id] for node_id in order if node_id in by_id]


def _link(view: RingView, one: NodeView, other: NodeView) -> LinkView | None:
  pair = {one.node_id, other.node_id}
  return next((link for link in view.links if set(link.node_ids) == pair), None)


def _edge(link: LinkView | None) -> str:
  if link is None:
    return "no link known"
  rtt = f"{link.rtt_ms:.1f} ms" if link.rtt_ms else "… ms"
  return f"{rtt} {link.interface}".rstrip()


def _name(view: RingView, node: NodeView) -> Text:
  mark = "●" if node.node_id == view.active_node_id else "○"
  text = Text.assemble((f"{mark} ", "green" if mark == "●" else "dim"), (escape(node.name), "bold"))
  return text.append(" this node", "cyan") if node.is_here else text


def _memory(node: NodeView, cells: int) -> Text:
  part = node.used_mb / node.memory_mb if node.memory_mb else 0.0
  return _bar(part,
              cells).append(f" {shown_mb(node.used_mb)} of {shown_mb(node.memory_mb)}, {shown_mb(node.free_mb)} free")


def _bar(part: float, cells: int) -> Text:
  full = min(cells, math.ceil(part * cells)) if part > 0 else 0
  return Text.assemble(("━" * full, "green"), ("━" * (cells - full), "grey35"))


def _load(node: NodeView) -> Text:
  return Text(f"load {node.load * 100:3.0f} %", style=_HEAT[min(4, math.ceil(node.load * 4))])


def _layers(node: NodeView) -> str:
  several = len(node.workers) > 1
  held = ", ".join(
      f"{escape(s.model_id)} {s.start_layer}-{s.end_layer}" + (f" on {worker.name}" if several else "")
      for worker in node.workers for s in worker.shards
  )
  sick = "; ".join(
      escape((f"{a.worker} " if several else "") + f"cannot run {a.model_id}: {a.reason}") for a in node.ailments
  )
  broken = "; ".join(
      escape(f"{worker.name}: {worker.problem}") for worker in node.workers if several and worker.problem
  )
  loading = ", ".join(
      escape(f"loading {model_id} {done:.0%}" + (f" on {worker.name}" if several else "")) for worker in node.workers
      for model_id, done in worker.loading
  )
  return "; ".join(part for part in (broken, sick, loading, held) if part) or "no layers"


def _device(node: NodeView) -> str:
  flops = node.capabilities.flops.fp16
  return escape(f"{node.capabilities.model}, {node.capabilities.chip}") + (f", {flops:g} TFLOPS" if flops else "")


def _engine(node: NodeView) -> str:
  return escape(f"{node.engine} on {node.device}")


def _narrow_lines(view: RingView, nodes: Sequence[NodeView], width: int) -> list[Text]:
  lines: list[Text] = []
  for i, node in enumerate(nodes):
    lines.append(_name(view, node).append(f"  {_device(node)}  {_engine(node)}"))
    lines.append(
        Text("  ").append_text(_memory(node, 8)).append("  ").append_text(_load(node)).append(f"  {_layers(node)}")
    )
    if i + 1 < len(nodes):
      lines.append(Text(f"  ↓ {_edge(_link(view, node, nodes[i + 1]))}", style="dim"))
    elif len(nodes) > 2:
      lines.append(Text(f"  ↺ {_edge(_link(view, node, nodes[0]))} to {escape(nodes[0].name)}", style="dim"))
  for line in lines:
    line.truncate(width, overflow="ellipsis")
  return lines


def _narrow_ring(view: RingView, nodes: Sequence[NodeView], width: int) -> RenderableType:
  return Group(*_narrow_lines(view, nodes, width))


def _wide_ring(view: RingView, nodes: Sequence[NodeView]) -> RenderableType:
  table = Table.grid(padding=(0, 2), expand=True)
  for ratio in (2, 3, 4, 2, 1, 3, 2):
    table.add_column(overflow="ellipsis", no_wrap=True, ratio=ratio)
  for i, node in enumerate(nodes):
    following = nodes[(i + 1) % len(nodes)]
    edge = f"→ {_edge(_link(view, node, following))}" if len(nodes) > 1 else ""
    table.add_row(
        _name(view, node), _device(node), _memory(node, 8), _engine(node), _load(node), _layers(node),
        Text(edge, "dim")
    )
  return table


def _power(view: RingView, width: int) -> Text:
  """Where the ring stands between one core and a data centre, on a logarithmic scale."""
  ends = math.log10(_RICH_TFLOPS / _POOR_TFLOPS)
  part = min(1.0, max(0.0, math.log10(max(view.tflops, _POOR_TFLOPS) / _POOR_TFLOPS) / ends))
  flops = f"{view.tflops:.4g} TFLOPS" if view.tflops else "TFLOPS unknown"
  count = len(view.nodes)
  total = f"  {count} node{'' if count == 1 else 's'}, {shown_mb(view.memory_mb)}, {flops}"
  cells = max(6, min(40, width - len("GPU poor  GPU rich") - len(total)))
  at = min(cells - 1, int(part * cells))
  scale = Text("GPU poor ", "bold")
  for i in range(cells):
    scale.append("▼" if i == at else "━", "bold" if i == at else ("red", "yellow", "green")[min(2, 3 * i // cells)])
  return scale.append(" GPU rich", "bold").append(total)


def _prompt(prompt: PromptLine, width: int) -> Text:
  mark, style = {"running": ("▶", "green"), "completed": ("✓", "dim"),
                 "cancelled": ("■", "yellow")}.get(prompt.outcome, ("✗", "red"))
  speed = f"  {prompt.tokens} tokens" + (f", {prompt.tokens_per_s:.1f}/s" if prompt.tokens_per_s else "")
  question, answer = _one_line(prompt.question), _one_line(prompt.answer)
  room = max(10, width - len(speed) - 6)
  shown = Text(question)
  shown.truncate(max(10, room // 3) if answer else room, overflow="ellipsis")
  tail = Text(answer)
  if tail.cell_len > room - shown.cell_len:
    tail = Text("…" + answer[-max(1, room - shown.cell_len - 1):])
  line = Text.assemble((f"{mark} ", style), shown, (" → " if answer else "", "dim"), tail, (speed, "cyan"))
  line.truncate(width, overflow="ellipsis")
  return line


def _one_line(text: str) -> str:
  return " ".join(escape(text.replace("\n", " ")).split())


def _download(download: DownloadLine, width: int) -> Text:
  part = download.downloaded / download.total if download.total else 0.0
  line = Text.assemble(("↓ ", "cyan"), escape(download.model_id), " ").append_text(_bar(part, 20))
  of = f" of {shown_bytes(download.total)}, {part:.0%}" if download.total else ""
  line.append(f" {shown_bytes(download.downloaded)}{of}{_pace(download)}")
  line.truncate(width, overflow="ellipsis")
  return line


def _pace(download: DownloadLine) -> str:
  """How fast it comes, and how long it takes yet; nothing where it stands still."""
  if not download.bytes_per_s:
    return ""
  left = f", {shown_seconds(download.left_s)} left" if download.left_s is not None else ""
  return f", {shown_bytes(download.bytes_per_s)}/s{left}"
