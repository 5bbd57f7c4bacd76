"""What a frame from another node must be before the engine sees it: within the plan, the model and the caches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from exo.errors import ProtocolError
from exo.inference.sampling import SamplingParams
from exo.networking.messages import Frame

_HIDDEN_TYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class FrameBounds:
  """Of one open plan: the model's sizes, and what this node's stage can keep."""
  hidden_size: int
  vocab_size: int
  max_context: int
  max_sequences: int


def check_frame(frame: Frame, bounds: FrameBounds) -> None:
  """For a stage that is not the plan's first. Raises `ProtocolError`; the codec has checked that lengths agree."""
  if not frame.entries and not frame.opens:
    return
  if len({entry.sequence for entry in frame.entries}) != len(frame.entries):
    raise ProtocolError("a frame computes a sequence twice")
  if max(len(frame.entries), len(frame.opens)) > bounds.max_sequences:
    raise ProtocolError(f"a frame of {len(frame.entries)} sequences came where {bounds.max_sequences} have room")
  if any(entry.position + entry.n_tokens > bounds.max_context for entry in frame.entries):
    raise ProtocolError(f"a frame goes beyond the context of {bounds.max_context} tokens")
  ids = frame.token_ids
  if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < bounds.vocab_size:
    raise ProtocolError(f"a frame holds token ids that are not from 0 to {bounds.vocab_size - 1}")
  hidden = frame.hidden
  if hidden is None:
    if frame.entries:
      raise ProtocolError("a frame came without the hidden states of the stage before")
  elif hidden.dtype.name not in _HIDDEN_TYPES or hidden.shape != (ids.size, bounds.hidden_size):
    raise ProtocolError(
        f"a frame's hidden states are {hidden.dtype.name} of shape {hidden.shape}, not floats of shape "
        f"({ids.size}, {bounds.hidden_size})"
    )
  for opened in frame.opens:
    request = opened.request
    if not 0 <= opened.prompt_tokens <= bounds.max_context or not 0 <= request.max_tokens <= 2**31:
      raise ProtocolError("a frame begins a sequence that no cache could hold")
    prompt = np.asarray(request.prompt_ids or (0, ), np.int64)
    if int(prompt.max()) >= bounds.vocab_size or prompt.size > bounds.max_context:
      raise ProtocolError("a frame begins a sequence with a prompt that the model cannot read")
    _check_sampling(request.sampling, bounds.vocab_size)


def _check_sampling(sampling: SamplingParams, vocab_size: int) -> None:
  numbers = (
      sampling.temperature, sampling.top_p, sampling.min_p, sampling.frequency_penalty, sampling.presence_penalty,
      sampling.repetition_penalty, *sampling.logit_bias.values()
  )
  if not all(map(math.isfinite, numbers)) or sampling.temperature < 0 or sampling.repetition_penalty <= 0:
    raise ProtocolError("a frame asks for sampling with impossible numbers")
  if any(token >= vocab_size for token in sampling.logit_bias) or (sampling.top_logprobs or 0) > vocab_size:
    raise ProtocolError("a frame asks for sampling beyond the vocabulary")
