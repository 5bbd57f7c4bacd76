"""A ring of two nodes, a core each, against one node on one core, and llama.cpp with half of its layers on its RPC server, likewise."""

from __future__ import annotations

from contextlib import ExitStack

from exo.cli.bench_load import Load
from scripts.real_sizes.pairs import Compared, Contest, Goal, Side, in_turn
from scripts.real_sizes.servers import (
    Serving,
    far_nodes,
    first_of,
    llama_server,
    nodes,
    rpc_server,
    speeds,
    wait_studied,
)
from scripts.real_sizes.streams import decoding
from scripts.real_sizes.work import Work, allowed_cores
from test.support.proxy import SlowProxy

_FAR_S = 0.001


def _one_stream(work: Work, load: Load) -> Side:
  async def measure() -> dict[str, float]:
    return dict(await speeds(load, work.fresh(work.sizes.ring_prompt), work.sizes.decoded))

  return measure


def _two_cores() -> tuple[int, int]:
  """The same one twice where there is one alone."""
  first, *others = allowed_cores()
  return first, others[0] if others else first


async def measure(work: Work) -> list[Compared]:
  a, b = _two_cores()
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
        else:
          found += await _beside_rpc(work, two, 0.0)
  if work.server in ("", "wheel"):
    return found
  with far_nodes(work, [[a], [b]], _FAR_S) as ring:
    async with Load(ring[0].url, work.model) as any_of_ring:
      await any_of_ring.complete(work.fresh(20), 4)
    wait_studied(ring)
    first = first_of(ring[0])
    async with Load(next(node.url for node in ring if node.node_id == first), work.model) as two:
      await two.complete(work.fresh(prompt), 4)
      return found + await _beside_rpc(work, two, _FAR_S)


async def _beside_rpc(work: Work, two: Load, delay_s: float) -> list[Compared]:
  """A ring of two beside llama.cpp with half of its layers on its RPC server, over links of the same kind."""
  a, b = _two_cores()
  prompt = work.sizes.ring_prompt
  context = -(-(prompt + work.sizes.decoded) // 256) * 256
  with ExitStack() as stack:
    port = stack.enter_context(rpc_server(work, b))
    if delay_s:
      port = stack.enter_context(SlowProxy(port, delay_s)).port
    halves = Serving(context, 1, ("q8_0", "f16"), work.shape.layers // 2, f"127.0.0.1:{port}")
    async with Load(stack.enter_context(llama_server(work, halves, [a])), None) as theirs:
      await theirs.complete(work.fresh(prompt), 4)
      link, goal = (f", {1e3 * delay_s:.0f} ms one way", 1.0) if delay_s else ("", 0.95)
      rpc = Contest(
          f"ring of two / llama.cpp over RPC, {prompt} tokens{link}", _one_stream(work, two), _one_stream(work, theirs),
          {"prefill": Goal(), "decode": Goal(goal)}
      )
      return await in_turn([rpc], work.pairs, work.most_pairs)
