"""What a frame from another node must be before the engine sees it: within the plan, the model and the caches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from exo.errors import ProtocolError
from exo.inference.sampling import SamplingParams
from exo.networking.messages import Frame

_HIDDEN_TYPES = frozenset(map(np.dtype, (np.float32, np.float16, ml_dtypes.bfloat16)))


@dataclass(frozen=True, slots=True)
class FrameBounds:
  """Of one open plan: the model's sizes, and what this node's stage can keep."""
  hidden_size: int
  vocab_size: int
  max_context: int
  max_sequences: int


def check_frame(frame: Frame, bounds: FrameBounds) -> None:
  """For a stage that is not the plan's first. Raises `ProtocolError`; the codec has checked that lengths agree.

  Part of every hop: in plain loops over plain numbers, since most frames have one entry.
  """
  entries, sequences = frame.entries, set()
  if not entries and not frame.opens:
    return
  if max(len(entries), len(frame.opens)) > bounds.max_sequences:
    raise ProtocolError(f"a frame of {len(entries)} sequences came where {bounds.max_sequences} have room")
  for entry in entries:
    sequences.add(entry.sequence)
    if entry.position + entry.n_tokens > bounds.max_context:
      raise ProtocolError(f"a frame goes beyond the context of {bounds.max_context} tokens")
  if len(sequences) != len(entries):
    raise ProtocolError("a frame computes a sequence twice")
  ids = frame.token_ids.tolist()
  if ids and not 0 <= min(ids) <= max(ids) < bounds.vocab_size:
    raise ProtocolError(f"a frame holds token ids that are not from 0 to {bounds.vocab_size - 1}")
  hidden = frame.hidden
  if hidden is None:
    if entries:
      raise ProtocolError("a frame came without the hidden states of the stage before")
  elif hidden.dtype not in _HIDDEN_TYPES or hidden.shape != (len(ids), bounds.hidden_size):
    raise ProtocolError(
        f"a frame's hidden states are {hidden.dtype} of shape {hidden.shape}, not floats of shape "
        f"({len(ids)}, {bounds.hidden_size})"
    )
  if frame.opens:
    _check_opens(frame, bounds)


def _check_opens(frame: Frame, bounds: FrameBounds) -> None:
  for opened in frame.opens:
    request = opened.request
    if not 0 <= opened.prompt_tokens <= bounds.max_context or not 0 <= request.max_tokens <= 2**31:
      raise ProtocolError("a frame begins a sequence that no cache could hold")
    prompt = np.asarray(request.prompt_ids or (0, ), np.int64)
    if int(prompt.max()) >= bounds.vocab_size or prompt.size > bounds.max_context:
      raise ProtocolError("a frame begins a sequence with a prompt that the model cannot read")
    _check_sampling(request.sampling, bounds.vocab_size)
    if not math.isfinite(request.mu):
      raise ProtocolError("a frame begins a sequence in a state that no sampler can be in")


def _check_sampling(sampling: SamplingParams, vocab_size: int) -> None:
  numbers = (
      sampling.temperature, sampling.top_p, sampling.min_p, sampling.frequency_penalty, sampling.presence_penalty,
      sampling.repetition_penalty, *sampling.logit_bias.values(), sampling.typical_p, sampling.xtc_probability,
      sampling.xtc_threshold, sampling.mirostat_tau, sampling.mirostat_eta, sampling.dry.multiplier, sampling.dry.base
  )
  positive = sampling.repetition_penalty > 0 and sampling.typical_p > 0 and sampling.dry.base > 0
  if not all(map(math.isfinite, numbers)) or sampling.temperature < 0 or not positive or sampling.mirostat > 2:
    raise ProtocolError("a frame asks for sampling with impossible numbers")
  if any(token >= vocab_size for token in sampling.logit_bias) or (sampling.top_logprobs or 0) > vocab_size:
    raise ProtocolError("a frame asks for sampling beyond the vocabulary")
