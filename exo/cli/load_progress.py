"""What happens until the first token: downloads as bars, loading as a spinner, on stderr and only on a terminal."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from exo.cli.client import ApiClient

_QUIET_S = 0.3  # nothing is shown for what takes no longer than this
_POLL_S = 0.2
_PLAIN_EVERY = 10  # percent, where stderr is a file


class LoadProgress:
  """Shows the downloads of all nodes of the ring: a stage elsewhere that still fetches is waited for too."""
  def __init__(self, api: ApiClient) -> None:
    self._api = api
    self._told: dict[str, int] = {}

  async def run(self) -> None:
    """Show progress until cancelled."""
    await asyncio.sleep(_QUIET_S)
    console = Console(stderr=True)
    if not console.is_terminal:
      while True:
        for download in await self._downloads():
          self._plain(f"fetching {download['model']} on {download['node_id']}", int(download["percentage"]))
        for model, fraction in (await self._loading()).items():
          self._plain(f"loading {model}", int(fraction * 100))
        await asyncio.sleep(_POLL_S)
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
        TimeRemainingColumn()
    )
    with Progress(*columns, console=console, transient=True) as progress:
      tasks: dict[tuple[str, str], TaskID] = {}
      loading = progress.add_task("loading", total=None)
      while True:
        downloads = await self._downloads()
        several = len({download["node_id"] for download in downloads}) > 1
        for download in downloads:
          key, total = (download["node_id"], download["model"]), download["total_bytes"] or None
          if key not in tasks and not _ended(download):
            tasks[key] = progress.add_task("", total=total)
          if key in tasks:
            where = f" on {download['node_id']}" if several else ""
            text = f"{download['status']}: {download['model']}{where}"
            progress.update(tasks[key], completed=download["downloaded_bytes"], total=total, description=text)
        fractions = await self._loading()
        if fractions:  # of this node's engine; slow ones compile kernels the first time
          progress.update(loading, description=f"loading {min(fractions.values()) * 100:.0f} %")
        progress.update(loading, visible=all(_ended(d) for d in downloads))
        await asyncio.sleep(_POLL_S)

  async def _downloads(self) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = (await self._api.get("/v1/download/progress"))["data"]
    return data

  async def _loading(self) -> dict[str, float]:
    fractions: dict[str, float] = (await self._api.get("/v1/topology")).get("loading", {})
    return fractions

  def _plain(self, what: str, percent: int) -> None:
    percent = percent // _PLAIN_EVERY * _PLAIN_EVERY
    if percent > self._told.get(what, 0):
      self._told[what] = percent
      print(f"{what}: {percent} %", file=sys.stderr)


def _ended(download: dict[str, Any]) -> bool:
  return bool(download["done"] or download["error"])
