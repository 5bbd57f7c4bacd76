"""What `exo status` says of one node and its ring, aligned at any width."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from exo.cli.lan_address import lan_url
from exo.log import escape
from exo.node_names import called
from exo.runtime_file import RuntimeInfo
from exo.sizes import shown_mb

_LABELS, _MOST_LABELS = 10, 24  # columns, with the space behind a label
_LEAST_TEXT = 20

Row = tuple[str, str]  # a label, perhaps none, and what is said under it


def status_lines(info: RuntimeInfo, ring: dict[str, Any] | None, width: int | None) -> list[str]:
  """`ring` is an event of /v1/topology/stream, None where the node does not answer; `width` None is endless."""
  name = info.name or info.node_id if ring is None else _name(ring, info.node_id)
  head = f"{called(info.node_id, name)}: {info.api_url}, process {info.pid}"
  if ring is None:
    return _wrapped(f"{head}, does not answer", "", "  ", width)
  rows = [(escape(label), escape(text)) for label, text in _rows(info, ring)]
  most = _MOST_LABELS if width is None else max(_LABELS + 1, min(_MOST_LABELS, width // 3))
  column = min(most, max(_LABELS, *(len(label) + 1 for label, _ in rows)))
  lines = _wrapped(escape(head), "", "  ", width)
  for label, text in rows:
    if len(label) >= column:
      lines += _wrapped(label, "  ", "    ", width)
      label = ""
    lines += _wrapped(text, f"  {label:<{column}}", " " * (2 + column), width)
  return lines


def _wrapped(text: str, first: str, others: str, width: int | None) -> list[str]:
  if width is None:
    return [first + text]
  room = max(width, len(others) + _LEAST_TEXT)
  return textwrap.wrap(text, room, initial_indent=first, subsequent_indent=others, break_on_hyphens=False) or [first]


def _name(ring: dict[str, Any], node_id: str) -> str:
  """What the ring calls a node; a node of an older version tells only ids."""
  return str(ring["nodes"].get(node_id, {}).get("name", node_id))


def _rows(info: RuntimeInfo, ring: dict[str, Any]) -> Iterator[Row]:
  nodes, total = ring["nodes"], ring["total"]
  flops = f", {total['tflops']:.3g} TFLOPS" if total["tflops"] else ""
  yield "ring", f"{len(nodes)} node{'' if len(nodes) == 1 else 's'}, {shown_mb(total['memory'])}{flops}"
  if (url := lan_url(info.api_host, info.api_port)) is not None:
    yield "network", f"{url} from other machines and phones"
  for node_id in nodes:
    yield from _node(ring, node_id)
  for room in ring["loaded"]:
    yield "loaded", f"{room['model']}: {room['words']}"
  for file in ring.get("files", ()):  # a node of an older version tells none
    yield "file", f"{file['model']}: {_file(file)}{': ' if file['why'] else ''}{file['why']}"
  for model, givers in ring["unverified"].items():
    yield "unverified", f"{model}, from {', '.join(_name(ring, giver) for giver in givers)}: not compared with the hub"
  for model, reason in ring["refused_models"].items():
    yield "refused", f"{model}: {reason}"
  for model, told in ring.get("known_deviations", {}).items():
    for deviation in told:
      yield "deviates", f"{model} on {deviation}"
  for model, told in ring.get("warnings", {}).items():
    yield "warning", f"{model}: {told}"
  requests = ring["requests"]
  speed = f", {requests['tokens_per_s']:g} tokens/s" if requests["tokens_per_s"] else ""
  exact = f", exact: {ring['exact']}" if "exact" in ring else ""
  yield "requests", f"{requests['own']} from here, {requests['waiting']} waiting{speed}{exact}"


def _node(ring: dict[str, Any], node_id: str) -> Iterator[Row]:
  node = ring["nodes"][node_id]
  link = next((e for e in ring["links"] if set(e["nodes"]) == {node_id, ring["node_id"]}), None)
  where = "this node" if node_id == ring["node_id"] else "no link" if link is None else _link(link)
  yield _name(ring, node_id), f"{node['model']}, {node['chip']}; {node['engine']} on {node['device']}; {where}"
  used, free = shown_mb(node["used_memory"]), shown_mb(node["free_memory"])
  yield "", f"{used} used, {free} free of {shown_mb(node['memory'])}; load {node['load']:.0%}; {_layers(node)}"
  yield from _workers(node)
  yield from _memory(node)
  for worker in node.get("workers", ()):
    for model, done in worker.get("loading", {}).items():
      yield "", f"{_of(worker['name'], node)}loads {model}: {done:.0%}"
  for ailment in node["ailments"]:
    yield "", f"{_of(ailment['worker'], node)}takes no part in {ailment['model']}: {ailment['reason']}"


def _workers(node: dict[str, Any]) -> Iterator[Row]:
  """Its devices, where they are several."""
  if not _several(node):
    return
  for w in node["workers"]:
    held = f"{shown_mb(w['used_memory'])} used of {shown_mb(w['memory'])}; {_layers(w)}"
    problem = f"; {w['problem']}" if w["problem"] else ""
    yield "", f"{w['name']}: {', '.join(w['engines'])} on {w['device']}, {held}{problem}"


def _memory(node: dict[str, Any]) -> Iterator[Row]:
  """What its devices hold and by which engine, beside what was planned."""
  for worker in node.get("workers", ()):
    for shard in worker.get("loaded", ()):  # a node of an older version tells none
      planned, measured = shard["planned_memory"], shard["measured_memory"]
      by = f" on {shard['engine']}" if shard.get("engine") else ""
      loaded = f"{shown_mb(measured['held'])} when loaded (plan, with caches: {shown_mb(planned['held'])})"
      loading = f"at most {shown_mb(measured['loading'])} while loading (plan: {shown_mb(planned['loading'])})"
      yield "", f"{_layers({'layers': [shard]})}{by}: {loaded}, {loading}"


def _several(node: dict[str, Any]) -> bool:
  return len(node.get("workers", ())) > 1  # a node of an older version tells none


def _of(worker: str, node: dict[str, Any]) -> str:
  return f"{worker} " if _several(node) else ""


def _file(file: dict[str, Any]) -> str:
  where = f" of {file['repository']}@{file['revision'][:12]}" if file["repository"] else ""
  return f"{file['name']}{where} ({file['key']})"


def _layers(holder: dict[str, Any]) -> str:
  return ", ".join(f"{s['model']} {s['start_layer']}-{s['end_layer']}" for s in holder["layers"]) or "no layers"


def _link(link: dict[str, Any]) -> str:
  return " ".join(part for part in (f"{link['rtt_ms']:g} ms" if link["rtt_ms"] else "", link["interface"]) if part)
