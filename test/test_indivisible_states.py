"""Models whose layers keep a state instead of every token: copies of it are kept, and texts go on from these."""

from __future__ import annotations

import json
import random
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exo.errors import CacheReuseError
from exo.inference.engine import Batch, BatchEntry, LogitsOf
from exo.inference.engines import probe_engine
from exo.inference.exactness import Exactness
from exo.inference.sampling import SamplingParams
from exo.inference.weights.checkpoint import open_checkpoint
from exo.networking.messages import Request, SequenceOpen
from exo.orchestration.kv_room import Limits
from exo.orchestration.prefix_cache import MIN_REUSED, PrefixCache
from exo.orchestration.scheduler import Scheduler
from test.support.families import Form, all_forms
from test.support.nodes import NodeProcess, ring
from test.support.stages import Stages
from test.support.streams import stream
from test.test_scheduler import FakeRing

LIMITS = Limits(
    max_sequences=16,
    max_kv_tokens=20000,
    max_context=4096,
    step_tokens=64,
    indivisible=True,
    exactness=(Exactness(prompt_multiple=16, as_prompt=False, draft_rows=1), )
)


class Talks(FakeRing):
  """Whose requests bring any prompts."""
  def __init__(self, scheduler: Scheduler) -> None:
    super().__init__(scheduler)
    self.asked: dict[str, tuple[int, ...]] = {}
    self.begun: dict[str, int] = {}  # tokens that each began with

  def began_with(self, opened: SequenceOpen) -> list[int]:
    self.begun[opened.request.request_id] = opened.reused
    return list(self.asked[opened.request.request_id][:opened.reused])

  def ask(self, name: str, prompt: list[int], answer: int, *, exact: bool = False, together: bool = False) -> list[int]:
    """What is answered; nothing yet, where others are asked `together` with it."""
    self.asked[name] = tuple(prompt)
    self.scheduler.add(Request(name, "entry", tuple(prompt), answer, frozenset({0}), SamplingParams(), exact=exact))
    if together:
      return []
    self.finish()
    assert self.output[name] == self.expected(len(prompt), answer)
    return self.output[name]


def tokens(seed: int, count: int) -> list[int]:
  return random.Random(seed).choices(range(10, 900), k=count)


@pytest.mark.parametrize("stages", [1, 3])
def test_issue_20_line_8_a_second_turn_begins_where_the_first_ended(stages: int) -> None:
  ring = Talks(Scheduler(replace(LIMITS, stages=stages, exactness=LIMITS.exactness * stages)))
  prompt = tokens(1, 200)
  answer = ring.ask("first", prompt, 30)
  ring.ask("second", [*prompt, *answer, *tokens(2, 40)], 5)
  assert ring.begun["second"] == 200 + 29  # the last token of an answer is not computed


@pytest.mark.parametrize("exact", [False, True])
def test_issue_20_line_8_an_answer_in_other_tokens_costs_no_more_than_the_last_message(exact: bool) -> None:
  """Templates write an answer that is history otherwise, and end a prompt with what invites the model to speak."""
  ring = Talks(Scheduler(LIMITS))
  prompt, invitation = tokens(1, 200), [7, 8, 9]
  ring.ask("first", [*prompt, *invitation], 30, exact=exact)
  second = [*prompt, *tokens(3, 30), *tokens(2, 40)]
  ring.ask("second", [*second, *invitation], 5, exact=exact)
  assert ring.begun["second"] == 176  # a multiple of 16 before the last 16 tokens
  ring.ask("third", [*second, *tokens(4, 50), *invitation], 5, exact=exact)
  assert ring.begun["third"] == 256


def test_issue_20_line_8_an_edited_history_begins_where_it_was_edited_the_second_time() -> None:
  ring = Talks(Scheduler(LIMITS))
  system = tokens(1, 300)
  ring.ask("first", [*system, *tokens(2, 200)], 4)
  ring.ask("edited", [*system, *tokens(3, 200)], 4)
  ring.ask("edited again", [*system, *tokens(4, 200)], 4)
  assert [ring.begun[name] for name in ("first", "edited", "edited again")] == [0, 0, 288]


def test_issue_20_line_8_exact_requests_begin_with_what_prompts_made() -> None:
  ring = Talks(Scheduler(LIMITS))
  prompt = tokens(1, 100)
  answer = ring.ask("first", prompt, 60, exact=True)
  ring.ask("second", [*prompt, *answer, *tokens(2, 40)], 5, exact=True)
  assert ring.begun["second"] == 80
  ring.ask("random", [*prompt, *answer, *tokens(3, 40)], 5)
  assert ring.begun["random"] == 159


def test_issue_20_line_8_copies_give_way_to_those_who_run() -> None:
  """Two hundred requests of all kinds at once, with room for few copies or none; the ring looks at what it is told."""
  for room, sequences in ((900, 3), (3000, 16), (450, 16), (700, 1)):
    limits = replace(LIMITS, max_kv_tokens=room, max_sequences=sequences, max_context=400)
    ring, draw = Talks(Scheduler(limits)), random.Random(room)
    for k in range(200):
      start = tokens(draw.randrange(3), draw.choice((60, 150, 250)))
      prompt = [*start, *tokens(100 + draw.randrange(20), draw.randrange(1, 100))]
      ring.ask(str(k), prompt, draw.randrange(1, 40), exact=draw.random() < 0.5, together=True)
      if draw.random() < 0.3:
        ring.scheduler.cancel(str(draw.randrange(k + 1)))
      for _ in range(draw.randrange(4)):
        ring.turn()
      if draw.random() < 0.02 and ring.in_flight:  # a step is lost
        step = ring.in_flight.pop()
        ring.change_caches(step)
        ring.scheduler.on_failure(step.number)
        while ring.in_flight and ring.turn():
          pass
    ring.finish()
    assert sequences == 1 or any(ring.begun.values())


def test_issue_20_line_8_a_kept_state_is_used_whole_or_not_at_all() -> None:
  kept = PrefixCache(indivisible=True)
  long, short = tokens(1, 100), tokens(1, 100)[:64]
  assert kept.keep(1, long, "") == [] and kept.keep(2, short, "") == []  # a shorter one is of use beside it

  def usable(common: int, _: int) -> int:
    return common

  found = kept.match(np.asarray([*long[:90], 3, 4], np.int32), "", usable)
  assert found is not None and (found.sequence, found.length) == (2, 64)
  assert kept.match(np.asarray(long[:40], np.int32), "", usable) is None
  assert kept.keep(3, short, "") == [3] and MIN_REUSED <= 16


# on real nodes

ENGINES = [
    pytest.param(engine, family, form, id=engine, marks=pytest.mark.skipif(not there, reason=why))
    for engine, family, form, there, why in (
        ("mlx", "falcon_h1", "hub", probe_engine("mlx").available, "mlx cannot run here"),
        ("llama_cpp", "lfm2", "gguf", Form("lfm2", "gguf") in all_forms(), "no lfm2 as GGUF is here"),
    )
]
CONTEXT = 4096  # tiny ones say less than they can
IDS = [int(i) for i in np.random.default_rng(5).integers(5, 250, 3000)]


def lay_out(family: str, form: str, folder: Path) -> str:
  """A model for longer texts; returns its name."""
  made = Form(family, form).lay_out(folder)
  if form == "gguf":
    file = made / "model.gguf"
    data = file.read_bytes()
    file.unlink()
    key = b"lfm2.context_length" + struct.pack("<I", 4)  # of a number of 32 bits
    at = data.index(key) + len(key)
    file.write_bytes(data[:at] + struct.pack("<I", CONTEXT) + data[at + 4:])
  else:
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").unlink()
    (made / "config.json").write_text(json.dumps(config | {"max_position_embeddings": CONTEXT}))
  return made.name


def ask(node: NodeProcess, model: str, prompt: list[int], **fields: Any) -> tuple[list[Any], int]:
  """(tokens with their log probabilities, how many tokens of the prompt were kept)."""
  body = {"model": model, "prompt": prompt, "max_tokens": 8, "temperature": 0, "logprobs": 1, "ignore_eos": True}
  status, answer = node.post("/v1/completions", body | fields)
  assert status == 200, answer
  of = answer["choices"][0]["logprobs"]
  kept = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
  return list(zip(of["tokens"], of["token_logprobs"], strict=True)), kept


def chosen(engine: str, folder: Path, *more: str) -> tuple[str, ...]:
  return "--inference-engine", engine, "--model-dir", str(folder), "--kv-type", "f32", "--max-memory", "1500", *more


@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("engine", "family", "form"), ENGINES)
def test_issue_20_line_8_turns_are_the_same_warm_cold_edited_and_evicted(
    engine: str, family: str, form: str, count: int, tmp_path: Path
) -> None:
  model = lay_out(family, form, tmp_path / "shelf")
  flags = chosen(engine, tmp_path / "shelf", "--parallel", "4", "--context", "2048")
  first, second, edited = IDS[:800], IDS[:1000], [*IDS[:780], *IDS[1800:1900]]
  with ring(tmp_path / "cold", count, *flags) as nodes:
    expected = [ask(nodes[-1], model, prompt, cache_salt=str(k))[0] for k, prompt in enumerate((first, second, edited))]
  with ring(tmp_path / "warm", count, *flags) as nodes:
    node = nodes[-1]
    assert ask(node, model, first) == (expected[0], 0)
    assert ask(node, model, second) == (expected[1], 512)
    assert ask(node, model, edited) == (expected[2], 512)
    for k in range(6):  # more than is kept
      ask(node, model, IDS[100 + k:2000 + k], max_tokens=1)
    assert ask(node, model, second) == (expected[1], 0)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("turn", [pytest.param(0, marks=pytest.mark.slow), 1])
@pytest.mark.parametrize(("engine", "family", "form"), [
    pytest.param(*ENGINES[0].values, marks=[*ENGINES[0].marks, pytest.mark.slow], id="mlx"), ENGINES[1]
])
def test_issue_20_line_8_a_kill_in_the_first_or_second_turn_changes_nothing(
    engine: str, family: str, form: str, turn: int, tmp_path: Path
) -> None:
  model = lay_out(family, form, tmp_path / "shelf")
  flags = chosen(engine, tmp_path / "shelf")
  said: list[list[str]] = []
  for home in ("calm", "killed"):
    with ring(tmp_path / home, 3, *flags) as nodes:
      by_id = {node.node_id: node for node in nodes}
      ask(nodes[0], model, IDS[:40], max_tokens=1)
      stages = [stage["node_id"] for stage in nodes[0].get("/v1/topology")[1]["plans"][-1]["stages"]]
      assert len(stages) > 1
      entry, victim = by_id[stages[0]], by_id[stages[-1]]
      texts = []
      for k, prompt in enumerate((IDS[:800], IDS[:1000])):
        kill = home == "killed" and k == turn
        streamed = stream(
            entry,
            prompt,  # type: ignore[arg-type]
            lambda count: victim.kill() if kill and count == 6 else None,  # noqa: B023
            chat=False,
            model=model,
            max_tokens=40,
            ignore_eos=True
        )
        assert streamed.done and streamed.error is None
        assert len(streamed.resumptions) == int(kill)
        texts.append(streamed.text)
      said.append(texts)
  assert said[0] == said[1]


@pytest.mark.parametrize(("engine", "family", "form"), ENGINES)
def test_issue_20_line_8_no_draft_is_made_that_could_not_be_taken_back(
    engine: str, family: str, form: str, tmp_path: Path
) -> None:
  """Any stage may say that it cannot, and then none has drafts."""
  checkpoint = open_checkpoint(tmp_path / "shelf" / lay_out(family, form, tmp_path / "shelf"))
  (stage, ) = Stages(engine, checkpoint).models
  assert stage.memory.indivisible and stage.memory.max_drafting == 0
  stage.step(Batch((BatchEntry(1, 0, 40, LogitsOf.LAST), ), np.asarray(IDS[:40], np.int32)))
  with pytest.raises(CacheReuseError):
    stage.truncate(1, 20)
  with pytest.raises(CacheReuseError):
    stage.copy(1, 2, 20)
  again = Batch((BatchEntry(1, 40, 1, LogitsOf.LAST), ), np.asarray(IDS[40:41], np.int32))
  stage.copy(1, 3, 40)
  expected = stage.step(again).copy()
  twin = Batch((BatchEntry(3, 40, 1, LogitsOf.LAST), ), again.token_ids)
  assert np.array_equal(stage.step(twin), expected)
  stage.close()
