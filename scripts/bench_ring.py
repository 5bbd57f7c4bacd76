"""The figures of the ring at full speed, each beside what it is compared with: `python scripts/bench.py ring`.

Every node is pinned to one core: `one` and the ring's first node to the first, the ring's second to the second.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from exo.cli.bench_load import Answer, Load, quantile, shared_tokens_s
from test.support.nodes import NodeProcess, free_port, wait_until

MODEL = "smollm2-135m"
Row = Callable[[str, str, str], None]


@contextmanager
def pinned(home: Path, name: str, count: int, *flags: str) -> Iterator[list[NodeProcess]]:
  """A ring of `count` nodes, each on a core of its own."""
  cores, port = sorted(os.sched_getaffinity(0)), str(free_port(2))
  nodes = [
      NodeProcess(
          home,
          "--listen-port",
          port,
          "--broadcast-port",
          port,
          "--max-memory",
          "4000",
          *flags,
          node_id=f"{name}{i}",
          prefix=("taskset", "-c", str(cores[i % len(cores)])),
          env={"DEBUG": "0"}
      ) for i in range(count)
  ]
  try:
    for node in nodes:
      node.wait_ready()
    names = {node.node_id for node in nodes}
    wait_until(lambda: all(node.peers() == names for node in nodes), 20, f"a ring of {count}")
    yield nodes
  finally:
    for node in nodes:
      node.stop()


def tokens(count: int, seed: int) -> list[int]:
  """Token ids that no prompt before began with."""
  draw = random.Random(seed)
  return [draw.randrange(100, 40000) for _ in range(count)]


_seeds = iter(range(1, 10**9))


def fresh(count: int) -> list[int]:
  return tokens(count, next(_seeds))


async def prefill_speed(load: Load, prompt: list[int]) -> float:
  return len(prompt) / (await load.complete(prompt, 2)).first_s


async def line_1(one: Load, two: Load, rounds: int, row: Row, figures: dict[str, Any]) -> None:
  ratios = []
  for _ in range(rounds):
    prompt = fresh(200)
    speeds = [(await load.complete(prompt, 64)).tokens_s for load in (one, two)]
    ratios.append(speeds[1] / speeds[0])
  figures["one_stream_ratio"] = statistics.median(ratios)
  row("1. one stream, ring of two / one core", f"{figures['one_stream_ratio']:.2f}", "at least 0.90")
  await asyncio.sleep(0.6)
  times = next(p["times"] for p in (await two.get("/v1/topology"))["plans"] if "times" in p)
  figures["hop_ms"], figures["hop_p99_ms"] = times["hop_ms"], times["hop_p99_ms"]
  row("   hop, p50 / p99", f"{times['hop_ms']:.2f} / {times['hop_p99_ms']:.2f} ms", "at most 0.3 / 1.5")
  row("   of it codec, gRPC and the wire, median", f"{times['transport_ms']:.2f} ms", "")
  figures["floor_ms"] = floor_ms() / 2
  row("   floor: a bare grpc.aio stream, one way", f"{figures['floor_ms']:.2f} ms", "")


async def line_2(urls: dict[str, str], one: Load, two: Load, rounds: int, row: Row, figures: dict[str, Any]) -> None:
  """`urls` are those of the ring's nodes, by name. Requests go to the node with the first layers: the head, at the last
  ones, is the ring's bottleneck, and who serves clients too has less time for it."""
  eight: list[float] = []
  sixteen: dict[str, list[float]] = {"first": [], "last": []}
  plan = next(p for p in (await two.get("/v1/topology"))["plans"] if "times" in p)
  first, last = plan["stages"][0]["node_id"], plan["stages"][-1]["node_id"]
  async with Load(urls[first], MODEL) as at_first, Load(urls[last], MODEL) as at_last:
    for _ in range(rounds):
      alone = (await one.complete(fresh(60), 64)).tokens_s
      eight.append(shared_tokens_s(await one.together([fresh(60) for _ in range(8)], 64)) / alone)
      core, *rings = [
          shared_tokens_s(await load.together([fresh(60) for _ in range(16)], 64)) for load in (one, at_first, at_last)
      ]
      for name, speed in zip(sixteen, rings, strict=True):
        sixteen[name].append(speed / core)
  figures["eight_streams_ratio"] = statistics.median(eight)
  figures["sixteen_streams_ratio"] = statistics.median(sixteen["first"])
  figures["sixteen_streams_at_last_ratio"] = statistics.median(sixteen["last"])
  row("2. one core, 8 streams / one", f"{figures['eight_streams_ratio']:.2f}", "at least 1.8")
  row("   16 streams, ring of two / one core", f"{figures['sixteen_streams_ratio']:.2f}", "at least 1.5")
  row("   asked at the node that has the head", f"{figures['sixteen_streams_at_last_ratio']:.2f}", "")


async def _beside(load: Load, prompt: list[int]) -> tuple[float, float]:
  """(the prompt's tokens/s beside 4 running streams, their p99 gap while it ran against before)."""
  running = [asyncio.create_task(load.complete(fresh(60), 400)) for _ in range(4)]
  await asyncio.sleep(1.5)
  asked = time.perf_counter()
  answer = await load.complete(prompt, 2)
  streams: list[Answer] = [await task for task in running]

  def gaps(begin: float, end: float) -> list[float]:
    return [b - a for s in streams for a, b in zip(s.arrived, s.arrived[1:], strict=False) if begin <= a and b <= end]

  first = answer.arrived[0]
  before = quantile(gaps(max(s.arrived[0] for s in streams), asked), 99)
  return len(prompt) / answer.first_s, quantile(gaps(asked, first), 99) / max(before, 1e-6)


async def line_3(one: Load, two: Load, rounds: int, row: Row, figures: dict[str, Any]) -> None:
  alone, beside, slower = [], [], []
  for _ in range(rounds):
    single, ring = await prefill_speed(one, fresh(2000)), await prefill_speed(two, fresh(2000))
    alone.append(ring / single)
    speed, ratio = await _beside(two, fresh(2000))
    beside.append(speed / single)
    slower.append(ratio)
  figures["prefill_ratio"], figures["prefill_beside_ratio"] = statistics.median(alone), statistics.median(beside)
  figures["p99_beside_ratio"] = statistics.median(slower)
  row("3. prompt of 2,000, ring of two / one core", f"{figures['prefill_ratio']:.2f}", "at least 1.6")
  row("   the same beside 4 streams", f"{figures['prefill_beside_ratio']:.2f}", "at least half of the line above")
  row("   p99 between the streams' tokens, times before", f"{figures['p99_beside_ratio']:.2f}", "at most 3")


async def line_4(one: Load, two: Load, rounds: int, row: Row, figures: dict[str, Any]) -> None:
  for name, load in (("one", one), ("two", two)):
    ratios, same = [], True
    for _ in range(rounds):
      shared, turn = fresh(1000), fresh(20)
      cold = await load.complete([*shared, *turn], 24)
      again = await load.complete([*shared, *fresh(20)], 2)
      warm = await load.complete([*shared, *turn], 24)
      same = same and warm.text == cold.text and again.cached_tokens >= 1000
      ratios.append(cold.first_s / again.first_s)
    figures[f"prefix_ratio_{name}"], figures[f"prefix_same_{name}"] = statistics.median(ratios), same
    text = "same text" if same else "ANOTHER TEXT"
    row(
        f"4. 1,000 tokens shared, nodes: {name}; cold / warm", f"{statistics.median(ratios):.1f}, {text}", "at least 10"
    )


async def line_5(plain: Load, drafting: Load, rounds: int, row: Row, figures: dict[str, Any]) -> None:
  copies, chats = [], []
  for _ in range(max(rounds, 9)):  # how much of a passage the model copies differs from one to the next
    passage = fresh(60)
    speeds = [(await load.complete(passage * 3 + passage[:8], 96)).tokens_s for load in (plain, drafting)]
    copies.append(speeds[1] / speeds[0])
  before = await _drafts(drafting)
  for _ in range(9):
    question = f"{random.Random(next(_seeds)).random()}: tell me about the sea, briefly."
    speeds = [(await load.complete(question, 96)).tokens_s for load in (plain, drafting)]
    chats.append(speeds[1] / speeds[0])
  after = await _drafts(drafting)
  figures["copying_ratio"], figures["chat_ratio"] = statistics.median(copies), statistics.median(chats)
  figures["drafts_before_chat"], figures["drafts_after_chat"] = before, after
  row("5. text that repeats itself, with drafts / without", f"{figures['copying_ratio']:.2f}", "at least 1.5")
  row("   ordinary text, median of 9 pairs", f"{figures['chat_ratio']:.2f}", "at least 0.95")
  row("   compute that went to wrong drafts, in all", f"{after.get('wasted', 0) * 100:.1f} %", "at most 3 %")


async def _drafts(load: Load) -> dict[str, Any]:
  await asyncio.sleep(0.1)
  plan = next(p for p in (await load.get("/v1/topology"))["plans"] if "times" in p)
  return {key: plan["times"].get(key, 0) for key in ("drafted", "accepted", "wasted")}


ECHO = """
import asyncio, sys, time, grpc
same = lambda data: data
class Handler(grpc.GenericRpcHandler):
  def service(self, details):
    async def echo(items, context):
      async for item in items: yield item
    return grpc.stream_stream_rpc_method_handler(echo, same, same)
async def serve():
  server = grpc.aio.server()
  server.add_generic_rpc_handlers((Handler(),))
  port = server.add_insecure_port("127.0.0.1:0")
  await server.start()
  print(port, flush=True)
  await server.wait_for_termination()
async def ask(port):
  async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
    call, data, times = channel.stream_stream("/x/s", same, same)(), bytes(2304), []
    for _ in range(2000):
      started = time.perf_counter()
      await call.write(data)
      await call.read()
      times.append(time.perf_counter() - started)
    print(sorted(times)[1000] * 1e3)
    await call.done_writing()
asyncio.run(serve() if sys.argv[1] == "serve" else ask(sys.argv[2]))
"""


def floor_ms() -> float:
  """The median round trip of a decode's bytes on a bare stream between two pinned processes."""
  cores = sorted(os.sched_getaffinity(0))
  server = subprocess.Popen(["taskset", "-c", str(cores[0]), sys.executable, "-c", ECHO, "serve"],
                            stdout=subprocess.PIPE,
                            text=True)
  assert server.stdout is not None
  try:
    port = server.stdout.readline().strip()
    command = ["taskset", "-c", str(cores[-1]), sys.executable, "-c", ECHO, "ask", port]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)
  finally:
    server.kill()
    server.wait()


def bench_ring(home: Path, rounds: int, lines: list[int], row: Row, figures: dict[str, Any]) -> None:
  """Lines 1 to 4 on one core and on a ring of two, line 5 with and without drafts on one core."""
  async def measure(first: NodeProcess, ring: list[NodeProcess], wanted: list[int]) -> None:
    steps: dict[int, Callable[..., Coroutine[Any, Any, None]]] = {
        1: line_1, 2: partial(line_2, {n.node_id: n.url
                                       for n in ring}), 3: line_3, 4: line_4, 5: line_5
    }
    async with Load(first.url, MODEL) as a, Load(ring[0].url, MODEL) as b:
      for load in (a, b):
        await load.complete(fresh(40), 8)
      for line in wanted:
        await steps[line](a, b, rounds, row, figures)

  plain = [line for line in lines if line < 5]
  if plain:
    with pinned(home, "one", 1) as (one, ), pinned(home, "two", 2) as ring:
      asyncio.run(measure(one, ring, plain))
  if 5 in lines:
    with pinned(home, "off", 1) as (off, ), pinned(home, "auto", 1, "--speculation", "auto") as auto:
      asyncio.run(measure(off, auto, [5]))
