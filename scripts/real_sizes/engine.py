"""exo's engine without a server, against the same library driven by nothing but its C interface: both stay loaded, one computes."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from scripts.real_sizes.pairs import Compared, Contest, Goal, Side, in_turn
from scripts.real_sizes.work import Work, pinned
from test.support.nodes import ROOT

_CHILD = "scripts.real_sizes.engine_child"
_LINE_S = 600.0


@asynccontextmanager
async def _side(kind: str, work: Work) -> AsyncIterator[Side]:
  prompt, decoded = work.sizes.prompts[0], work.sizes.decoded
  arguments = (kind, str(work.file), str(work.threads), str(prompt), str(decoded))
  process = await asyncio.create_subprocess_exec(
      *pinned(work.cores),
      sys.executable,
      "-m",
      _CHILD,
      *arguments,
      cwd=ROOT,
      stdin=asyncio.subprocess.PIPE,
      stdout=asyncio.subprocess.PIPE
  )
  assert process.stdin is not None and process.stdout is not None
  to, out = process.stdin, process.stdout

  async def line() -> str:
    text = (await asyncio.wait_for(out.readline(), _LINE_S)).decode().strip()
    if not text:
      raise RuntimeError(f"the {kind} side ended")
    return text

  async def measure() -> dict[str, float]:
    to.write(json.dumps(work.fresh(prompt)).encode() + b"\n")
    read_s, decode_s = json.loads(await line())
    return {"prefill": prompt / read_s, "decode": (decoded - 1) / decode_s}

  try:
    assert await line() == "ready"
    await measure()  # the first one is slower, of whatever
    yield measure
  finally:
    to.close()
    try:
      await asyncio.wait_for(process.wait(), 20)
    except TimeoutError:
      process.kill()


async def measure(work: Work) -> list[Compared]:
  goals = {"prefill": Goal(0.97), "decode": Goal(0.97)}
  async with _side("plain", work) as theirs, _side("exo", work) as ours:
    return await in_turn([Contest(f"engine alone, {work.sizes.prompts[0]} tokens", ours, theirs, goals)], work.pairs,
                         work.most_pairs)
