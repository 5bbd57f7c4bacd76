"""What a second turn costs that must be exact: a kept answer was decoded, so its rows are made again where a prompt's are others."""

from __future__ import annotations

from exo.cli.bench_load import Load
from scripts.real_sizes.pairs import Compared, Contest, Goal, Side, in_turn
from scripts.real_sizes.servers import nodes, wait_studied
from scripts.real_sizes.work import Work
from test.support.shaped_models import ids_of

_SAID = 40  # tokens of the second turn itself


def _second_turn(work: Work, load: Load) -> Side:
  async def measure() -> dict[str, float]:
    prompt = work.fresh(work.sizes.prompts[0])
    answer = await load.complete(prompt, work.sizes.decoded, logprobs=1)
    second = await load.complete([*prompt, *ids_of(answer.tokens), *work.fresh(_SAID)], 2)
    return {"first token, s": second.first_s, "tokens kept": second.cached_tokens}

  return measure


async def measure(work: Work) -> list[Compared]:
  with (nodes(work, "kept", home="one") as (exact, ), nodes(work, "free", "--exact", "off", home="one") as (off, )):
    async with Load(exact.url, work.model) as ours, Load(off.url, work.model) as loose:
      await ours.complete(work.fresh(20), 4)
      wait_studied([exact])
      await loose.complete(work.fresh(20), 4)
      name = f"second turn after {work.sizes.prompts[0]} + {work.sizes.decoded} tokens, exact / --exact off"
      goals = {"first token, s": Goal(), "tokens kept": Goal()}
      contest = Contest(name, _second_turn(work, ours), _second_turn(work, loose), goals)
      return await in_turn([contest], work.pairs, work.most_pairs)
