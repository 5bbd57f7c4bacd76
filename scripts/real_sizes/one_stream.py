"""One stream over HTTP: a node against llama.cpp's server on the same cores, with the same context and types of keys and values."""

from __future__ import annotations

from exo.cli.bench_load import Load
from scripts.real_sizes.pairs import Compared, Contest, Goal, in_turn
from scripts.real_sizes.servers import Serving, llama_server, nodes, speeds, wait_studied
from scripts.real_sizes.work import Work

_LONG = 1000  # tokens, from which on exact prompts may be slower


async def measure(work: Work) -> list[Compared]:
  decoded = work.sizes.decoded
  context = -(-(max(work.sizes.prompts) + decoded) // 256) * 256
  flags = ("--context", str(context), "--parallel", "1")
  found: list[Compared] = []
  with (
      llama_server(work, Serving(context, kv=("q8_0", "f16"))) as server, nodes(work, "exact", *flags, home="one") as
      (exact, ), nodes(work, "off", "--exact", "off", *flags, home="one") as (off, )
  ):
    async with Load(server, None) as theirs, Load(exact.url, work.model) as ours, Load(off.url, work.model) as loose:
      await ours.complete(work.fresh(20), 4)
      wait_studied([exact])
      for load in (theirs, ours, loose):
        await load.complete(work.fresh(40), 4)
      for prompt in work.sizes.prompts:

        async def serve(n: int = prompt, load: Load = theirs) -> dict[str, float]:
          return dict(await speeds(load, work.fresh(n), decoded))

        async def exactly(n: int = prompt) -> dict[str, float]:
          return await serve(n, ours)

        async def loosely(n: int = prompt) -> dict[str, float]:
          return await serve(n, loose)

        is_long = prompt >= _LONG
        of_exact = {"prefill": Goal(0.6 if is_long else 0.95), "decode": Goal(0.95)}
        of_loose = {"prefill": Goal(0.95 if is_long else None), "decode": Goal()}
        contests = [
            Contest(f"HTTP, {prompt} tokens, exact", exactly, serve, of_exact),
            Contest(f"HTTP, {prompt} tokens, --exact off", loosely, serve, of_loose)
        ]
        found += await in_turn(contests, work.pairs, work.most_pairs)
  return found
