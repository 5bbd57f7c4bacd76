"""The speed of another checkout's nodes beside this one's, in turn, on the default model.

  git worktree add /tmp/before COMMIT
  python scripts/bench_checkouts.py /tmp/before [--nodes 2] [--rounds 14] [--inference-engine onnx]

Both rings run at once, only one of them works at a time. The figures are medians, and those of the pairs' ratios.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from test.support.nodes import NodeProcess, free_port, wait_until  # noqa: E402
from test.support.streams import stream  # noqa: E402

STORY = "Tell me a long story about a lighthouse keeper and the sea."
TOKENS = 160


def started(home: Path, root: Path, count: int, engine: str) -> list[NodeProcess]:
  port = str(free_port(socket.SOCK_DGRAM))
  flags = ("--listen-port", port, "--broadcast-port", port, "--inference-engine", engine)
  nodes = []
  for i in range(count):
    api = free_port()
    nodes.append(NodeProcess(home, *flags, "--chatgpt-api-port", str(api), node_id=f"node{i}", root=root))
    nodes[-1].url = f"http://127.0.0.1:{api}"  # where it tells that itself is not the same in every checkout
    wait_until(lambda node=nodes[-1]: answers(node), 60, f"node{i} of {root}")
  for node in nodes:
    node.wait_peers(count)
  return nodes


def answers(node: NodeProcess) -> bool:
  try:
    return node.get("/healthcheck", 2)[0] == 200
  except OSError:
    return False


def asked(node: NodeProcess) -> tuple[float, float]:
  """(tokens per second after the first, milliseconds until the first)."""
  times = stream(node, STORY, max_tokens=TOKENS).times
  return (len(times) - 1) / (times[-1] - times[0]), times[0] * 1e3


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("before", type=Path, help="the other checkout; the same Python runs it")
  parser.add_argument("--nodes", type=int, default=1, help="of each ring")
  parser.add_argument("--rounds", type=int, default=14)
  parser.add_argument("--inference-engine", default="auto", help="of all nodes")
  options = parser.parse_args()
  home = Path(os.environ.get("EXO_TEST_HOME") or os.environ.get("EXO_HOME", "~/.cache/exo/downloads")).expanduser()
  sides: list[list[NodeProcess]] = []
  try:
    for root in (options.before.resolve(), ROOT):
      sides.append(started(home, root, options.nodes, options.inference_engine))
    for side in sides * 2:
      asked(side[0])
    figures: list[list[tuple[float, float]]] = [[], []]
    for turn in range(options.rounds):
      for i in (0, 1) if turn % 2 else (1, 0):
        figures[i].append(asked(sides[i][0]))
  finally:
    for side in sides:
      for node in side:
        node.stop()
  for what, which in (("tokens/s", 0), ("ms to the first token", 1)):
    before, here = ([figure[which] for figure in side] for side in figures)
    ratios = sorted(b / a for a, b in zip(before, here, strict=True))
    print(
        f"{what}: before {statistics.median(before):.1f}, here {statistics.median(here):.1f}, "
        f"ratio {statistics.median(ratios):.3f} ({ratios[len(ratios) // 4]:.3f} to {ratios[-len(ratios) // 4]:.3f})"
    )
  return 0


if __name__ == "__main__":
  sys.exit(main())
