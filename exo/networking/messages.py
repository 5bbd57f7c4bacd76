"""Everything that nodes say to each other, as frozen dataclasses; how it is encoded is `grpc/codec.py`'s affair.

What is made for every token is a `msgspec.Struct` instead, which is the same to whoever uses it and made ten times as fast.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt

from exo.inference.engine import BatchEntry, Count, TokenIds
from exo.inference.engine_news import EngineNews
from exo.inference.offer import EngineOffer
from exo.inference.sampling import SamplingParams, TokenLogprob
from exo.inference.shard import Shard
from exo.model_file import ModelFile
from exo.topology.device_capabilities import DeviceCapabilities
from exo.topology.loaded_for import LoadedFor
from exo.topology.ring_plan import RingPlan

PROTOCOL_VERSION = 4
# of frames and results from other nodes: numbers that can be reckoned with, and no more of them than any step has
StageMs = Annotated[tuple[Annotated[float, msgspec.Meta(ge=0, le=1e9)], ...], msgspec.Meta(max_length=2048)]
MOST_OF_A_STEP = msgspec.Meta(max_length=2**16)


@dataclass(frozen=True, slots=True)
class WorkerOffer:
  """One device of a node: its short name there, its engines, at least one, and the MB that it offers to the ring.

  The engines stand in the order in which one is chosen for a model, until heartbeats tell otherwise.
  """
  name: str
  engines: tuple[EngineOffer, ...]
  memory_mb: int

  @property
  def device(self) -> str:
    """What it is, for people."""
    return self.engines[0].device

  @property
  def usable(self) -> tuple[str, ...]:
    """The names of the engines that can run something."""
    return tuple(engine.name for engine in self.engines if engine.available)


@dataclass(frozen=True, slots=True)
class Hello:
  """Who a node is. `incarnation` grows with every start; `local_models` are names that only some nodes can provide.

  `workers` are its devices, at least one; `capabilities.memory` is what they offer together.
  """
  node_id: str
  incarnation: int
  port: int
  capabilities: DeviceCapabilities
  workers: tuple[WorkerOffer, ...]
  version: str
  local_models: tuple[str, ...] = ()

  @property
  def engine(self) -> str:
    """The engine of its first worker."""
    return self.workers[0].engines[0].name

  @property
  def device(self) -> str:
    """Its devices, for people."""
    return ", ".join(dict.fromkeys(worker.device for worker in self.workers))

  def since(self, beat: Heartbeat | None) -> Hello:
    """As it would be told now, after a heartbeat of the node's."""
    news = {} if beat is None else {worker.name: worker.news for worker in beat.workers}
    workers = (replace(w, engines=news[w.name].of(w.engines)) if w.name in news else w for w in self.workers)
    return replace(self, workers=tuple(workers))


@dataclass(frozen=True, slots=True)
class PeerLink:
  """A link that a node has, as it tells the others. `rtt_ms` 0 until measured."""
  node_id: str
  rtt_ms: float
  interface: str


@dataclass(frozen=True, slots=True)
class PlanPace:
  """What recent steps of decodes took on a plan whose first stage is the sender; medians in ms where not said.

  `compute_ms` and `wait_ms` have one entry a stage: its engine's time, and what a frame waited there beside. `hop_ms` is
  a lap's time less all compute, divided by the hops, of the `laps` that had the ring to themselves; `transport_ms` that
  of all laps less all that the stages spent, which leaves codec, gRPC and the wire. `drafted` and `accepted` count tokens,
  `wasted` is the part of the compute of all decodes that went to wrong drafts.
  """
  plan_id: str
  lap_ms: float
  compute_ms: tuple[float, ...]
  wait_ms: tuple[float, ...]
  hop_ms: float
  hop_p99_ms: float
  transport_ms: float
  laps: int
  drafted: int = 0
  accepted: int = 0
  wasted: float = 0.0


@dataclass(frozen=True, slots=True)
class PlanRoom:
  """Of an open plan whose first stage is the sender: what its model is loaded for, and what there is room for: so many requests at
  once, tokens in one of them, and tokens in all their caches together. `kept`: the sender does not unload it for other models.
  """
  plan_id: str
  model_id: str
  loaded_for: LoadedFor
  max_sequences: int
  max_context: int
  max_kv_tokens: int
  kept: bool = False

  def __str__(self) -> str:
    return (
        f"{'kept, ' if self.kept else ''}loaded for {self.loaded_for}; room for {self.max_kv_tokens} tokens, {self.max_context} in one request, "
        f"{self.max_sequences} at once"
    )


@dataclass(frozen=True, slots=True)
class Rumour:
  """The highest count of a node's heartbeats that somebody has seen, and where it was reached ("host:port" or "")."""
  node_id: str
  incarnation: int
  beat: int
  address: str = ""


@dataclass(frozen=True, slots=True)
class Ailment:
  """Why a node's worker takes no part in a model's plans for now. `fingerprint` is of the model's files."""
  model_id: str
  fingerprint: str
  reason: str
  worker: str


@dataclass(frozen=True, slots=True)
class ShardMemory:
  """What a loaded shard takes, in MB: as it was planned, and as its process was measured to grow, at most while it was loaded and
  when it was.
  """
  planned_loading_mb: int
  planned_held_mb: int
  loading_mb: int
  held_mb: int


@dataclass(frozen=True, slots=True)
class WorkerBeat:
  """What a worker has and does now, in MB: `usable_mb` it could use, `used_mb` of it are taken by weights.

  `problem` is why it can compute nothing and takes part in no plan; "" while it can. `news` is what the greeting does not tell
  of its engines. `pinned` are the models that never give way for others, each with what it takes, `loading` those whose layers are
  on their way, each with how far they are, from 0 to 1, `memory` what each
  of `loaded` takes, in their order.
  """
  name: str
  usable_mb: int
  used_mb: int = 0
  loaded: tuple[Shard, ...] = ()
  problem: str = ""
  news: EngineNews = field(default_factory=EngineNews)
  pinned: tuple[tuple[str, int], ...] = ()
  loading: tuple[tuple[str, float], ...] = ()
  memory: tuple[ShardMemory, ...] = ()


@dataclass(frozen=True, slots=True)
class Heartbeat:
  """Sent on a connection of its own; an answer bears the number of what it answers.

  `load` is the part of the last seconds, 0..1, in which the device computed; `frames` counts what it has computed in all.
  `cpu_s` is the processor time that the process has used so far, `rss_mb` the memory that it occupies.
  `rumours` are what `membership.py` passes on. `leaving`: no new plans for this node, it shuts down or all its workers are broken.
  `data_bytes` is what its sender has put on the data stream of this link so far, `data_read_bytes` what it has read;
  `link_keys` names all links that it has with the peer; `retired`: this one is used no more. `ailments` are the models that it
  cannot run. `rooms` are of the plans that begin there.
  """
  number: int
  is_answer: bool = False
  active: bool = False
  workers: tuple[WorkerBeat, ...] = ()
  load: float = 0.0
  frames: int = 0
  links: tuple[PeerLink, ...] = ()
  cpu_s: float = 0.0
  rss_mb: int = 0
  paces: tuple[PlanPace, ...] = ()
  leaving: bool = False
  rumours: tuple[Rumour, ...] = ()
  data_bytes: int = 0
  data_read_bytes: int = 0
  link_keys: tuple[str, ...] = ()
  ailments: tuple[Ailment, ...] = ()
  rooms: tuple[PlanRoom, ...] = ()
  retired: bool = False

  @property
  def free_memory_mb(self) -> int:
    """What its workers could use, together."""
    return sum(worker.usable_mb for worker in self.workers)

  @property
  def used_memory_mb(self) -> int:
    return sum(worker.used_mb for worker in self.workers)


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
  requests of the same `cache_salt` alone.
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
  """The stage is ready; what it can keep. `max_drafting` is as in `StageMemory`."""
  plan_id: str
  max_kv_tokens: int
  max_sequences: int
  max_context: int
  max_drafting: int = 0


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
  sequence and length, `opens` begin, then the entries are computed. `refused` are sequences that an earlier stage could
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


class SequenceToken(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
  """A sequence's next token; `finish_reason` is "" while it goes on, else "stop" or "length"."""
  sequence: Count
  token_id: Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
  finish_reason: str = ""


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


@dataclass(frozen=True, slots=True)
class FindModel:
  """Which files does this model have, as you hold it?"""
  model_id: str


@dataclass(frozen=True, slots=True)
class ModelFound:
  """`manifest_json` is empty where the node holds nothing of the model."""
  manifest_json: str = ""


@dataclass(frozen=True, slots=True)
class ListModels:
  """Which models do you hold something of? Of this one alone where one is named."""
  model_id: str = ""


@dataclass(frozen=True, slots=True)
class ModelsListed:
  """`models_json` is a list of `HeldModel`."""
  models_json: str = "[]"


@dataclass(frozen=True, slots=True)
class FindBlocks:
  """Which bytes of these files (name, identity) do you have?"""
  model_id: str
  files: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class BlocksFound:
  """By file, spans [start, end) of whole blocks."""
  files: tuple[tuple[str, tuple[tuple[int, int], ...]], ...]


@dataclass(frozen=True, slots=True)
class ReadRange:
  """Give me bytes [start, end) of a file. Travels, with its answer, on the bulk stream."""
  model_id: str
  name: str
  identity: str
  start: int
  end: int


@dataclass(frozen=True, slots=True)
class RangeData:
  """`digests` holds the SHA-256 of each block of `data`, one after the other."""
  data: bytes
  digests: bytes


@dataclass(frozen=True, slots=True)
class DownloadNews:
  """How far a download of the sender's has come; the fields are those of `DownloadProgress`."""
  model_id: str
  downloaded_bytes: int
  total_bytes: int
  done: bool
  bytes_per_s: float
  from_peers_bytes: int
  from_hub_bytes: int
  error: str
  status: str


Message = (
    Hello | Heartbeat | OpenPlan | PlanOpened | ClosePlan | Submit | Cancel | Failure | Done | RequestFailed | Frame
    | Absolve | GiveWay | StepResult | StepFailed | TokenDelivery | FindModel | ModelFound | FindBlocks | BlocksFound
    | ReadRange
    | RangeData | DownloadNews | ListModels | ModelsListed
)
EMPTY_TOKEN_IDS: TokenIds = np.zeros(0, np.int32)
