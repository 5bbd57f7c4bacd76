"""A streaming client that sees everything: events, comments, when each came, and how the stream ended."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from test.support.nodes import NodeProcess


@dataclass
class Streamed:
  """`times` are those of the pieces of text, in seconds since the request; `done` only after `[DONE]`."""
  text: str = ""
  finish: str | None = None
  error: dict[str, Any] | None = None
  comments: list[str] = field(default_factory=list)
  times: list[float] = field(default_factory=list)
  done: bool = False

  @property
  def longest_pause_s(self) -> float:
    return max((b - a for a, b in zip(self.times, self.times[1:], strict=False)), default=0.0)

  @property
  def resumptions(self) -> list[str]:
    return [comment for comment in self.comments if comment.startswith("resumed")]


def stream(
    node: NodeProcess,
    prompt: str,
    on_text: Callable[[int], None] | None = None,
    timeout_s: float = 60,
    *,
    chat: bool = True,
    **fields: Any
) -> Streamed:
  """Stream a chat, or a prompt's continuation; `on_text` is called after each piece of text with how many there were.

  Greedy, on the default model.
  """
  asked = {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
  body = {**asked, "temperature": 0, "stream": True, **fields}
  request = urllib.request.Request(
      node.url + ("/v1/chat/completions" if chat else "/v1/completions"),
      json.dumps(body).encode(), {"Content-Type": "application/json"}
  )
  out, started = Streamed(), time.monotonic()
  with urllib.request.urlopen(request, timeout=timeout_s) as response:
    for raw in response:
      line = raw.decode().rstrip("\n")
      if line.startswith(": "):
        out.comments.append(line[2:])
      if line == "data: [DONE]":
        out.done = True
      elif line.startswith("data: "):
        _take(out, json.loads(line[6:]), time.monotonic() - started)
        if on_text and out.times and out.finish is None:
          on_text(len(out.times))
  return out


def _take(out: Streamed, event: dict[str, Any], at_s: float) -> None:
  if "error" in event:
    out.error = event["error"]
    return
  for choice in event["choices"]:
    if text := choice["delta"].get("content") if "delta" in choice else choice["text"]:
      out.text += text
      out.times.append(at_s)
    out.finish = choice["finish_reason"] or out.finish
