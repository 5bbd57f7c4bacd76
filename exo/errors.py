"""Every error that exo raises on purpose: one sentence each, with the data that its handlers need.

An error may cross the ring. `to_wire` and `from_wire` keep its class and data, so that the node that serves the client
answers exactly as if the error had happened there.
"""

from __future__ import annotations

import json
import re
from typing import ClassVar

_PATH = re.compile(
    r"(?<![\w.:/])(?:[A-Za-z]:)?[\\/](?:[^\s\\/:'\"]+[\\/])+([^\s\\/:'\"]*)"
)  # of a file: its name stays
_LONGEST = 4000  # characters of an error that others are told


class ExoError(Exception):
  """Base of all expected failures. `details` holds JSON values only and travels between nodes."""
  kind: ClassVar[str] = "internal_error"

  def __init__(self, message: str, **details: str | int | float | None) -> None:
    super().__init__(message)
    self.message = message
    self.details = details

  def __str__(self) -> str:
    return self.message


class ConfigError(ExoError):
  """A flag, an environment variable or a configuration file is wrong."""
  kind = "config_error"


class InvalidRequestError(ExoError):
  """A client asked for something impossible. `param` names the field, `code` is the OpenAI code."""
  kind = "invalid_request"

  def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
    super().__init__(message, param=param, code=code)


class ContextExceededError(InvalidRequestError):
  """A prompt of `tokens` tokens, or at least as many, where `context` are possible."""
  kind = "context_exceeded"

  def __init__(self, message: str, param: str | None = None, tokens: int = 0, context: int = 0) -> None:
    super().__init__(message, param, "context_length_exceeded")
    self.details |= {"tokens": tokens, "context": context}


class NotAllowedError(ExoError):
  """The client's API key has not the role for it."""
  kind = "not_allowed"


class NotDoneError(ExoError):
  """Understood, and nothing that exo does, whoever asks for it."""
  kind = "not_done"


class RequestNotFoundError(ExoError):
  """No request with this id is running."""
  kind = "request_not_found"


class RecordNotFoundError(ExoError):
  """Nothing of this id is kept for this client."""
  kind = "record_not_found"


class RecordDamagedError(ExoError):
  """What was kept cannot be read any more."""
  kind = "record_damaged"


class RecordConflictError(ExoError):
  """What is kept was changed by others all the time."""
  kind = "record_conflict"


class RecordsUnavailableError(ExoError):
  """What is kept cannot be reached or written now."""
  kind = "records_unavailable"


class ModelNotFoundError(ExoError):
  """No known model has this name."""
  kind = "model_not_found"


class ModelTooLargeError(ExoError):
  """The ring cannot hold the model; the message says how many MB are missing."""
  kind = "model_too_large"


class ModelFilesError(ExoError):
  """A checkpoint is missing, damaged, or of a kind that cannot be read."""
  kind = "model_files_error"


class OtherFilesError(ModelFilesError):
  """This node holds another model under that name than the one that is wanted."""


class UnsupportedModelError(ExoError):
  """The engine cannot run this architecture."""
  kind = "unsupported_model"


class DownloadError(ExoError):
  """Fetching a model failed for good."""
  kind = "download_error"


class ModelInUseError(ExoError):
  """The model cannot be deleted while requests run on it."""
  kind = "model_in_use"


class EngineUnavailableError(ExoError):
  """The chosen engine cannot run on this machine; the message says what to install."""
  kind = "engine_unavailable"


class EngineError(ExoError):
  """The engine raised while it computed."""
  kind = "engine_error"


class BadNumbersError(EngineError):
  """A stage computed numbers that are not finite, or too large to be any. `worker` of `node` made them.

  `recomputed` is 1 where that node has computed them twice, 0 where the next one found them.
  """
  kind = "bad_numbers"


class EngineEndedError(EngineError):
  """The process that computes for an engine has ended, and with it all that was loaded there; the next load starts another.

  `computing` is 1 where it was at what it had been asked for, 0 where it had ended before.
  """
  kind = "engine_ended"


class StepAbortedError(EngineError):
  """A running step was ended, since what somebody wanted of it is not wanted any more: what it had written is to be cut back."""
  kind = "step_aborted"


class OutOfMemoryError(EngineError):
  """What one request needed could not be allocated; nothing was changed, and others may still fit."""
  kind = "out_of_memory"


class CacheReuseError(EngineError):
  """A kept KV cache cannot be cut or copied to the length that is wanted; computing it anew always works."""
  kind = "cache_reuse_error"


class NetworkCauseError(DownloadError):
  """Nothing outside can be asked with this machine's settings."""
  kind = "network_cause"


class ProxyError(NetworkCauseError):
  """A variable names a proxy that exo cannot use."""
  kind = "proxy_error"


class CertificateError(NetworkCauseError):
  """A variable names certificates that cannot be read."""
  kind = "certificate_error"


class DiscoveryError(ExoError):
  """A service that discovery asks gave no usable answer; it may later."""
  kind = "discovery_error"


class PeerUnreachableError(ExoError):
  """There is no link to that node."""
  kind = "peer_unreachable"


class PeerLostError(ExoError):
  """A node that took part in the request left the ring."""
  kind = "peer_lost"


class ProtocolError(ExoError):
  """A peer sent something that the protocol does not allow."""
  kind = "protocol_error"


class PlanClosedError(ExoError):
  """The plan that the request was pinned to is no longer open."""
  kind = "plan_closed"


class CacheLostError(ExoError):
  """The KV cache of one request is gone on a stage; computing it anew always works."""
  kind = "cache_lost"


class StageSickError(ExoError):
  """A worker cannot load or compute its part of a model, whatever is asked of it; others may.

  `worker` of `node` is who; `cause`, `cause_message` and `cause_details` are the error that it met, as `to_wire` writes it.
  """
  kind = "stage_sick"


class ModelAsideError(ExoError):
  """A model ended a worker's engine too often, and is left alone for a while; `retry_after_s` says when it is tried again."""
  kind = "model_aside"


class ModelRefusedError(ExoError):
  """The model itself is at fault, on whichever node it runs."""
  kind = "model_refused"


class QueueFullError(ExoError):
  """Too many requests are waiting; `retry_after_s` says when to try again."""
  kind = "queue_full"


class NoRoomError(QueueFullError):
  """Models that are in use leave no room for another one; it may be there when their requests have ended."""
  kind = "no_room"


class DrainingError(ExoError):
  """The node is shutting down and takes no new requests."""
  kind = "draining"


class StartingError(ExoError):
  """The node does not serve yet; the message says what it waits for."""
  kind = "starting"


class DeadlineError(ExoError):
  """An operation took longer than it was allowed to."""
  kind = "deadline"


class CancelledRequestError(ExoError):
  """The request was cancelled by its client or by an operator."""
  kind = "cancelled"


def _kinds() -> dict[str, type[ExoError]]:
  found: dict[str, type[ExoError]] = {ExoError.kind: ExoError}
  pending = list(ExoError.__subclasses__())
  while pending:
    cls = pending.pop()
    found.setdefault(cls.kind, cls)  # one without a kind of its own crosses the ring as its base
    pending.extend(cls.__subclasses__())
  return found


def _said(error: BaseException) -> str:
  """What an error says, cut to what anybody would read: of whatever length or bytes it is, it can be sent."""
  try:
    text = str(error)
  except Exception as unexpected:  # noqa: BLE001 - of its own class, which may do anything
    text = f"it cannot be shown ({type(unexpected).__name__})"
  return text[:_LONGEST].encode("utf-8", "replace").decode()


def in_words(error: BaseException) -> str:
  """For a log: an error that was raised on purpose is a sentence already, any other needs its class. Raises nothing."""
  return _said(error) if isinstance(error, ExoError) else f"{type(error).__name__}: {_said(error)}"


def to_wire(error: BaseException) -> tuple[str, str, str]:
  """The error as (kind, message, details as JSON). Unexpected exceptions become `internal_error`. Raises nothing."""
  if isinstance(error, ExoError):
    return error.kind, _said(error), json.dumps(error.details, default=str)
  return ExoError.kind, in_words(error), "{}"


def one_line(text: str) -> str:
  """So that what others say cannot look like a line of its own in a log or on a screen."""
  return " ".join(text.split())


def without_paths(text: str) -> str:
  """What others may read: of a path only the last name stays."""
  return _PATH.sub(r"\1", text)


def stage_sick(name: str, node_id: str, worker: str, model_id: str, error: BaseException) -> StageSickError:
  """What a worker that failed a model is told of, with the error that it met. `name` is what people call it."""
  kind, message, details = to_wire(error)
  return StageSickError(
      f"{name} cannot run its part of {model_id}: {message}"[:2000],
      node=node_id,
      worker=worker,
      cause=kind,
      cause_message=message[:2000],
      cause_details=details
  )


def cause_of(error: StageSickError) -> ExoError:
  """The error that the node met."""
  kind, message, details = (str(error.details.get(k, "")) for k in ("cause", "cause_message", "cause_details"))
  return from_wire(kind, message or error.message, details)


def from_wire(kind: str, message: str, details_json: str) -> ExoError:
  """The inverse of `to_wire`. An unknown kind (from a newer node) becomes a plain `ExoError`."""
  try:
    return _from_wire(kind, message, details_json)
  except Exception:  # noqa: BLE001 - who waits for an error must get one
    return ExoError(message)


def _from_wire(kind: str, message: str, details_json: str) -> ExoError:
  cls = _kinds().get(kind, ExoError)
  try:
    details = json.loads(details_json) if details_json else {}
  except (ValueError, RecursionError):
    details = {}
  error = cls.__new__(cls)
  ExoError.__init__(error, message)
  if isinstance(details, dict):  # whatever its names are: another node has chosen them
    error.details = {
        name: value
        for name, value in details.items() if value is None or isinstance(value, (str, int, float))
    }
  return error
