"""Kill nodes of real rings, many times, and see whether any answer is wrong or late.

  python scripts/faults.py kills --rounds 50      one stream at a time over rings of 2, 3 and 4 nodes, a stage of its plan
                                                  killed at a random moment, greedy and seeded in turn
  python scripts/faults.py soak --requests 1000   eight clients of a ring of four, whose other nodes are killed and
                                                  restarted all the while
  python scripts/faults.py chaos --minutes 30     fifty clients of a ring of four, whose other nodes are killed, frozen,
                                                  made to compute NaN, given damaged files and full disks (as root),
                                                  while all are flooded

The default model is SmolLM2-135M; --model dummy is quicker. The exit status is 1 if anything was wrong or hung, and
for chaos also if somebody waited for more than 30 s without a token, a refusal or an error, or memory or descriptors grew.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from test.support.nodes import NodeProcess, ring, wait_until  # noqa: E402
from test.support.streams import Streamed, stream  # noqa: E402

STORY = "Tell me a long story about a lighthouse keeper and the sea."
HANG_S = 120.0


def say(text: str) -> None:
  print(time.strftime("%H:%M:%S "), text, flush=True)


@dataclass(frozen=True)
class Setting:
  """Where rings are made: an EXO_HOME that has the model, and the flags of every node."""
  home: Path
  arguments: tuple[str, ...]


def setting(model: str) -> Setting:
  if model == "dummy":
    return Setting(Path(tempfile.mkdtemp()), ("--inference-engine", "dummy", "--default-model", "dummy"))
  from exo.download.model_store import ModelStore
  home = Path(os.environ.get("EXO_TEST_HOME") or os.environ.get("EXO_HOME", "~/.cache/exo/downloads")).expanduser()
  store = ModelStore(home)
  asyncio.run(store.fetch(store.find(model)))
  return Setting(home, ("--default-model", model))


def stages(node: NodeProcess) -> list[str]:
  plans = node.get("/v1/topology")[1]["plans"]
  return [stage["node_id"] for stage in plans[-1]["stages"]] if plans else []


def restart(nodes: list[NodeProcess], i: int) -> None:
  """Start a killed node again, with its id, and wait until the ring is whole."""
  nodes[i] = NodeProcess(nodes[i].home, *nodes[i].arguments, node_id=nodes[i].node_id).wait_ready()
  everyone = {node.node_id for node in nodes}
  wait_until(lambda: all(node.peers() == everyone for node in nodes), 30, "the ring to be whole again")


def use_all(entry: NodeProcess, size: int) -> None:
  """Have the plan over the whole ring open."""
  def all_used() -> bool:
    return entry.chat("hello", max_tokens=1)[0] == 200 and len(stages(entry)) == size

  wait_until(all_used, 30, "a plan over the whole ring")


def kills(where: Setting, rounds: int, seed: int, tokens: int) -> bool:
  """Returns whether every stream went on exactly."""
  pick = random.Random(seed)
  kinds: dict[str, dict[str, Any]] = {"greedy": {}, "seeded": {"temperature": 0.9, "top_p": 0.95, "seed": 7}}
  with ring(where.home, 1, *where.arguments) as (alone, ):
    expected = {name: stream(alone, STORY, max_tokens=tokens, **fields).text for name, fields in kinds.items()}
  notices, pauses, exact, done, in_prefill = [], [], 0, 0, 0
  for size in (2, 3, 4):
    share = rounds // 3 + (size == 4) * (rounds % 3)
    with ring(where.home, size, *where.arguments) as nodes:
      for _ in range(share):
        name = ("greedy", "seeded")[done % 2]
        entry = pick.randrange(size)
        use_all(nodes[entry], size)
        victim = pick.choice([i for i in range(size) if i != entry])
        streamed, notice_s = one_kill(nodes, entry, victim, pick, expected[name], tokens, kinds[name])
        done += 1
        right = streamed.text == expected[name] and streamed.done and streamed.error is None
        exact += right
        notices.append(notice_s)
        in_prefill += not streamed.times or streamed.times[0] > streamed.longest_pause_s
        pause = max((float(m[1]) for r in streamed.resumptions if (m := re.search(r"after ([\d.]+) s", r))),
                    default=0.0)
        pauses.append(pause)
        say(
            f"{done:3d} {name} on {size}: {'exact' if right else 'WRONG'}, noticed after {notice_s:.2f} s, "
            f"{streamed.resumptions}, longest gap {streamed.longest_pause_s:.2f} s"
        )
        if not right:
          say(f"    error {streamed.error}, text {streamed.text[-80:]!r} instead of {expected[name][-80:]!r}")
        restart(nodes, victim)
  say(f"{exact} of {done} exact")
  say(f"time to notice: median {statistics.median(notices):.2f} s, longest {max(notices):.2f} s")
  say(f"pause: median {statistics.median(pauses):.2f} s, longest {max(pauses):.2f} s")
  return exact == done


def one_kill(
    nodes: list[NodeProcess], entry: int, victim: int, pick: random.Random, expected: str, tokens: int,
    fields: dict[str, Any]
) -> tuple[Streamed, float]:
  """(the stream, seconds from the kill until the entry node had noticed)."""
  at, noticed = pick.randrange(0, tokens - 10), threading.Event()
  notice_s = [HANG_S]

  def kill() -> None:
    nodes[victim].process.kill()
    killed = time.monotonic()
    nodes[victim].kill()

    def watch() -> None:
      while time.monotonic() - killed < HANG_S and nodes[victim].node_id in nodes[entry].peers():
        time.sleep(0.01)
      notice_s[0] = time.monotonic() - killed
      noticed.set()

    threading.Thread(target=watch, daemon=True).start()

  early = threading.Timer(pick.random() * 0.2, kill) if at < 8 else None  # around the prefill
  if early:
    early.start()
  streamed = stream(
      nodes[entry],
      STORY,
      lambda count: kill() if count == at and not early else None,
      HANG_S,
      max_tokens=tokens,
      **fields
  )
  if early:
    early.join()
  elif nodes[victim].process.poll() is None:  # the text was shorter than that
    kill()
  noticed.wait(HANG_S)
  return streamed, notice_s[0]


def soak(where: Setting, requests: int, seed: int, clients: int) -> bool:
  """Returns whether every request was answered rightly."""
  pick = random.Random(seed)
  cases = [(f"Write a few words about {topic}.", fields) for topic in
           ("the sea", "a cat", "winter", "bread", "a train", "music", "the moon", "a garden", "rain", "a small town")
           for fields in ({}, {"temperature": 0.8, "seed": 5})]
  with ring(where.home, 1, *where.arguments) as (alone, ):
    expected = [stream(alone, prompt, max_tokens=32, **fields).text for prompt, fields in cases]
  counts = {"right": 0, "wrong": 0, "hung": 0, "error": 0, "resumed": 0}
  ended = threading.Event()
  killed = 0
  with ring(where.home, 4, *where.arguments) as nodes:

    def client(i: int) -> None:
      prompt, fields = cases[i % len(cases)]
      try:
        streamed = stream(nodes[0], prompt, None, HANG_S, max_tokens=32, **fields)
      except TimeoutError:
        counts["hung"] += 1
        return
      except OSError as error:
        counts["error"] += 1
        say(f"request {i}: {error}")
        return
      counts["resumed"] += bool(streamed.resumptions)
      if streamed.text == expected[i % len(cases)] and streamed.done:
        counts["right"] += 1
      elif streamed.error is not None:
        counts["error"] += 1
        say(f"request {i}: {streamed.error}")
      else:
        counts["wrong"] += 1
        say(f"request {i}: {streamed.text!r} instead of {expected[i % len(cases)]!r}")

    def trouble() -> None:
      nonlocal killed
      while not ended.wait(pick.uniform(0.5, 3)):
        victim = pick.randrange(1, 4)
        nodes[victim].kill()
        killed += 1
        ended.wait(pick.uniform(0, 2))
        nodes[victim] = NodeProcess(nodes[victim].home, *nodes[victim].arguments, node_id=nodes[victim].node_id)
        nodes[victim].wait_ready()

    started = time.monotonic()
    troubling = threading.Thread(target=trouble)
    troubling.start()
    with ThreadPoolExecutor(clients) as pool:
      for done, _ in enumerate(pool.map(client, range(requests)), 1):
        if done % 50 == 0:
          say(f"{done} requests, {killed} kills, {counts}")
    ended.set()
    troubling.join()
    say(f"{requests} requests in {time.monotonic() - started:.0f} s under {killed} kills: {counts}")
  return counts["right"] == requests


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("what", choices=["kills", "soak", "chaos"])
  parser.add_argument("--rounds", type=int, default=50)
  parser.add_argument("--requests", type=int, default=1000)
  parser.add_argument("--clients", type=int, help="default 8, and 50 for chaos")
  parser.add_argument("--minutes", type=float, default=30)
  parser.add_argument("--nodes", type=int, default=4, help="of the ring for chaos")
  parser.add_argument(
      "--every", type=float, default=90, help="seconds between two faults of a node, on average, for chaos"
  )
  parser.add_argument("--pause", type=float, default=20, help="seconds that a client of chaos rests, on average")
  parser.add_argument("--tokens", type=int, default=160)
  parser.add_argument("--model", default="smollm2-135m")
  parser.add_argument("--seed", type=int, default=int(time.time()))
  options = parser.parse_args()
  say(f"seed {options.seed}")
  where = setting(options.model)
  if options.what == "kills":
    return 0 if kills(where, options.rounds, options.seed, options.tokens) else 1
  if options.what == "soak":
    return 0 if soak(where, options.requests, options.seed, options.clients or 8) else 1
  from faults_chaos import World, chaos
  with tempfile.TemporaryDirectory() as folder:
    model_home = None if options.model == "dummy" else where.home
    world = World(Path(folder), model_home, where.arguments, options.nodes)
    try:
      return 0 if asyncio.run(
          chaos(world, options.minutes, options.clients or 50, options.seed, options.pause, options.every, say)
      ) else 1
    finally:
      for node in world.nodes:
        node.stop()


if __name__ == "__main__":
  sys.exit(main())
