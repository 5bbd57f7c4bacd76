"""What clients may send, as types: validation happens here and nowhere else. Unknown fields are ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from exo.api.aside import LARGE, aside
from exo.api.exact import is_exact
from exo.config import ExactMode
from exo.errors import InvalidRequestError
from exo.inference.sampling import SamplingParams
from exo.sampling_defaults import SamplingDefaults

MAX_N = 8
MAX_STOPS = 4
MAX_STOP_CHARS = 4096
MAX_BIASES = 1024
MAX_DEPTH = 64

_OWN = "Where it is left out, the model's own counts: `sampling` of GET /v1/models/{model}"
Temperature = Annotated[float, Meta(ge=0, le=2, description=_OWN)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Seed = Annotated[int, Meta(ge=-2**63, le=2**63 - 1)]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
PositiveCount = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Stops = Annotated[list[Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARS)]], Meta(max_length=MAX_STOPS)]


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
  repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
  seed: Seed | None = None
  stop: str | list[str] | None = None
  logit_bias: dict[str, float] | None = None
  n: Annotated[int, Meta(ge=1, le=MAX_N)] | None = None
  stream: bool | None = None
  stream_options: StreamOptions | None = None
  max_tokens: Count | None = None
  ignore_eos: bool = False  # as other servers know it: only `max_tokens` and `stop` end an answer
  user: str | None = None

  @property
  def stops(self) -> tuple[str, ...]:
    """Raises `InvalidRequestError` for more than four, or for an empty one."""
    stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
    if len(stops) > MAX_STOPS or any(not 1 <= len(s) <= MAX_STOP_CHARS for s in stops):
      raise InvalidRequestError(
          f"stop takes up to {MAX_STOPS} strings of 1 to {MAX_STOP_CHARS} characters, none of them empty", "stop"
      )
    return tuple(stops)

  @property
  def include_usage(self) -> bool:
    if self.stream_options is not None and not self.stream:
      raise InvalidRequestError("stream_options is only allowed with stream", "stream_options")
    return self.stream_options is not None and bool(self.stream_options.include_usage)

  def bias(self, vocab_size: int) -> dict[int, float]:
    """`logit_bias` by token id. Raises `InvalidRequestError` that names the bad key or value."""
    out: dict[int, float] = {}
    if self.logit_bias and len(self.logit_bias) > MAX_BIASES:
      raise InvalidRequestError(
          f"logit_bias has {len(self.logit_bias)} entries, {MAX_BIASES} are allowed", "logit_bias"
      )
    for key, value in (self.logit_bias or {}).items():
      if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < vocab_size):
        raise InvalidRequestError(
            f"logit_bias: {key[:40]!r} is no token id of this model (0 to {vocab_size - 1})", "logit_bias"
        )
      if not -100 <= value <= 100:
        raise InvalidRequestError(f"logit_bias: {value} for token {key} is not from -100 to 100", "logit_bias")
      out[int(key)] = value
    return out

  def drawn(self, defaults: SamplingDefaults, default_temp: float | None) -> SamplingDefaults:
    """What the request says; where it says nothing, `default_temp`, and then the model's `defaults`."""
    own = SamplingDefaults(
        self.temperature, self.top_p, self.top_k, self.min_p, self.frequency_penalty, self.presence_penalty,
        self.repetition_penalty
    )
    return own.over(defaults.at(default_temp if self.temperature is None else self.temperature))

  def is_exact(self, mode: ExactMode, drawn: SamplingDefaults) -> bool:
    """See `exact.is_exact`."""
    return is_exact(mode, drawn.temperature or 0.0, self.seed)

  def sampling(
      self,
      vocab_size: int,
      drawn: SamplingDefaults,
      seed: int,
      top_logprobs: int | None,
      grammar: str = ""
  ) -> SamplingParams:
    """The engine's parameters; `seed` counts where the client gave none."""
    def given(value: float | None, neutral: float) -> float:
      return neutral if value is None else value

    return SamplingParams(
        temperature=given(drawn.temperature, 0.0),
        top_p=given(drawn.top_p, 1.0),
        top_k=max(0, drawn.top_k or 0),
        min_p=given(drawn.min_p, 0.0),
        frequency_penalty=given(drawn.frequency_penalty, 0.0),
        presence_penalty=given(drawn.presence_penalty, 0.0),
        repetition_penalty=given(drawn.repetition_penalty, 1.0),
        seed=seed if self.seed is None else self.seed,
        logit_bias=self.bias(vocab_size),
        top_logprobs=top_logprobs,
        grammar=grammar,
    )


class CompletionRequest(SamplingFields, kw_only=True):
  prompt: str | list[str | int | list[int]]
  echo: bool | None = None
  logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
  suffix: str | None = None


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
  """`data` as `kind`. Raises `InvalidRequestError` that names the field."""
  try:
    return msgspec.json.decode(data, type=kind)
  except msgspec.ValidationError as error:
    text, _, path = str(error).rpartition(" - at ")
    field = path.strip("`").removeprefix("$").lstrip(".")
    raise InvalidRequestError(
        f"{field or 'body'}: {text or error}"[:1000],
        field.partition("[")[0].partition(".")[0] or None
    ) from None
  except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
    raise InvalidRequestError(f"the body is not valid JSON: {error}") from None


async def read_body(request: web.Request, kind: type[T]) -> T:
  """The request's JSON as `kind`; the guard has seen to it that it is declared as such. Raises `InvalidRequestError`."""
  data = await request.read()
  return await aside(len(data), read_json, data, kind) if len(data) >= LARGE else read_json(data, kind)
