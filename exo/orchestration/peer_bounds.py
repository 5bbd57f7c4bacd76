"""What other nodes may ask of this one: as many plans as a ring needs, prompts that their model can read."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from exo.errors import DownloadError, InvalidRequestError, ModelTooLargeError, ProtocolError, QueueFullError
from exo.inference.shard import Shard
from exo.networking.messages import Request
from exo.networking.token_bucket import Buckets, TokenBucket
from exo.oldest import forget_oldest

# plans that one node, or all of them, may have opened: a second each, so many at once
_RATE, _BURST = 0.2, 64.0
_TOTAL_RATE, _TOTAL_BURST = 1.0, 256.0
_FAILURES_RATE, _FAILURES_BURST = 1 / 60, 8.0  # plans of one node that failed here, as this node tells everybody
_MAX_SENDERS = 1024
_FETCHED_AT_ONCE = 8
_MOST_OF_OFFER = 1.25  # estimates differ
_MAX_PLANS, _PLAN_S = 1024, 30.0  # that are remembered, so that all requests for one count once


class PeerBounds:
  """Of one node, for all others; `offered_bytes` is the memory that it gives to the ring."""
  def __init__(self, offered_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
    self._clock = clock
    self._senders = Buckets(_RATE, _BURST, _MAX_SENDERS)
    self._total = TokenBucket(_TOTAL_RATE, _TOTAL_BURST, clock())
    self._failures = Buckets(_FAILURES_RATE, _FAILURES_BURST, _MAX_SENDERS)
    self._all_failures = TokenBucket(3 * _FAILURES_RATE, 3 * _FAILURES_BURST, clock())
    self._plans: OrderedDict[str, float] = OrderedDict()
    self._fetched: OrderedDict[str, None] = OrderedDict()
    # as much as fills the memory several times, and once more every hour
    self._bytes = TokenBucket(
        offered_bytes / 3600, _FETCHED_AT_ONCE * offered_bytes, clock()
    ) if offered_bytes else None

  def note_plan(self, sender: str, plan_id: str) -> None:
    """Somebody wants a plan opened. Raises `QueueFullError` where it has wanted too many."""
    now_s = self._clock()
    if now_s - self._plans.get(plan_id, float("-inf")) < _PLAN_S:
      return
    if not self._senders.take(sender, now_s) or not self._total.take(now_s):
      raise QueueFullError("more plans are being opened than any ring needs: try again later", retry_after_s=10)
    self._plans[plan_id] = now_s
    self._plans.move_to_end(plan_id)
    forget_oldest(self._plans, _MAX_PLANS)

  def note_failure(self, sender: str, error: Exception) -> None:
    """A plan cannot be opened here, which this node will tell everybody. Raises `error` to its sender alone where it has had
    too many like that."""
    now_s = self._clock()
    if not self._failures.take(sender, now_s) or not self._all_failures.take(now_s):
      raise error

  def note_fetch(self, model_id: str, needed_bytes: int) -> None:
    """A stage of a model that only other nodes want would have to be fetched. Raises `DownloadError` where they have had too
    much fetched here."""
    if model_id in self._fetched:
      return
    if self._bytes is not None and not self._bytes.take(self._clock(), needed_bytes):
      raise DownloadError(
          f"other nodes have had so much fetched here lately that {model_id} has to wait: fetch it on this machine "
          f"(`exo pull {model_id}`), or start all nodes with a cluster key"
      )
    self._fetched[model_id] = None
    forget_oldest(self._fetched, _MAX_PLANS)

  @staticmethod
  def check_stage(shard: Shard, n_layers: int, needed_bytes: int, offered_bytes: int) -> None:
    """Raises `ProtocolError`, `ModelTooLargeError` for what nobody who knows this node would give it, before it is fetched."""
    if shard.n_layers != n_layers:
      raise ProtocolError(f"{shard.model_id} has {n_layers} layers here, not {shard.n_layers}")
    if offered_bytes and needed_bytes > _MOST_OF_OFFER * offered_bytes:
      missing_mb = (needed_bytes - offered_bytes) // 2**20
      raise ModelTooLargeError(f"{shard} is {missing_mb} MB larger than what this node offers", missing_mb=missing_mb)

  @staticmethod
  def check_prompt(request: Request, max_context: int | None) -> None:
    """Raises `InvalidRequestError` for a request beyond its model's context, before it waits anywhere."""
    tokens = len(request.prompt_ids) + len(request.replay_ids)
    if max_context is not None and tokens > max_context:
      raise InvalidRequestError(
          f"the prompt has {tokens} tokens, the context has room for {max_context}", "messages",
          "context_length_exceeded"
      )
