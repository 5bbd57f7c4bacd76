"""The scheduler as a pure policy, against a ring that is simulated token by token."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.errors import InvalidRequestError, QueueFullError
from exo.inference.engine import LogitsOf
from exo.inference.sampling import SamplingParams
from exo.networking.messages import Request, SequenceOpen, SequenceToken, WideStep
from exo.orchestration.kv_room import Limits
from exo.orchestration.scheduler import Scheduler
from exo.orchestration.step import Step

LIMITS = Limits(max_sequences=4, max_kv_tokens=400, max_context=128, stages=1, step_tokens=32, max_waiting=100)


def request(name: str, prompt: int, max_tokens: int, **fields) -> Request:
  return Request(name, "entry", tuple(range(10, 10 + prompt)), max_tokens, frozenset({0}), SamplingParams(), **fields)


class FakeRing:
  """Computes steps the way stages do: keeps each sequence's tokens and answers with position-dependent tokens.

  With a `period` the answers repeat themselves, so that drafts are right most of the time.
  """
  def __init__(self, scheduler: Scheduler, period: int = 10**6) -> None:
    self.scheduler, self.period = scheduler, period
    self.caches: dict[int, list[int]] = {}
    self.specs: dict[int, Request] = {}
    self.prompts: dict[int, int] = {}
    self.output: dict[str, list[int]] = {}
    self.in_flight: list[Step] = []
    self.steps = self.reused = self.drafted = self.replayed = 0
    self.run = 1

  def answer(self, length: int) -> int:
    """What follows so many tokens."""
    return 1000 + length % self.period

  def expected(self, prompt: int, count: int) -> list[int]:
    return [self.answer(prompt + k) for k in range(count)]

  def began_with(self, opened: SequenceOpen) -> list[int]:
    return list(range(10, 10 + opened.reused))

  def let_out(self) -> None:
    while (step := self.scheduler.next_step(self.run)) is not None:
      self.in_flight.append(step)
      assert sum(bool(s.entries) for s in self.in_flight) <= self.scheduler.limits.stages + 1

  def change_caches(self, step: Step) -> None:
    for gone in step.drops:
      self.caches.pop(gone, None)
      self.specs.pop(gone, None)
    for ended in step.ends:
      assert ended in self.caches
      del self.specs[ended]
    for number, length in step.truncates:
      assert length < len(self.caches[number])
      assert not self.scheduler.limits.indivisible
      del self.caches[number][length:]
    for number, copy, length in step.copies:
      assert copy not in self.caches and len(self.caches[number]) == length
      self.caches[copy] = list(self.caches[number])
    for opened in step.opens:
      assert (opened.sequence in self.caches) == (opened.source == opened.sequence)
      assert opened.reused <= max(0, opened.prompt_tokens - 2)
      cache = self.caches[opened.source][:opened.reused] if opened.reused else []
      assert not self.scheduler.limits.indivisible or len(cache) == len(self.caches.get(opened.source, ()))
      assert cache == self.began_with(opened), "another prompt's cache"
      self.reused += opened.reused
      self.caches[opened.sequence], self.specs[opened.sequence] = list(cache), opened.request
      self.prompts[opened.sequence] = opened.prompt_tokens
    assert len(self.caches) <= self.scheduler.limits.max_sequences

  def apply(self, step: Step) -> tuple[SequenceToken, ...]:
    self.steps += 1
    self.change_caches(step)
    assert len(step.token_ids) == sum(e.n_tokens for e in step.entries)
    # beside decodes the next piece of a prompt may be one that cannot be smaller
    piece = self.scheduler.exactness.most_piece if step.entries and step.entries[-1].n_tokens > 1 else 0
    assert len(step.token_ids) <= self.scheduler.limits.step_tokens + piece
    assert len({e.sequence for e in step.entries}) == len(step.entries)
    out, start = [], 0
    for entry in step.entries:
      cache, prompt = self.caches[entry.sequence], self.prompts[entry.sequence]
      ids = [int(t) for t in step.token_ids[start:start + entry.n_tokens]]
      start += entry.n_tokens
      assert entry.position == len(cache)
      cache.extend(ids)
      if entry.position < prompt:
        assert entry.n_tokens > 1 or prompt == 1, "a prompt token was computed alone"
        assert entry.position + entry.n_tokens <= prompt
        if entry.logits and len(cache) >= prompt:
          out.append(self.token(entry.sequence, len(cache)))
        continue
      spec = self.specs[entry.sequence]
      if entry.position + 1 < prompt + len(spec.replay_ids):
        assert not entry.logits, "what the client has is not sampled"
        index = entry.position - prompt
        wide = next((w for w in spec.replay_wide if w.index == index), WideStep(index, 1, 1))
        assert entry.n_tokens == wide.width, "not the step that made these tokens"
        assert tuple(ids[:wide.count]) == spec.replay_ids[index:index + wide.count]
        self.replayed += wide.count
        continue
      for k, following in enumerate([*ids[1:], None]):  # drafts, as long as they are right
        self.drafted += following is not None
        out.append(self.token(entry.sequence, entry.position + k + 1))
        if out[-1].finish_reason or out[-1].token_id != following:
          break
    assert sum(map(len, self.caches.values())) <= self.scheduler.limits.max_kv_tokens
    fresh = out
    for _ in range(1, step.run):  # the only stage goes on by itself
      assert self.scheduler.limits.stages == 1
      going, fresh = [token for token in fresh if not token.finish_reason], []
      for token in going:
        cache = self.caches[token.sequence]
        cache.append(token.token_id)
        assert len(cache) <= self.scheduler.limits.max_context
        fresh.append(self.token(token.sequence, len(cache)))
      out = out + fresh
    return tuple(out)

  def token(self, sequence: int, length: int) -> SequenceToken:
    spec = self.specs[sequence]
    generated = length - self.prompts[sequence] + 1
    self.output.setdefault(spec.request_id, []).append(self.answer(length))
    return SequenceToken(sequence, self.answer(length), "length" if generated >= spec.max_tokens else "")

  def turn(self) -> bool:
    self.let_out()
    if not self.in_flight:
      return False
    step = self.in_flight.pop(0)  # stages keep the order
    tokens = self.apply(step)
    prompts = sum(e.n_tokens for e in step.entries if e.n_tokens > 1)
    self.scheduler.chunks.learn(sum(e.n_tokens == 1 for e in step.entries), prompts, 5.0 + prompts)
    if step.entries:
      self.scheduler.on_result(step.number, tokens)
    return True

  def finish(self) -> None:
    """Run to the end; nothing but kept caches is left."""
    while self.turn():
      pass
    counts = self.scheduler.counts
    assert (counts.running, counts.waiting, counts.steps_in_flight, counts.reserved_kv_tokens) == (0, 0, 0, 0)
    assert not self.specs and len(self.caches) == counts.kept
    assert counts.kept_kv_tokens <= sum(map(len, self.caches.values()))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 100), st.integers(1, 20)), min_size=1, max_size=12), st.integers(1, 4),
    st.integers(4, 64), st.integers(1, 3), st.booleans(), st.sampled_from([3, 5, 10**6]), st.integers(0, 2)
)
def test_every_request_gets_its_tokens_and_everything_is_freed(
    sizes, stages: int, budget: int, run: int, keep: bool, period: int, drafting: int
) -> None:
  scheduler = Scheduler(Limits(3, 300, 128, stages, budget, 100, keep, drafting))
  ring = FakeRing(scheduler, period)
  ring.run = run
  for i, (prompt, count) in enumerate(sizes):
    scheduler.add(request(f"r{i}", prompt, count))
  ring.finish()
  for i, (prompt, count) in enumerate(sizes):
    assert ring.output[f"r{i}"] == ring.expected(prompt, count)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 30), st.integers(0, 29)), min_size=1, max_size=8),
    st.integers(1, 4), st.randoms()
)
def test_replayed_tokens_go_through_as_they_were_made_and_the_rest_follows(sizes, stages: int, random) -> None:
  scheduler = Scheduler(Limits(3, 300, 128, stages, 16, 100))
  ring = FakeRing(scheduler)
  for i, (prompt, count, had) in enumerate(sizes):
    had, wide, index = min(had, count - 1), [], 0
    while index < had - 1:
      stay = random.randint(1, min(4, had - 1 - index))
      width = min(stay + random.randint(0, 2), count - index)
      if random.random() < 0.5 and width > 1:
        wide.append(WideStep(index, stay, width))
        index += stay
      else:
        index += 1
    ids = tuple(1000 + prompt + k for k in range(had))
    scheduler.add(request(f"r{i}", prompt, count, replay_ids=ids, replay_wide=tuple(wide)))
  while ring.turn():
    pass
  for i, (prompt, count, had) in enumerate(sizes):
    assert ring.output[f"r{i}"] == [1000 + prompt + k for k in range(min(had, count - 1), count)]
  assert ring.replayed == sum(max(0, min(had, count - 1) - 1) for _, count, had in sizes)
  assert scheduler.counts.running == scheduler.counts.reserved_kv_tokens == 0


def test_replays_fill_every_frame_and_share_them() -> None:
  scheduler = Scheduler(Limits(8, 3000, 512, 3, 256, 100))
  for i in range(4):
    scheduler.add(request(f"r{i}", 8, 100, replay_ids=tuple(range(50))))
  ring = FakeRing(scheduler)
  while not ring.output:
    assert ring.turn()
  assert ring.steps <= 1 + 50 + 2  # the four together, one token a step, three steps under way


def test_requests_that_lost_their_ring_go_first() -> None:
  scheduler = Scheduler(Limits(1, 300, 128, 1, 32, 2))
  for name in ("a", "b"):
    scheduler.add(request(name, 4, 4))
  for name in ("moved", "moved too"):
    scheduler.add(request(name, 4, 4, replay_ids=(1004, )))
  assert [r.request_id for r in scheduler.requests()] == ["moved", "moved too", "a", "b"]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 20)), min_size=1, max_size=8), st.integers(1, 3),
    st.lists(st.integers(0, 7), max_size=6), st.sampled_from([3, 10**6]), st.randoms()
)
def test_cancelling_at_any_moment_frees_everything(sizes, stages: int, cancelled, period: int, random) -> None:
  scheduler = Scheduler(Limits(3, 300, 128, stages, 16, 100, max_drafting=2))
  ring = FakeRing(scheduler, period)
  for i, (prompt, count) in enumerate(sizes):
    scheduler.add(request(f"r{i}", prompt, count))
  pending = [f"r{i}" for i in cancelled]
  while ring.turn():
    if pending and random.random() < 0.3:
      scheduler.cancel(pending.pop())
  ring.finish()
  for i, (prompt, count) in enumerate(sizes):
    if i not in cancelled:
      assert ring.output[f"r{i}"] == ring.expected(prompt, count)


def test_decodes_join_and_a_prompt_is_cut_so_that_they_go_on() -> None:
  scheduler = Scheduler(LIMITS)
  ring = FakeRing(scheduler)
  scheduler.add(request("a", 4, 10))
  scheduler.add(request("b", 4, 10))
  ring.turn()
  scheduler.add(request("long", 100, 5))
  step = scheduler.next_step()
  assert step is not None and [e.n_tokens for e in step.entries][:2] == [1, 1]
  assert 2 <= step.entries[2].n_tokens <= LIMITS.step_tokens - 2
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


def test_prefixes_are_reused_to_the_token() -> None:
  scheduler = Scheduler(Limits(max_sequences=4, max_kv_tokens=4000, max_context=512, step_tokens=64))
  ring = FakeRing(scheduler)
  scheduler.add(request("first", 100, 5))
  ring.finish()
  scheduler.add(request("same", 100, 5))
  ring.finish()
  assert ring.reused == 98, "all of the prompt but the two tokens that are always computed"
  scheduler.add(request("shorter", 61, 5))
  ring.finish()
  assert ring.reused == 98 + 59
  scheduler.add(request("scored", 80, 0, prompt_logprobs=0))
  ring.finish()
  assert ring.reused == 98 + 59, "scoring computes every token"
  assert scheduler.counts.kept <= 3


def test_line_2_a_sequence_is_near_or_far_from_its_first_token_on_and_shares_caches_with_its_like_alone() -> None:
  scheduler = Scheduler(Limits(max_sequences=4, max_kv_tokens=4000, max_context=512, step_tokens=64, near_context=64))
  ring, seen = FakeRing(scheduler), []

  def run(*wanted: Request) -> tuple[list[bool], int]:
    seen.clear()
    before = ring.reused
    for one in wanted:
      scheduler.add(one)
    ring.finish()
    return [entry.far for step in seen for entry in step.entries], ring.reused - before

  apply = ring.apply
  ring.apply = lambda step: seen.append(step) or apply(step)  # type: ignore[method-assign]
  for prompt, answer, far, reused in ((60, 5, False, 0), (60, 6, True, 0), (60, 6, True, 58), (60, 5, False, 58),
                                      (64, 0, False, 60), (65, 1, True, 60)):
    found, shared = run(request(f"{prompt} {answer} {reused}", prompt, answer))
    assert found and set(found) == {far}, "the last token of an answer is not computed"
    assert shared == reused
  found, _ = run(request("near", 20, 10), request("far", 20, 100))
  assert set(found) == {False, True}


def test_a_prompt_that_is_being_computed_is_shared() -> None:
  scheduler = Scheduler(Limits(max_sequences=8, max_kv_tokens=4000, max_context=512, stages=2, step_tokens=64))
  ring = FakeRing(scheduler)
  for i in range(6):
    scheduler.add(request(f"r{i}", 200, 5))
  ring.finish()
  assert ring.reused >= 5 * (198 - 16)


def test_the_least_recently_used_cache_goes_first() -> None:
  scheduler = Scheduler(Limits(max_sequences=8, max_kv_tokens=300, max_context=512, step_tokens=64))

  def ask(name: str, start: int) -> int:
    prompt = tuple(range(start, start + 90))
    scheduler.add(Request(name, "entry", prompt, 1, frozenset(), SamplingParams()))
    reused = 0
    while (step := scheduler.next_step()) is not None:
      reused += sum(opened.reused for opened in step.opens)
      ended = [SequenceToken(e.sequence, 1, "length") for e in step.entries if e.logits]
      scheduler.on_result(step.number, tuple(ended))
    return reused

  assert [ask("a", 100), ask("b", 1000), ask("a2", 100)] == [0, 0, 88]
  ask("c", 2000)
  ask("d", 3000)
  assert ask("a3", 100) == 88 and ask("b2", 1000) == 0


def test_a_stage_that_cannot_reuse_has_the_prompt_computed() -> None:
  scheduler = Scheduler(Limits(max_sequences=4, max_kv_tokens=4000, max_context=512, step_tokens=64))
  ring = FakeRing(scheduler)
  scheduler.add(request("first", 50, 5))
  ring.finish()
  scheduler.add(request("second", 200, 5))
  step = scheduler.next_step()
  assert step is not None and step.opens[0].reused == 50
  ring.change_caches(step)
  scheduler.on_result(step.number, (), refused=(step.opens[0].sequence, ))
  ring.finish()
  assert ring.output["second"] == ring.expected(200, 5) and ring.reused == 50


def test_results_of_a_sequence_s_earlier_owner_are_ignored() -> None:
  scheduler = Scheduler(Limits(max_sequences=4, max_kv_tokens=4000, max_context=512, stages=2, step_tokens=64))
  ring = FakeRing(scheduler)
  scheduler.add(request("first", 40, 50))
  for _ in range(4):
    ring.turn()
  ring.let_out()
  scheduler.cancel("first")
  scheduler.add(request("second", 60, 5))
  ring.finish()
  assert ring.reused == 40 and ring.output["second"] == ring.expected(60, 5)


def test_repeating_text_is_drafted_and_other_text_is_not() -> None:
  limits = Limits(max_sequences=4, max_kv_tokens=4000, max_context=1024, step_tokens=64, max_drafting=1)
  steps = {}
  for period in (6, 10**6):
    ring = FakeRing(Scheduler(limits), period)
    ring.scheduler.add(request("r", 200, 300))
    ring.finish()
    assert ring.output["r"] == ring.expected(200, 300)
    steps[period] = ring.steps
  assert steps[6] < 120 and steps[10**6] > 300


def test_scoring_wants_every_row() -> None:
  scheduler = Scheduler(LIMITS)
  scheduler.add(request("score", 60, 0, prompt_logprobs=1))
  first = scheduler.next_step()
  assert first is not None and first.entries[0].logits == LogitsOf.ALL
  np.testing.assert_array_equal(first.token_ids, np.arange(10, 42))


def test_a_prompt_whose_first_token_is_its_last_was_no_draft() -> None:
  scheduler = Scheduler(Limits(4, 4000, 512, max_drafting=4))
  ring = FakeRing(scheduler)
  scheduler.add(request("short", 30, 1))
  ring.finish()
  assert ring.output["short"] == ring.expected(30, 1)
  assert scheduler.drafter.drafted == 0


def test_a_prompt_alone_on_a_ring_is_cut_evenly_by_what_is_left_of_it() -> None:
  limits = Limits(8, 40000, 8000, stages=2, step_tokens=256)
  scheduler = Scheduler(limits)
  scheduler.chunks.learn(1, 0, 5.0)
  scheduler.chunks.learn(0, 64, 5.0 + 64 * 0.8)
  ring = FakeRing(scheduler)
  scheduler.add(request("long", 1000, 1))
  ring.let_out()
  sizes = [step.entries[0].n_tokens for step in ring.in_flight]
  assert len(sizes) > 1 and len(set(sizes)) == 1 and 60 <= sizes[0] <= 120
  ring.finish()
  alone = scheduler.chunks.alone(100)
  assert alone < 80
  scheduler.add(request("next turn", 1100, 1))
  step = scheduler.next_step()
  assert step is not None and step.opens[0].reused == 1000 and step.entries[0].n_tokens <= alone + 8


def test_a_short_tail_is_given_up_and_a_long_one_copied() -> None:
  for shared, tail, taken_over in ((100, 30, True), (100, 60, False), (1600, 90, True), (1600, 130, False)):
    scheduler = Scheduler(Limits(8, 40000, 8000))
    ring = FakeRing(scheduler)
    scheduler.add(request("first", shared + tail, 1))
    ring.finish()
    prompt = (*range(10, 10 + shared), *range(5, 0, -1))
    scheduler.add(Request("second", "entry", prompt, 1, frozenset({0}), SamplingParams()))
    step = scheduler.next_step()
    assert step is not None and step.opens[0].reused == shared
    assert (step.opens[0].source == step.opens[0].sequence) is taken_over
