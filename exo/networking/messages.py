"""Everything that nodes say to each other, as frozen dataclasses; how it is encoded is `grpc/codec.py`'s affair.

What is made for every token is a `msgspec.Struct` instead, which is the same to whoever uses it and made ten times as fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt

from exo.inference.engine import BatchEntry, Count, TokenIds
from exo.inference.exactness import CAREFUL, Exactness
from exo.inference.sampling import SamplingParams, TokenLogprob
from exo.model_file import ModelFile
from exo.networking.model_messages import (
    BlocksFound,
    DownloadNews,
    FindBlocks,
    FindModel,
    ListModels,
    ModelFound,
    ModelsListed,
    RangeData,
    ReadRange,
)
from exo.networking.peer_messages import Heartbeat, Hello
from exo.networking.record_messages import ChangeRecord, FindRecord, RecordChanged, RecordFound
from exo.topology.ring_plan import RingPlan

PROTOCOL_VERSION = 7
# of frames and results from other nodes: numbers that can be reckoned with, and no more of them than any step has
StageMs = Annotated[tuple[Annotated[float, msgspec.Meta(ge=0, le=1e9)], ...], msgspec.Meta(max_length=2048)]
MOST_OF_A_STEP = msgspec.Meta(max_length=2**16)


@dataclass(frozen=True, slots=True)
class WideStep:
  """A step computed `width` tokens of one sequence: generated tokens `index` to `index` + `count` - 1, and wrong drafts."""
  index: int
  count: int
  width: int


@dataclass(frozen=True, slots=True)
class Request:
  """One choice of one client's request. `prompt_logprobs` None: not wanted; k: each prompt token's with k others.

  `replay_ids` are tokens that its client has already, from a ring that lost a node: they are computed again in steps like
  those that made them, one token each but for those in `replay_wide`, and nothing is sampled until they are through. With
  `embed` nothing is generated: the answer is the mean of the prompt's final hidden states. `share` is the label under which
  its client waits, by itself a number that tells nothing of it; empty from nodes that know none. Caches are reused between
  requests of the same `cache_salt` alone. `exact`: the bits of its tokens depend on itself alone (`Exactness`). `mu`: Mirostat's
  state after the last of `replay_ids`, as in `TokenLogprob`. `progress`: the entry node hears of it by `PromptProgress`.
  """
  request_id: str
  entry_node: str
  prompt_ids: tuple[int, ...]
  max_tokens: int
  eos_ids: frozenset[int]
  sampling: SamplingParams
  choice: int = 0
  prompt_logprobs: int | None = None
  replay_ids: tuple[int, ...] = ()
  embed: bool = False
  replay_wide: tuple[WideStep, ...] = ()
  share: str = ""
  cache_salt: str = ""
  exact: bool = True
  mu: float = 0.0
  progress: bool = False


@dataclass(frozen=True, slots=True)
class OpenPlan:
  """Load stage number `stage` of this plan, which is yours. `addresses` ("host:port") are where the stages' nodes were last
  reached.

  `beside`: only if there is room for it beside what is open already, else its stage waits for room for at most `room_s` seconds.
  """
  plan: RingPlan
  addresses: tuple[tuple[str, str], ...] = ()
  beside: bool = False
  stage: int = 0
  room_s: float = 300.0

  @property
  def file(self) -> ModelFile:
    """What the stage is loaded from, and nothing else."""
    return self.plan.file

  @property
  def fingerprint(self) -> str:
    """Short for `file`."""
    return self.plan.file.key


@dataclass(frozen=True, slots=True)
class PlanOpened:
  """The stage is ready; what it can keep. `max_drafting` is as in `StageMemory`; of `max_kv_tokens` its caches may hold `lease_tokens`
  at first. `indivisible` is as in `StageMemory`.
  """
  plan_id: str
  max_kv_tokens: int
  max_sequences: int
  max_context: int
  max_drafting: int
  lease_tokens: int
  exactness: Exactness = CAREFUL
  indivisible: bool = False


@dataclass(frozen=True, slots=True)
class ExactnessFound:
  """To the first stage of an open plan, from its stage number `stage`: what that one has found out since it was opened."""
  plan_id: str
  stage: int
  exactness: Exactness


@dataclass(frozen=True, slots=True)
class ClosePlan:
  plan_id: str
  reason: Failure | None = None


@dataclass(frozen=True, slots=True)
class Submit:
  """To the first stage of the plan: run this request. The plan is opened where it is not yet."""
  open: OpenPlan
  request: Request


@dataclass(frozen=True, slots=True)
class Cancel:
  plan_id: str
  request_id: str


@dataclass(frozen=True, slots=True)
class Failure:
  """An error on its way to whoever waits; see `errors.to_wire`."""
  kind: str
  message: str
  details_json: str = "{}"


@dataclass(frozen=True, slots=True)
class GiveWay:
  """To the first stage of a plan, which alone knows whom it serves, from a node that has another stage of it: close it if that is
  nobody, since the plan `wanted_by` needs its room there. The answer is `Done`, or the failure of `ModelInUseError`.
  """
  plan_id: str
  wanted_by: str


@dataclass(frozen=True, slots=True)
class ShrinkLease:
  """To the first stage of a plan, from a node with a stage of it: let its caches hold no more than so many tokens, or than running
  sequences need, since the plan `wanted_by` needs memory there. The answer is the `Lease` that is left.
  """
  plan_id: str
  tokens: int
  wanted_by: str = ""


@dataclass(frozen=True, slots=True)
class GrowLease:
  """From the first stage of a plan: are the caches of its stage number `stage`, which is yours, allowed to hold so many tokens? The answer
  is the `Lease` that there is room for; `spare`: none is made for it.
  """
  plan_id: str
  stage: int
  tokens: int
  spare: bool = False


@dataclass(frozen=True, slots=True)
class Lease:
  """How many tokens the caches of a plan may hold now. After the plan's step number `step` they hold no more; `most` is what they could be
  allowed to hold at most, as things are.
  """
  plan_id: str
  tokens: int
  step: int = 0
  most: int = 0


@dataclass(frozen=True, slots=True)
class Absolve:
  """From an entry node: its request made numbers that are not finite elsewhere, too, so it was not your doing."""
  model_id: str
  fingerprint: str


@dataclass(frozen=True, slots=True)
class Done:
  """A call succeeded and there is nothing to say."""


@dataclass(frozen=True, slots=True)
class RequestFailed:
  """To the entry node: this request is over."""
  plan_id: str
  request_id: str
  failure: Failure


@dataclass(frozen=True, slots=True)
class PromptProgress:
  """From the first stage to the entry node, before the first token: the request's `place` in the line, from 1, or, where that is 0, how many
  tokens of its prompt are computed, those included that were `cached`.
  """
  plan_id: str
  request_id: str
  place: int
  total: int = 0
  cached: int = 0
  processed: int = 0


@dataclass(frozen=True, slots=True)
class SequenceOpen:
  """A new sequence and its request; `request.prompt_ids` is empty unless the sampler looks at them.

  With `reused` above 0 it begins with so many tokens of `source`'s cache: a copy, or where `source` is the sequence
  itself, kept from an earlier request, that cache cut to the length.
  """
  sequence: int
  request: Request
  prompt_tokens: int
  source: int = 0
  reused: int = 0


class SequenceFailure(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
  """What went wrong with one sequence of a step; the others go on."""
  sequence: Count
  failure: Failure


class Frame(msgspec.Struct, frozen=True):
  """One step on its way around the ring, to the plan's stage number `stage`: what begins, what ends, what is computed, and the hidden states so far.

  Caches change in this order: `drops` are forgotten, `ends` are over but their caches stay, `truncates` are pairs of
  sequence and length, `copies` are kept caches of running sequences as they are now (sequence, number of the copy, length), `opens` begin, then the entries are computed. `refused` are sequences that an earlier stage could
  not begin with another's cache, `failed` those that a stage could not compute; their entries are gone from the frame.

  `token_ids` has shape (tokens,); `hidden` is (tokens, hidden size) or None on the way to the first stage.
  `stage_ms` holds two numbers for each stage that has done its part: its engine's time, and all from the frame's arrival to
  its leaving. `run` above 1 lets the only stage of a plan go on by itself for so many tokens of each sequence.
  """
  plan_id: str
  epoch: str
  step: int
  entries: tuple[BatchEntry, ...]
  token_ids: TokenIds
  hidden: npt.NDArray[Any] | None = None
  opens: tuple[SequenceOpen, ...] = ()
  drops: tuple[int, ...] = ()
  stage_ms: StageMs = ()
  run: int = 1
  ends: tuple[int, ...] = ()
  truncates: tuple[tuple[int, int], ...] = ()
  refused: tuple[int, ...] = ()
  failed: tuple[SequenceFailure, ...] = ()
  stage: int = 0
  copies: tuple[tuple[int, int, int], ...] = ()


class SequenceToken(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
  """A sequence's next token; `finish_reason` is "" while it goes on, else "stop" or "length". `mu`: as in `TokenLogprob`."""
  sequence: Count
  token_id: Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
  finish_reason: str = ""
  mu: float = 0.0


class StepResult(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
  """From the last stage to the first: the step is through, and these tokens came of it.

  The rest is as in `Frame`, with the last stage's own figures.
  """
  plan_id: str
  step: Count
  tokens: Annotated[tuple[SequenceToken, ...], MOST_OF_A_STEP]
  stage_ms: StageMs = ()
  refused: Annotated[tuple[Count, ...], MOST_OF_A_STEP] = ()
  failed: Annotated[tuple[SequenceFailure, ...], MOST_OF_A_STEP] = ()

  @property
  def compute_ms(self) -> tuple[float, ...]:
    return self.stage_ms[::2]

  @property
  def spent_ms(self) -> tuple[float, ...]:
    return self.stage_ms[1::2]


@dataclass(frozen=True, slots=True)
class StepFailed:
  """From any stage to the first: this step went wrong here and goes no further."""
  plan_id: str
  step: int
  failure: Failure


class TokenDelivery(msgspec.Struct, frozen=True):
  """From the last stage to the entry node: tokens `index`, `index` + 1, … of one choice. Indices have no gaps.

  `width` is the number of tokens of this sequence that the step computed together: above 1 the first token of the
  delivery followed from the token before it as in any decode, the others from drafts that turned out right. Computing
  the same inputs again in steps of one token, or of several, gives the same cache, bit for bit, as long as each
  token's step had one token or more than one, as `width` says. `cached_tokens`, with the first token: how much of the
  prompt was not computed but found in a kept cache. `embedding` has shape
  (hidden size,).
  """
  plan_id: str
  request_id: str
  choice: int
  index: int
  tokens: tuple[TokenLogprob, ...]
  finish_reason: str = ""
  prompt_logprobs: tuple[TokenLogprob, ...] = ()
  width: int = 1
  cached_tokens: int = 0
  embedding: npt.NDArray[np.float32] | None = None


Message = (
    Hello | Heartbeat | OpenPlan | PlanOpened | ClosePlan | Submit | Cancel | Failure | Done | RequestFailed | Frame
    | Absolve | GiveWay | ShrinkLease | GrowLease | Lease | ExactnessFound | PromptProgress | StepResult | StepFailed
    | TokenDelivery
    | FindModel
    | ModelFound | FindBlocks | BlocksFound
    | ReadRange
    | RangeData | DownloadNews | ListModels | ModelsListed
    | FindRecord | RecordFound | ChangeRecord | RecordChanged
)
EMPTY_TOKEN_IDS: TokenIds = np.zeros(0, np.int32)
