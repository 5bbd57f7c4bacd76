"""What happens until the first token, on stderr: downloads, loading, the place in the line, and how far the prompt is."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from exo.cli.client import ApiClient, Delta
from exo.sizes import shown_bytes, shown_seconds

_QUIET_S = 0.3  # nothing is shown for what takes no longer than this
_SHORT_S = 2.0  # nor of a prompt that takes no longer than this
_POLL_S = 0.2
_PLAIN_EVERY = 10  # percent, where stderr is a file


@dataclass(frozen=True, slots=True)
class Stretch:
  """One thing that is waited for. `part` is from 0 to 1, None where nobody knows; `told` are its figures."""
  what: str
  part: float | None
  told: str = ""


class LoadProgress:
  """Shows the downloads of all nodes of the ring: a stage elsewhere that still fetches is waited for too."""
  def __init__(self, api: ApiClient) -> None:
    self._api = api
    self._told: dict[str, int] = {}
    self._prompt: dict[str, int] | None = None
    self._prompt_since = 0.0
    self._place: int | None = None

  def heard(self, delta: Delta) -> None:
    """What the stream of the answer says of the waiting."""
    if delta.prompt is not None and self._prompt is None:
      self._prompt_since = time.monotonic()
    self._prompt, self._place = delta.prompt, delta.place

  async def run(self) -> None:
    """Show progress until cancelled."""
    await asyncio.sleep(_QUIET_S)
    console = Console(stderr=True)
    if not console.is_terminal:
      while True:
        for stretch in await self._stretches():
          self._plain(stretch)
        await asyncio.sleep(_POLL_S)
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}")
    with Progress(*columns, console=console, transient=True) as progress:
      tasks: dict[str, TaskID] = {}
      while True:
        stretches = await self._stretches()
        if not stretches:  # a model that is being opened, or a prompt that is short
          stretches = [Stretch("loading", None)] if self._prompt is None else []
        for gone in tasks.keys() - {stretch.what for stretch in stretches}:
          progress.remove_task(tasks.pop(gone))
        for stretch in stretches:
          if stretch.what not in tasks:
            tasks[stretch.what] = progress.add_task(stretch.what, total=None, told="")
          total = None if stretch.part is None else 1.0
          progress.update(tasks[stretch.what], total=total, completed=stretch.part or 0.0, told=stretch.told)
        await asyncio.sleep(_POLL_S)

  async def _stretches(self) -> list[Stretch]:
    downloads = (await self._api.get("/v1/download/progress"))["data"]
    ring = await self._api.get("/v1/topology")
    return [*_fetching(downloads), *_loading(ring), *self._waiting()]

  def _waiting(self) -> Iterator[Stretch]:
    if self._place is not None:
      yield Stretch(f"waiting for its turn, place {self._place} in the line", None)
    elif self._prompt is not None and time.monotonic() - self._prompt_since > _SHORT_S:
      done, total = self._prompt["processed"], self._prompt["total"]
      yield Stretch("reading the prompt", done / total, f"{done / total:.0%}, {done:,} of {total:,} tokens")

  def _plain(self, stretch: Stretch) -> None:
    if stretch.part is None:
      if stretch.what not in self._told:
        self._told[stretch.what] = 0
        print(stretch.what, file=sys.stderr)
      return
    percent = int(stretch.part * 100) // _PLAIN_EVERY * _PLAIN_EVERY
    if percent > self._told.get(stretch.what, 0):
      self._told[stretch.what] = percent
      print(f"{stretch.what}: {percent} %", file=sys.stderr)


def _fetching(downloads: list[dict[str, Any]]) -> Iterator[Stretch]:
  several = len({download["node_id"] for download in downloads}) > 1
  for download in downloads:
    if download["done"] or download["error"]:
      continue
    total, done, speed, left_s = (
        download[name] for name in ("total_bytes", "downloaded_bytes", "bytes_per_s", "left_s")
    )
    how = "" if download["status"] == "downloading" else f", {download['status']}"
    pace = f", {shown_bytes(speed)}/s" if speed else ""
    left = f", {shown_seconds(left_s)} left" if left_s is not None else ""
    of = f"{shown_bytes(done)} of {shown_bytes(total)}" if total else shown_bytes(done)
    where = f" on {download['node_name']}" if several else ""
    yield Stretch(f"fetching {download['model']}{where}", done / total if total else None, f"{of}{pace}{left}{how}")


def _loading(ring: dict[str, Any]) -> Iterator[Stretch]:
  """Of this node's engines; slow ones compile kernels the first time."""
  for model, part in ring.get("loading", {}).items():
    total = ring.get("loading_bytes", {}).get(model)
    yield Stretch(f"loading {model}", part, f"{shown_bytes(part * total)} of {shown_bytes(total)}" if total else "")
