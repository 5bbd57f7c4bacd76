"""The scheduler as a pure policy, against a ring that is simulated token by token."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.errors import InvalidRequestError, QueueFullError
from exo.inference.engine import LogitsOf
from exo.inference.sampling import SamplingParams
from exo.networking.messages import Request, SequenceToken
from exo.orchestration.scheduler import Limits, Scheduler, Step

LIMITS = Limits(max_sequences=4, max_kv_tokens=400, max_context=128, stages=1, step_tokens=32, max_waiting=100)


def request(name: str, prompt: int, max_tokens: int, **fields) -> Request:
  return Request(name, "entry", tuple(range(10, 10 + prompt)), max_tokens, frozenset({0}), SamplingParams(), **fields)


class FakeRing:
  """Computes steps the way stages do: keeps each sequence's tokens and answers with position-dependent tokens."""
  def __init__(self, scheduler: Scheduler) -> None:
    self.scheduler = scheduler
    self.caches: dict[int, list[int]] = {}
    self.specs: dict[int, Request] = {}
    self.prompts: dict[int, int] = {}
    self.output: dict[str, list[int]] = {}
    self.in_flight: list[Step] = []
    self.steps = 0
    self.run = 1

  def let_out(self) -> None:
    while (step := self.scheduler.next_step(self.run)) is not None:
      self.in_flight.append(step)
      assert sum(bool(s.entries) for s in self.in_flight) <= self.scheduler.limits.stages

  def apply(self, step: Step) -> tuple[SequenceToken, ...]:
    self.steps += 1
    for gone in step.drops:
      self.caches.pop(gone, None)
    for opened in step.opens:
      assert opened.sequence not in self.caches
      self.caches[opened.sequence], self.specs[opened.sequence] = [], opened.request
      self.prompts[opened.sequence] = opened.prompt_tokens
    assert len(step.token_ids) == sum(e.n_tokens for e in step.entries) <= self.scheduler.limits.step_tokens
    assert len({e.sequence for e in step.entries}) == len(step.entries)
    out, start = [], 0
    for entry in step.entries:
      cache = self.caches[entry.sequence]
      assert entry.position == len(cache)
      cache.extend(int(t) for t in step.token_ids[start:start + entry.n_tokens])
      start += entry.n_tokens
      prompt = self.prompts[entry.sequence]
      if entry.position < prompt:
        assert entry.n_tokens > 1 or prompt == 1, "a prompt token was computed alone"
        assert entry.position + entry.n_tokens <= prompt
      if entry.logits and len(cache) >= prompt:
        spec = self.specs[entry.sequence]
        generated = len(cache) - prompt + 1
        self.output.setdefault(spec.request_id, []).append(1000 + len(cache))
        out.append(SequenceToken(entry.sequence, 1000 + len(cache), "length" if generated >= spec.max_tokens else ""))
    fresh = out
    for _ in range(1, step.run):  # the only stage goes on by itself
      assert self.scheduler.limits.stages == 1
      going, fresh = [token for token in fresh if not token.finish_reason], []
      for token in going:
        cache, spec = self.caches[token.sequence], self.specs[token.sequence]
        cache.append(token.token_id)
        assert len(cache) <= self.scheduler.limits.max_context
        generated = len(cache) - self.prompts[token.sequence] + 1
        self.output[spec.request_id].append(1000 + len(cache))
        fresh.append(SequenceToken(token.sequence, 1000 + len(cache), "length" if generated >= spec.max_tokens else ""))
      out = out + fresh
    return tuple(out)

  def turn(self) -> bool:
    self.let_out()
    if not self.in_flight:
      return False
    step = self.in_flight.pop(0)  # stages keep the order
    tokens = self.apply(step)
    if step.entries:
      self.scheduler.on_result(step.number, tokens)
    return True


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 100), st.integers(1, 20)), min_size=1, max_size=12), st.integers(1, 4),
    st.integers(4, 64), st.integers(1, 3)
)
def test_every_request_gets_its_tokens_and_everything_is_freed(sizes, stages: int, budget: int, run: int) -> None:
  scheduler = Scheduler(Limits(3, 300, 128, stages, budget, 100))
  ring = FakeRing(scheduler)
  ring.run = run
  for i, (prompt, count) in enumerate(sizes):
    scheduler.add(request(f"r{i}", prompt, count))
  while ring.turn():
    pass
  for i, (prompt, count) in enumerate(sizes):
    assert ring.output[f"r{i}"] == [1000 + prompt + k for k in range(count)]
  while ring.turn():
    pass
  assert not ring.caches
  counts = scheduler.counts
  assert (counts.running, counts.waiting, counts.steps_in_flight, counts.reserved_kv_tokens) == (0, 0, 0, 0)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 20)), min_size=1, max_size=8), st.integers(1, 3),
    st.lists(st.integers(0, 7), max_size=6), st.randoms()
)
def test_cancelling_at_any_moment_frees_everything(sizes, stages: int, cancelled, random) -> None:
  scheduler = Scheduler(Limits(3, 300, 128, stages, 16, 100))
  ring = FakeRing(scheduler)
  for i, (prompt, count) in enumerate(sizes):
    scheduler.add(request(f"r{i}", prompt, count))
  pending = [f"r{i}" for i in cancelled]
  while ring.turn():
    if pending and random.random() < 0.3:
      scheduler.cancel(pending.pop())
  for i, (prompt, count) in enumerate(sizes):
    if i not in cancelled:
      assert ring.output[f"r{i}"] == [1000 + prompt + k for k in range(count)]
  while ring.turn():
    pass
  assert not ring.caches and scheduler.counts.reserved_kv_tokens == 0


def test_decodes_join_and_a_prompt_is_cut_so_that_they_go_on() -> None:
  scheduler = Scheduler(LIMITS)
  ring = FakeRing(scheduler)
  scheduler.add(request("a", 4, 10))
  scheduler.add(request("b", 4, 10))
  ring.turn()
  scheduler.add(request("long", 100, 5))
  step = scheduler.next_step()
  assert step is not None and [e.n_tokens for e in step.entries] == [1, 1, 30]
  assert [e.logits for e in step.entries] == [LogitsOf.LAST, LogitsOf.LAST, LogitsOf.NONE]


def test_no_chunk_leaves_a_single_token_behind() -> None:
  scheduler = Scheduler(LIMITS)
  scheduler.add(request("a", 33, 1))
  first = scheduler.next_step()
  assert first is not None and first.entries[0].n_tokens == 31


def test_frames_of_a_ring_share_the_decodes() -> None:
  scheduler = Scheduler(Limits(8, 4000, 128, stages=2, step_tokens=64))
  ring = FakeRing(scheduler)
  for i in range(8):
    scheduler.add(request(f"r{i}", 4, 50))
  for _ in range(10):
    ring.turn()
  ring.let_out()
  assert [len(step.entries) for step in ring.in_flight] == [4, 4]


def test_first_come_first_served_and_memory_bounds_admission() -> None:
  scheduler = Scheduler(Limits(max_sequences=8, max_kv_tokens=100, max_context=128, step_tokens=64))
  scheduler.add(request("big", 50, 40))
  scheduler.add(request("bigger", 60, 40))
  scheduler.add(request("small", 4, 4))
  step = scheduler.next_step()
  assert step is not None and [o.request.request_id for o in step.opens] == ["big"]
  assert scheduler.counts.waiting == 2  # small does not overtake


def test_what_can_never_run_is_refused_at_once() -> None:
  scheduler = Scheduler(Limits(max_sequences=2, max_kv_tokens=50, max_context=128, max_waiting=1))
  with pytest.raises(InvalidRequestError, match="129 tokens, the context has room for 128") as caught:
    scheduler.add(request("a", 129, 1))
  assert caught.value.details["code"] == "context_length_exceeded"
  with pytest.raises(InvalidRequestError, match="KV cache holds 50"):
    scheduler.add(request("a", 60, 1))
  with pytest.raises(InvalidRequestError, match="empty"):
    scheduler.add(request("a", 0, 1))
  scheduler.add(request("a", 10, 1))
  with pytest.raises(QueueFullError):
    scheduler.add(request("b", 10, 1))


def test_a_failed_step_returns_its_requests() -> None:
  scheduler = Scheduler(LIMITS)
  scheduler.add(request("a", 4, 10))
  scheduler.add(request("b", 4, 10))
  step = scheduler.next_step()
  assert step is not None
  assert {r.request_id for r in scheduler.on_failure(step.number)} == {"a", "b"}
  following = scheduler.next_step()
  assert following is not None and not following.entries and len(following.drops) == 2
  assert scheduler.counts.reserved_kv_tokens == 0


def test_scoring_wants_every_row() -> None:
  scheduler = Scheduler(LIMITS)
  scheduler.add(request("score", 60, 0, prompt_logprobs=1))
  first = scheduler.next_step()
  assert first is not None and first.entries[0].logits == LogitsOf.ALL
  np.testing.assert_array_equal(first.token_ids, np.arange(10, 42))
