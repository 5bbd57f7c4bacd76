"""Failures of requests, told to their entry nodes and read there."""

from __future__ import annotations

from collections.abc import Callable

from exo.errors import ExoError, PeerUnreachableError, from_wire, in_words, to_wire
from exo.log import log
from exo.networking.messages import Failure, Message, RequestFailed


def failure_error(failure: Failure) -> ExoError:
  """The error that a failure tells of."""
  return from_wire(failure.kind, failure.message, failure.details_json)


def tell_failed(
    send: Callable[[str, Message], None], plan_id: str, request_id: str, entry_node: str, error: BaseException
) -> None:
  """The request does not run on this plan any more, or never did. Tried twice: its client waits for it."""
  for _ in range(2):
    try:
      send(entry_node, RequestFailed(plan_id, request_id, Failure(*to_wire(error))))
      return
    except PeerUnreachableError:
      log(1, "the entry node %s is gone", entry_node, request=request_id)
      return
    except Exception as unexpected:  # noqa: BLE001 - those after it must be told, too
      log(0, "a failure could not be told: %s", in_words(unexpected), request=request_id)
