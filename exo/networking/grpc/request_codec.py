"""A request to protobuf and back. Raises `ProtocolError` for what a peer got wrong."""

from __future__ import annotations

from itertools import batched

from exo.bounds import MAX_PROMPT_TOKENS, MAX_REQUEST_ID, is_node_id
from exo.errors import ProtocolError
from exo.inference.dry import MAX_BREAKERS, DryParams
from exo.inference.sampling import SamplingParams
from exo.networking import messages as m
from exo.networking.grpc import node_service_pb2 as pb

_MAX_EOS, _MAX_BIAS, _MAX_GRAMMAR = 4096, 2**16, 2**20
_MAX_WIDTH = 64  # tokens of one sequence in a step that is not a prompt's
_MAX_LABEL = 64  # characters


def _sampling_out(s: SamplingParams) -> pb.Sampling:
  body = pb.Sampling(
      temperature=s.temperature,
      top_p=s.top_p,
      top_k=s.top_k,
      min_p=s.min_p,
      frequency_penalty=s.frequency_penalty,
      presence_penalty=s.presence_penalty,
      repetition_penalty=s.repetition_penalty,
      seed=s.seed,
      logit_bias=dict(s.logit_bias),
      grammar=s.grammar,
      typical_p=s.typical_p,
      xtc_probability=s.xtc_probability,
      xtc_threshold=s.xtc_threshold,
      mirostat=s.mirostat,
      mirostat_tau=s.mirostat_tau,
      mirostat_eta=s.mirostat_eta,
      penalty_last_n=s.penalty_last_n,
      dry_multiplier=s.dry.multiplier,
      dry_base=s.dry.base,
      dry_allowed_length=s.dry.allowed_length,
      dry_last_n=s.dry.last_n,
      dry_breakers=s.dry.breakers
  )
  if s.top_logprobs is not None:
    body.top_logprobs = s.top_logprobs
  return body


def _sampling_in(s: pb.Sampling) -> SamplingParams:
  return SamplingParams(
      s.temperature, s.top_p, s.top_k, s.min_p, s.frequency_penalty, s.presence_penalty, s.repetition_penalty, s.seed,
      dict(s.logit_bias), s.top_logprobs if s.HasField("top_logprobs") else None, s.grammar, s.typical_p,
      s.xtc_probability, s.xtc_threshold, s.mirostat, s.mirostat_tau, s.mirostat_eta, s.penalty_last_n,
      DryParams(s.dry_multiplier, s.dry_base, s.dry_allowed_length, s.dry_last_n, tuple(s.dry_breakers))
  )


def request_out(r: m.Request) -> pb.Request:
  body = pb.Request(
      request_id=r.request_id,
      entry_node=r.entry_node,
      choice=r.choice,
      prompt_ids=r.prompt_ids,
      max_tokens=r.max_tokens,
      eos_ids=sorted(r.eos_ids),
      sampling=_sampling_out(r.sampling),
      replay_ids=r.replay_ids,
      embed=r.embed,
      share=r.share,
      cache_salt=r.cache_salt,
      exact=r.exact,
      mu=r.mu,
      progress=r.progress,
      replay_wide=[number for w in r.replay_wide for number in (w.index, w.count, w.width)]
  )
  if r.prompt_logprobs is not None:
    body.prompt_logprobs = r.prompt_logprobs
  return body


def request_in(r: pb.Request) -> m.Request:
  if not 1 <= len(r.request_id) <= MAX_REQUEST_ID or not is_node_id(r.entry_node):
    raise ProtocolError("a request without a proper id")
  if max(len(r.share), len(r.cache_salt)) > _MAX_LABEL:
    raise ProtocolError("a request whose share or salt is no label")
  if max(len(r.prompt_ids), len(r.replay_ids), len(r.replay_wide)) > MAX_PROMPT_TOKENS:
    raise ProtocolError(f"a request of more than {MAX_PROMPT_TOKENS} tokens")
  if len(r.eos_ids) > _MAX_EOS or len(r.sampling.logit_bias) > _MAX_BIAS or len(
      r.sampling.grammar
  ) > _MAX_GRAMMAR or len(r.sampling.dry_breakers) > MAX_BREAKERS:
    raise ProtocolError("a request whose sampling is beyond all bounds")
  if len(r.replay_wide) % 3:
    raise ProtocolError("a request's wide steps are not threes")
  wide = tuple(m.WideStep(*numbers) for numbers in batched(r.replay_wide, 3))
  if any(not 1 <= w.count <= w.width <= _MAX_WIDTH or w.index + w.count >= len(r.replay_ids) for w in wide):
    raise ProtocolError("a request's wide steps do not fit the tokens that it replays")
  return m.Request(
      r.request_id, r.entry_node, tuple(r.prompt_ids), r.max_tokens, frozenset(r.eos_ids),
      _sampling_in(r.sampling), r.choice, r.prompt_logprobs if r.HasField("prompt_logprobs") else None,
      tuple(r.replay_ids), r.embed, wide, r.share, r.cache_salt, r.exact, r.mu, r.progress
  )
