"""The process in which chat templates are rendered that are large, or want more time or room than most. Runs as `main`."""

from __future__ import annotations

from exo.child_process import give_way, serve
from exo.inference.chat_template import render_here

_THREADS = 2


def main() -> None:
  give_way()
  serve({"render": render_here}, _THREADS)
