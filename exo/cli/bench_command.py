"""`exo bench`: how fast a ring answers, alone or beside another OpenAI-compatible server under the same load."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from exo.cli.bench_load import Answer, Load, prose, quantile, shared_tokens_s
from exo.cli.client import answers
from exo.cli.parser import Parser
from exo.config import Config
from exo.errors import ConfigError, ExoError
from exo.runtime_file import running_nodes
from exo.sizes import shown_mb

_SHORT, _LONG = 60, 700  # words of a prompt


def build_parser() -> Parser:
  parser = Parser(
      prog="exo bench",
      description="Measure a running ring over its API: time to first token, inter-token times, tokens per second, "
      "prefill, prefix reuse, hops, and what it costs every node."
  )
  parser.add_argument("model", nargs="?", help="the model to ask for (default: the server's)")
  parser.add_argument("--url", help="the server to measure (default: a node of yours that runs on this machine)")
  parser.add_argument("--compare", metavar="URL", help="another OpenAI-compatible server, under the same load in turn")
  parser.add_argument("--compare-model", metavar="MODEL", help="the model's name there")
  parser.add_argument("--api-key", metavar="KEY", help="for both servers")
  parser.add_argument("--streams", type=_counts, default=(1, 2, 4, 8, 16), metavar="N,…", help="default 1,2,4,8,16")
  parser.add_argument("--tokens", type=int, default=64, metavar="N", help="tokens of each answer (default 64)")
  parser.add_argument("--rounds", type=int, default=3, metavar="N", help="repetitions; medians are shown (default 3)")
  parser.add_argument("--json", metavar="FILE", help="write the figures there, - for standard output")
  return parser


def _counts(text: str) -> tuple[int, ...]:
  counts = tuple(int(part) for part in text.split(","))
  if not counts or min(counts) < 1 or max(counts) > 256:
    raise argparse.ArgumentTypeError("numbers of streams from 1 to 256, with commas between them")
  return counts


def bench_command(config: Config, arguments: argparse.Namespace) -> int:
  """Returns the exit status. Raises `ConfigError` where no node runs and no URL is given."""
  if arguments.tokens < 2 or arguments.rounds < 1:
    raise ConfigError("--tokens must be at least 2, --rounds at least 1")
  try:
    reports = asyncio.run(_bench(config, arguments))
  except aiohttp.ClientError as error:
    raise ExoError(f"the server cannot be reached: {error}") from error
  figures = [report.figures() for report in reports]
  if arguments.json == "-":
    print(json.dumps(figures, indent=2))
    return 0
  if arguments.json:
    Path(arguments.json).write_text(json.dumps(figures, indent=2) + "\n")
  _show(figures)
  return 0


@dataclass
class Report:
  """What one server did, round by round."""
  load: Load
  streams: dict[int, list[list[Answer]]] = field(default_factory=dict)
  cold: list[Answer] = field(default_factory=list)
  warm: list[Answer] = field(default_factory=list)
  before: dict[str, Any] | None = None
  after: dict[str, Any] | None = None
  seconds: float = 0.0

  def figures(self) -> dict[str, Any]:
    """Medians over the rounds, for a table or as JSON."""
    rows = [_row(count, rounds) for count, rounds in self.streams.items()]
    cold_s, warm_s = quantile([a.first_s for a in self.cold], 50), quantile([a.first_s for a in self.warm], 50)
    return {
        "url": self.load.url,
        "streams": rows,
        "prefill_tokens_s": quantile([a.prompt_tokens / a.first_s for a in self.cold], 50),
        "prefix": {
            "prompt_tokens": self.warm[-1].prompt_tokens, "cached_tokens": self.warm[-1].cached_tokens,
            "cold_first_token_ms": cold_s * 1e3, "warm_first_token_ms": warm_s * 1e3, "ratio": cold_s / warm_s
        },
        "hops": [
            plan["times"] | {"model": plan["model"]} for plan in (self.after or {}).get("plans", []) if "times" in plan
        ],
        "nodes": self._nodes(),
    }

  def _nodes(self) -> dict[str, Any]:
    """Each node's share of a processor while the load ran, and its memory at the end; empty for other servers."""
    before, after = (self.before or {}).get("nodes", {}), (self.after or {}).get("nodes", {})
    return {
        name: {"cpu_percent": 100 * (node["cpu_s"] - before[name]["cpu_s"]) / self.seconds, "rss_mb": node["rss_mb"]}
        for name, node in after.items() if "cpu_s" in node and "cpu_s" in before.get(name, {})
    }


def _row(count: int, rounds: list[list[Answer]]) -> dict[str, Any]:
  gaps = [gap for answers_ in rounds for answer in answers_ for gap in answer.gaps_ms]
  return {
      "streams": count,
      "first_token_ms": quantile([a.first_s * 1e3 for answers_ in rounds for a in answers_], 50),
      "inter_token_p50_ms": quantile(gaps, 50),
      "inter_token_p99_ms": quantile(gaps, 99),
      "tokens_s": quantile([shared_tokens_s(answers_) for answers_ in rounds], 50),
  }


@asynccontextmanager
async def _measured(config: Config, arguments: argparse.Namespace) -> AsyncIterator[list[Report]]:
  url, key = arguments.url, arguments.api_key
  if url is None:
    running = [info for info in running_nodes(config.state_dir) if await answers(info)]
    if not running:
      raise ConfigError("no node of yours runs on this machine: start `exo`, or give a server with --url")
    url, key = running[0].api_url, key or running[0].token
  async with AsyncExitStack() as stack:
    reports = [Report(await stack.enter_async_context(Load(url, arguments.model, key)))]
    if arguments.compare:
      other = Load(arguments.compare, arguments.compare_model or arguments.model, arguments.api_key)
      reports.append(Report(await stack.enter_async_context(other)))
    yield reports


async def _bench(config: Config, arguments: argparse.Namespace) -> list[Report]:
  from rich.console import Console
  from rich.progress import Progress
  async with _measured(config, arguments) as reports:
    steps = len(reports) * (1 + arguments.rounds * (len(arguments.streams) + 2))
    with Progress(console=Console(stderr=True), transient=True) as progress:
      bar = progress.add_task("warming up", total=steps)
      for report in reports:
        await report.load.complete(prose(_SHORT, 0), 8)
        report.before = await report.load.get("/v1/topology")
        progress.advance(bar)
      for turn in range(arguments.rounds):
        for which, report in enumerate(reports):  # in turn, so that a noisy moment strikes both
          started, first_seed = time.perf_counter(), 10**6 * which + 10**4 * turn
          for count in arguments.streams:
            progress.update(bar, description=f"{count} streams, {report.load.url}")
            prompts = [prose(_SHORT, first_seed + 300 * count + k) for k in range(count)]
            answered = await report.load.together(prompts, arguments.tokens)
            report.streams.setdefault(count, []).append(answered)
            progress.advance(bar)
          progress.update(bar, description=f"prefill and prefix, {report.load.url}")
          long = prose(_LONG, first_seed + 1)
          report.cold.append(await report.load.complete(long, 2))
          progress.advance(bar)
          report.warm.append(await report.load.complete(f"{long} {prose(8, turn)}", 2))
          progress.advance(bar)
          report.seconds += time.perf_counter() - started
      for report in reports:
        await asyncio.sleep(0.6)  # the nodes' next heartbeats
        report.after = await report.load.get("/v1/topology")
  return reports


def _show(figures: list[dict[str, Any]]) -> None:
  from rich.console import Console
  from rich.table import Table
  console = Console(file=sys.stdout)
  for one in figures:
    table = Table(title=one["url"], title_justify="left")
    for name in ("streams", "first token, ms", "between tokens p50, ms", "p99, ms", "tokens/s"):
      table.add_column(name, justify="right")
    for row in one["streams"]:
      table.add_row(
          str(row["streams"]), f"{row['first_token_ms']:.0f}", f"{row['inter_token_p50_ms']:.1f}",
          f"{row['inter_token_p99_ms']:.1f}", f"{row['tokens_s']:.1f}"
      )
    console.print(table)
    prefix = one["prefix"]
    console.print(f"prefill {one['prefill_tokens_s']:.0f} tokens/s")
    console.print(
        f"prefix reuse: {prefix['cached_tokens']} of {prefix['prompt_tokens']} tokens, first token after "
        f"{prefix['warm_first_token_ms']:.0f} ms instead of {prefix['cold_first_token_ms']:.0f} ms"
    )
    for hop in one["hops"]:
      stages = " + ".join(f"{ms:.2f}" for ms in hop["compute_ms"])
      console.print(
          f"{hop['model']}: a lap takes {hop['lap_ms']:.2f} ms, its stages compute {stages} ms; "
          f"a hop {hop['hop_ms']:.2f} ms, p99 {hop['hop_p99_ms']:.2f} ms"
      )
    for name, node in one["nodes"].items():
      console.print(f"{name}: {node['cpu_percent']:.0f} % of a core, {shown_mb(node['rss_mb'])}")
  if len(figures) == 2:
    mine, other = figures
    for a, b in zip(mine["streams"], other["streams"], strict=True):
      ratio = a["tokens_s"] / b["tokens_s"] if b["tokens_s"] else 0.0
      console.print(f"{a['streams']} streams: {ratio:.2f} times the tokens per second of {other['url']}")
    console.print(f"prefill: {mine['prefill_tokens_s'] / other['prefill_tokens_s']:.2f} times")
