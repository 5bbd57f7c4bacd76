"""From nothing loaded to the first token: a node that is up and gets its first request, against the start of llama.cpp's server."""

from __future__ import annotations

import shutil
import time

from exo.cli.bench_load import Load
from scripts.real_sizes.pairs import Compared, Contest, Goal, in_turn
from scripts.real_sizes.servers import Serving, llama_server, nodes
from scripts.real_sizes.work import Work

_PROMPT, _CONTEXT = 16, 4608


async def measure(work: Work) -> list[Compared]:
  async def serve() -> dict[str, float]:
    started = time.perf_counter()
    with llama_server(work, Serving(_CONTEXT, kv=("q8_0", "f16"))) as url:
      async with Load(url, None) as load:
        answer = await load.complete(work.fresh(_PROMPT), 2)
    return {"first token, s": answer.arrived[0] - started}

  async def load() -> dict[str, float]:
    shutil.rmtree(work.state / "load", ignore_errors=True)  # with what is known of stages
    with nodes(work, "load", "--context", str(_CONTEXT), "--parallel", "1") as (node, ):
      async with Load(node.url, work.model) as load:
        return {"first token, s": (await load.complete(work.fresh(_PROMPT), 2)).first_s}

  await serve()  # the file is in the page cache from here on
  contest = Contest("load to first token", load, serve, {"first token, s": Goal(later=1.0)})
  return await in_turn([contest], work.pairs, work.most_pairs)
