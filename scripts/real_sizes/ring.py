"""A ring of two nodes, a core each, against one node on one core, and llama.cpp with half of its layers on its RPC server, likewise."""

from __future__ import annotations

from contextlib import ExitStack

from exo.cli.bench_load import Load
from scripts.real_sizes.pairs import Compared, Contest, Goal, Side, in_turn
from scripts.real_sizes.servers import Serving, first_of, llama_server, nodes, rpc_server, speeds, wait_studied
from scripts.real_sizes.streams import decoding
from scripts.real_sizes.work import Work, allowed_cores


def _one_stream(work: Work, load: Load) -> Side:
  async def measure() -> dict[str, float]:
    return dict(await speeds(load, work.fresh(work.sizes.ring_prompt), work.sizes.decoded))

  return measure


async def measure(work: Work) -> list[Compared]:
  a, *others = allowed_cores()
  b = others[0] if others else a
  prompt, count = work.sizes.ring_prompt, work.sizes.ring_streams
  with ExitStack() as stack:
    one, = stack.enter_context(nodes(work, "alone", each=[[a]], home="one"))
    ring = stack.enter_context(nodes(work, "ring", each=[[a], [b]]))
    async with Load(one.url, work.model) as single, Load(ring[0].url, work.model) as any_of_ring:
      for load in (single, any_of_ring):
        await load.complete(work.fresh(20), 4)
      wait_studied([one, *ring])
      first = first_of(ring[0])
      async with Load(next(node.url for node in ring if node.node_id == first), work.model) as two:
        for load in (single, two):
          await load.complete(work.fresh(prompt), 4)
        ours, drawn = _one_stream(work, two), decoding(work, two, count, temperature=1.0)
        contests = [
            Contest(
                f"ring of two / one node, {prompt} tokens", ours, _one_stream(work, single),
                {"prefill": Goal(1.7), "decode": Goal(0.95)}
            )
        ]
        found = await in_turn(contests, work.pairs, work.most_pairs)
        streams = Contest(
            f"ring of two, {count} exact streams / unseeded", decoding(work, two, count), drawn, {"decode": Goal(0.9)}
        )
        found += await in_turn([streams], work.pairs, work.most_pairs)
        if work.server in ("", "wheel"):
          print("  llama.cpp's RPC server is left out: --server FOLDER names one with ggml-rpc-server", flush=True)
          return found
        address = stack.enter_context(rpc_server(work, b))
        context = -(-(prompt + work.sizes.decoded) // 256) * 256
        halves = Serving(context, 1, ("q8_0", "f16"), work.shape.layers // 2, address)
        async with Load(stack.enter_context(llama_server(work, halves, [a])), None) as theirs:
          await theirs.complete(work.fresh(prompt), 4)
          rpc = Contest(
              f"ring of two / llama.cpp over RPC, {prompt} tokens", ours, _one_stream(work, theirs),
              {"prefill": Goal(), "decode": Goal(0.95)}
          )
          return found + await in_turn([rpc], work.pairs, work.most_pairs)
