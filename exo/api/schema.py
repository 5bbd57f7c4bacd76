"""What clients may send, as types: validation happens here and nowhere else. Unknown fields are ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from exo.api.aside import LARGE, aside
from exo.api.exact import is_exact
from exo.api.mended_json import mended_json
from exo.api.request_body import body_of
from exo.api.words import biases, breakers
from exo.config import ExactMode
from exo.errors import InvalidRequestError
from exo.inference.dry import DryParams
from exo.inference.sampling import SamplingParams
from exo.inference.tokenizer import Tokenizer
from exo.repetition import STOP_REASON
from exo.sampling_defaults import SamplingDefaults

MAX_N = 128
MAX_STOPS = 64
MAX_STOP_CHARS = 4096
MAX_DEPTH = 64
_FIELD_LEVELS = 1  # of objects in which whole numbers are fields; further in are schemas and texts of others

_OWN = "Where it is left out, the model's own counts: `sampling` of GET /v1/models/{model}"
Temperature = Annotated[float, Meta(ge=0, le=2, description=_OWN)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Typical = Annotated[float, Meta(gt=0, le=1)]
MirostatVersion = Literal[0, 1, 2]
Surprise = Annotated[float, Meta(ge=0, le=100, description="In bits")]
Repetition = Annotated[float, Meta(gt=0, le=10)]
Seed = Annotated[int, Meta(ge=-2**63, le=2**63 - 1)]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Progress = Annotated[
    bool,
    Meta(
        description="As llama.cpp knows it: before the first token, a stream's chunks have `prompt_progress` "
        "({total, cache, processed, time_ms}, in tokens of the prompt) and, while the request waits for its turn, `queue` ({place}, from 1)"
    )]
Guard = Annotated[
    bool,
    Meta(
        description=
        "Where the request sets no bound of tokens, an answer that says the same over and over is ended: `finish_reason` stop, "
        f"`stop_reason` {STOP_REASON} beside it. False lets it go on"
    )]
TokenBound = Annotated[int, Meta(ge=-1, le=2**31 - 1, description="-1: as many as there is room for")]
LastTokens = Annotated[int, Meta(ge=-1, le=2**31 - 1, description="-1: all tokens")]
PositiveCount = Annotated[int, Meta(ge=1, le=2**31 - 1)]


class StreamOptions(Struct):
  include_usage: bool | None = None


class SamplingFields(Struct, kw_only=True):
  """The fields that chat and text completions share."""
  model: str | None = None
  temperature: Temperature | None = None
  top_p: Fraction | None = None
  top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
  min_p: Fraction | None = None
  frequency_penalty: Penalty | None = None
  presence_penalty: Penalty | None = None
  repetition_penalty: Repetition | None = None
  repeat_penalty: Repetition | None = None  # llama.cpp's and Ollama's name for it
  repeat_last_n: LastTokens | None = None
  typical_p: Typical | None = None
  xtc_probability: Fraction | None = None
  xtc_threshold: Fraction | None = None
  dry_multiplier: Annotated[float, Meta(ge=0, le=100)] | None = None
  dry_base: Annotated[float, Meta(ge=1, le=100)] | None = None
  dry_allowed_length: Annotated[int, Meta(ge=1, le=2**15)] | None = None
  dry_penalty_last_n: LastTokens | None = None
  dry_sequence_breakers: list[str] | None = None
  mirostat: MirostatVersion | None = None
  mirostat_tau: Surprise | None = None
  mirostat_eta: Fraction | None = None
  seed: Seed | None = None
  stop: str | list[str] | None = None
  logit_bias: dict[str, float | bool] | list[tuple[int | str, float | bool]] | None = None
  n: Annotated[int, Meta(ge=1, le=MAX_N)] | None = None
  stream: bool | None = None
  stream_options: StreamOptions | None = None
  max_tokens: TokenBound | None = None
  ignore_eos: bool = False  # as other servers know it: only `max_tokens` and `stop` end an answer
  return_progress: Progress = False
  repetition_guard: Guard = True
  timings_per_token: bool = False  # as llama.cpp knows it: `timings` in every chunk, not only at the end
  user: str | None = None

  @property
  def has_words(self) -> bool:
    """Whether the tokenizer is asked for its parameters."""
    return bool(self.logit_bias or self.dry_multiplier)

  @property
  def stops(self) -> tuple[str, ...]:
    """Those that are not empty. Raises `InvalidRequestError` for too many or too long ones."""
    stops = [stop for stop in ([self.stop] if isinstance(self.stop, str) else self.stop or []) if stop]
    if len(stops) > MAX_STOPS or any(len(stop) > MAX_STOP_CHARS for stop in stops):
      raise InvalidRequestError(f"stop takes up to {MAX_STOPS} strings of at most {MAX_STOP_CHARS} characters", "stop")
    return tuple(dict.fromkeys(stops))

  @property
  def include_usage(self) -> bool:
    if self.stream_options is not None and not self.stream:
      raise InvalidRequestError("stream_options is only allowed with stream", "stream_options")
    return self.stream_options is not None and bool(self.stream_options.include_usage)

  def drawn(self, defaults: SamplingDefaults, default_temp: float | None) -> SamplingDefaults:
    """What the request says; where it says nothing, `default_temp`, and then the model's `defaults`."""
    own = SamplingDefaults(
        self.temperature, self.top_p, self.top_k, self.min_p, self.frequency_penalty, self.presence_penalty,
        self.repetition_penalty if self.repeat_penalty is None else self.repeat_penalty
    )
    return own.over(defaults.at(default_temp if self.temperature is None else self.temperature))

  def is_exact(self, mode: ExactMode, drawn: SamplingDefaults) -> bool:
    """See `exact.is_exact`."""
    return is_exact(mode, drawn.temperature or 0.0, self.seed)

  def sampling(
      self, tokenizer: Tokenizer, n_words: int, drawn: SamplingDefaults, seed: int, top_logprobs: int | None,
      grammar: str
  ) -> SamplingParams:
    """The engine's parameters; `seed` counts where the client gave none. Blocks where words are to be found.

    Raises `InvalidRequestError` for what is not possible with this model.
    """
    return SamplingParams(
        temperature=given(drawn.temperature, 0.0),
        top_p=given(drawn.top_p, 1.0),
        top_k=max(0, drawn.top_k or 0),
        min_p=given(drawn.min_p, 0.0),
        frequency_penalty=given(drawn.frequency_penalty, 0.0),
        presence_penalty=given(drawn.presence_penalty, 0.0),
        repetition_penalty=given(drawn.repetition_penalty, 1.0),
        seed=seed if self.seed is None else self.seed,
        logit_bias=biases(self.logit_bias, tokenizer, n_words),
        top_logprobs=top_logprobs,
        grammar=grammar,
        typical_p=given(self.typical_p, 1.0),
        xtc_probability=given(self.xtc_probability, 0.0),
        xtc_threshold=given(self.xtc_threshold, 0.1),
        mirostat=self.mirostat or 0,
        mirostat_tau=given(self.mirostat_tau, 5.0),
        mirostat_eta=given(self.mirostat_eta, 0.1),
        penalty_last_n=-1 if self.repeat_last_n is None else self.repeat_last_n,
        dry=self._dry(tokenizer),
    )

  def _dry(self, tokenizer: Tokenizer) -> DryParams:
    if not self.dry_multiplier:
      return DryParams()
    return DryParams(
        self.dry_multiplier,
        given(self.dry_base, 1.75),
        2 if self.dry_allowed_length is None else self.dry_allowed_length,
        -1 if self.dry_penalty_last_n is None else self.dry_penalty_last_n,
        breakers(self.dry_sequence_breakers, tokenizer),
    )


def given(value: float | None, neutral: float) -> float:
  return neutral if value is None else value


class EmbeddingRequest(Struct, kw_only=True):
  input: str | list[str | int | list[int]]
  model: str | None = None
  encoding_format: Literal["float", "base64"] | None = None
  dimensions: PositiveCount | None = None
  user: str | None = None


def check_depth(value: Any, param: str, left: int = MAX_DEPTH) -> None:
  """Raises `InvalidRequestError` for JSON that is nested deeper than `MAX_DEPTH`."""
  children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
  if left == 0 and children:
    raise InvalidRequestError(f"{param} is nested deeper than {MAX_DEPTH} levels", param)
  for child in children:
    check_depth(child, param, left - 1)


T = TypeVar("T")


def read_json(data: bytes, kind: type[T]) -> T:
  """`data` as `kind`. Text that is no Unicode is read with replacement characters, and whole numbers as 150.0 where they stand as
  fields: nobody who has such a thing in a conversation is refused for ever. Raises `InvalidRequestError` that names the field.
  """
  try:
    return msgspec.json.decode(data, type=kind)
  except (msgspec.ValidationError, UnicodeDecodeError, msgspec.DecodeError, RecursionError) as error:
    first = error
  try:
    return msgspec.convert(_whole_numbers(mended_json(data)), kind)
  except msgspec.ValidationError as error:
    text, _, path = str(error).rpartition(" - at ")
    field = path.strip("`").removeprefix("$").lstrip(".")
    raise InvalidRequestError(
        f"{field or 'body'}: {text or error}"[:1000],
        field.partition("[")[0].partition(".")[0] or None
    ) from None
  except (ValueError, RecursionError):
    raise InvalidRequestError(f"the body is not valid JSON: {first}") from None


def _whole_numbers(value: Any, below: int = _FIELD_LEVELS) -> Any:
  """With 150.0 as 150 in the fields of `value`, and of the objects in it `below` levels down."""
  if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
    return int(value)
  if isinstance(value, dict):
    return {k: _whole_numbers(v, below - 1) if below or not isinstance(v, dict) else v for k, v in value.items()}
  if isinstance(value, list):  # of token ids; objects in it are others' again
    return [item if isinstance(item, dict) else _whole_numbers(item, below) for item in value]
  return value


async def read_body(request: web.Request, kind: type[T]) -> T:
  """The request's JSON as `kind`; the guard has seen to it that it is declared as such. Raises `InvalidRequestError`."""
  data = await body_of(request)
  return await aside(len(data), read_json, data, kind) if len(data) >= LARGE else read_json(data, kind)
