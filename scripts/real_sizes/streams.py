"""Several streams at once: tokens/s of all together while all decode, against llama.cpp's server with as many slots, as it comes."""

from __future__ import annotations

from typing import Any

from exo.cli.bench_load import Load, shared_tokens_s
from scripts.real_sizes.pairs import Compared, Contest, Goal, Side, in_turn
from scripts.real_sizes.servers import Serving, llama_server, nodes, wait_studied
from scripts.real_sizes.work import Work

_RANDOM = {"temperature": 1.0}  # without a seed


def decoding(work: Work, load: Load, count: int, **fields: Any) -> Side:
  async def measure() -> dict[str, float]:
    prompts = [work.fresh(work.sizes.stream_prompt) for _ in range(count)]
    answers = await load.together(prompts, work.sizes.decoded, **fields)
    speed = shared_tokens_s(answers)
    if not speed:
      raise RuntimeError(f"{count} streams never decoded all at once: more tokens are needed")
    return {"decode": speed}

  return measure


async def measure(work: Work) -> list[Compared]:
  found: list[Compared] = []
  each = -(-(work.sizes.stream_prompt + work.sizes.decoded) // 256) * 256
  with (nodes(work, "comes", home="one") as (comes, ), nodes(work, "loose", "--exact", "off", home="one") as (loose, )):
    async with Load(comes.url, work.model) as ours, Load(loose.url, work.model) as off:
      await ours.complete(work.fresh(20), 4)
      wait_studied([comes])
      for count in work.sizes.streams:
        with llama_server(work, Serving(each * count, count)) as server:
          async with Load(server, None) as theirs:
            for load in (theirs, ours, off):
              await load.together([work.fresh(20) for _ in range(count)], 4)
            greedy, drawn = decoding(work, theirs, count), decoding(work, theirs, count, **_RANDOM)
            contests = [
                Contest(f"{count} streams, --exact off", decoding(work, off, count), greedy, {"decode": Goal(0.95)}),
                Contest(f"{count} streams, exact", decoding(work, ours, count), greedy, {"decode": Goal()}),
                Contest(
                    f"{count} streams, unseeded", decoding(work, ours, count, **_RANDOM), drawn, {"decode": Goal(0.85)}
                )
            ]
            found += await in_turn(contests, work.pairs, work.most_pairs)
  return found
