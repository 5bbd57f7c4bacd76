"""`/infill`: what stands between two parts of a file, as llama.cpp's server is asked for it by editors."""

from __future__ import annotations

import time
from typing import Annotated, Any

from aiohttp import web
from msgspec import Meta, Struct, field

from exo.api.asked_model import asked_model
from exo.api.constraints import ConstraintFields
from exo.api.errors import json_response
from exo.api.fill_in import gap_prompt
from exo.api.handlers import WithNode
from exo.api.schema import TokenBound, read_body
from exo.api.sse import event_stream
from exo.api.text_request import checked_grammar
from exo.api.text_run import TextRun, new_id, text_run, told_circles
from exo.api.waiting import Waiting
from exo.errors import InvalidRequestError
from exo.orchestration.node import Node

_MAX_EXTRA = 256
_ANSWER_TOKENS = 128  # for which there is room where a request does not say how many it wants
_STOP_TYPES = {"length": "limit"}


class ExtraFile(Struct):
  text: str
  filename: str = "unnamed"


class InfillRequest(ConstraintFields, kw_only=True):
  """`prompt` stands right before the gap, after `input_prefix`. `n_predict` 0 reads the prompt and writes nothing, so that the next
  request finds it read. `t_max_predict_ms`: no more is written after that time, counted from the first token on."""
  input_prefix: str = ""
  input_suffix: str = ""
  prompt: str = ""
  input_extra: Annotated[list[ExtraFile], Meta(max_length=_MAX_EXTRA)] = field(default_factory=list)
  n_predict: TokenBound | None = None
  t_max_predict_ms: float | None = None


def add_routes(router: web.UrlDispatcher, with_node: WithNode) -> None:
  for path in ("/infill", "/v1/infill"):
    router.add_post(path, with_node(infill))


async def infill(request: web.Request, node: Node) -> web.StreamResponse:
  body = await read_body(request, InfillRequest)
  if body.n not in (None, 1):
    raise InvalidRequestError("n: a gap is filled once; ask again for another", "n")
  model = await asked_model(node, body.model)
  before = body.input_prefix + body.prompt
  files = [(extra.filename, extra.text) for extra in body.input_extra]
  most = body.n_predict if body.n_predict is not None else body.max_tokens
  gap = await gap_prompt(
      model,
      before,
      body.input_suffix,
      files,
      param="input_suffix",
      cut_for=_ANSWER_TOKENS if most in (None, -1) else most
  )
  grammar = await checked_grammar(request, model, body)
  async with text_run(
      node,
      model,
      body,
      gap.ids,
      most,
      request_id=new_id("infill-"),
      grammar=grammar,
      end_ids=gap.end_ids,
      title=before[-80:]
  ) as run:
    if not body.stream:
      text, end = "", _end(run, "", "")
      async for piece, last, _ in _pieces(run, body):
        text, end = text + piece, last
      return json_response(end | {"content": text, "truncated": gap.is_cut})
    async with event_stream(request, done=False) as (stream, response):
      async for piece, end, told in _pieces(run, body):
        await stream.send(
            end | {"content": piece, "truncated": gap.is_cut} if end["stop"] else {
                "index": 0, "content": piece, "stop": False, "tokens": [], "id_slot": 0, "tokens_predicted": run.
                completion_tokens, "tokens_evaluated": run.prompt_tokens
            } | told
        )
    return response


async def _pieces(run: TextRun, body: InfillRequest) -> Any:
  """(text, what is told with it, what is told of the waiting); `stop` in the second is true of the last."""
  most_ms, waiting = body.t_max_predict_ms, Waiting(body.return_progress and bool(body.stream))
  async for delta in run:
    if delta.progress is not None:
      yield "", _end(run, "", ""), waiting.told(delta.progress)
      continue
    if last := waiting.last(run.prompt_tokens, run.cached_tokens):
      yield "", _end(run, "", ""), last
    late = bool(most_ms) and bool(run.first_at) and (time.monotonic() - run.first_at) * 1000 >= (most_ms or 0)
    reason = delta.finish_reason or ("length" if late else "")
    yield delta.text, _end(run, reason, delta.stop or ""), {}
    if reason:
      return


def _end(run: TextRun, reason: str, stop: str) -> dict[str, Any]:
  sampling = run.sampling
  return {
      "index": 0, "stop": bool(reason), "model": run.model.id, "id_slot": 0, "tokens": [],
      "stop_type": "word" if stop else _STOP_TYPES.get(reason, "eos" if reason else "none"), "stopping_word": stop,
      "tokens_predicted": run.completion_tokens, "tokens_evaluated": run.prompt_tokens,
      "tokens_cached": run.cached_tokens, "timings": run.timings, "generation_settings": {
          "n_ctx": run.model.max_context, "temperature": sampling.temperature, "top_k": sampling.top_k,
          "top_p": sampling.top_p, "min_p": sampling.min_p, "seed": sampling.seed
      }
  } | told_circles(run.circled)
