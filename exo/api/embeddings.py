"""POST /v1/embeddings: the mean of a text's last hidden states, at unit length."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from aiohttp import web

from exo.api.aside import LARGE, aside
from exo.api.asked_model import asked_model
from exo.api.caller import caller
from exo.api.completions import prompt_ids
from exo.api.errors import json_response
from exo.api.exact import tell_exact
from exo.api.schema import EmbeddingRequest, read_body
from exo.api.text_run import new_id
from exo.errors import InvalidRequestError
from exo.inference.sampling import SamplingParams
from exo.orchestration.generation import GenerationSpec
from exo.orchestration.model_catalog import ModelInfo
from exo.orchestration.node import Node

Vector = npt.NDArray[np.float32]

MAX_TEXTS = 2048  # of one request, OpenAI's
_AT_ONCE = 32  # of them run together


async def embeddings(request: web.Request, node: Node) -> web.Response:
  body = await read_body(request, EmbeddingRequest)
  model = await asked_model(node, body.model)
  texts = await aside(request.content_length or LARGE, prompt_ids, body.input, model, "input", MAX_TEXTS)
  vectors = await embed(node, model, texts, body.dimensions)
  data = [{"object": "embedding", "index": i, "embedding": _written(vector, body.encoding_format == "base64")}
          for i, vector in enumerate(vectors)]
  return json_response({"object": "list", "data": data, "model": model.id, "usage": usage_of(texts)})


def usage_of(texts: Sequence[Sequence[int]]) -> dict[str, int]:
  tokens = sum(map(len, texts))
  return {"prompt_tokens": tokens, "total_tokens": tokens}


async def embed(node: Node,
                model: ModelInfo,
                texts: Sequence[list[int]],
                dimensions: int | None = None) -> list[Vector]:
  """One vector (hidden size,) at unit length for each text; with `dimensions`, its first numbers, at unit length again.

  That is what OpenAI's and Ollama's clients mean by it. No model is known here to have been trained for short vectors, so they
  say less than whole ones (`docs/decisions.md`). Raises `InvalidRequestError` for more numbers than there are.
  """
  size = model.checkpoint.config.hidden_size
  if dimensions is not None and dimensions > size:
    raise InvalidRequestError(
        f"dimensions: vectors of {model.id} have {size} numbers: ask for {size} or fewer", "dimensions"
    )
  tell_exact(node.config.exact != "off")
  room = asyncio.Semaphore(_AT_ONCE)

  async def one(text: list[int]) -> Vector:
    async with room:
      return await embedding(node, model, text)

  try:
    async with asyncio.TaskGroup() as group:
      running = [group.create_task(one(text)) for text in texts]
  except BaseExceptionGroup as errors:
    raise errors.exceptions[0] from None
  vectors = [task.result() for task in running]
  return vectors if dimensions is None else [_unit(vector[:dimensions]) for vector in vectors]


def _unit(vector: Vector) -> Vector:
  return (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)


def _written(vector: Vector, as_base64: bool) -> Any:
  return base64.b64encode(vector.astype("<f4").tobytes()).decode() if as_base64 else vector.tolist()


async def embedding(node: Node, model: ModelInfo, ids: list[int]) -> Vector:
  """The vector (hidden size,) of one text, at unit length."""
  spec = GenerationSpec(
      new_id("embd-"),
      tuple(ids),
      0,
      frozenset(),
      SamplingParams(),
      embed=True,
      share=caller().label,
      exact=node.config.exact != "off"
  )
  async with node.generation(spec, model) as generation:
    mean = None
    async for delivery in generation:
      mean = delivery.embedding
  assert mean is not None
  return _unit(mean)
