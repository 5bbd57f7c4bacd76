"""POST /v1/embeddings: the mean of a text's last hidden states, at unit length."""

from __future__ import annotations

import asyncio
import base64
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


async def embeddings(request: web.Request, node: Node) -> web.Response:
  body = await read_body(request, EmbeddingRequest)
  model = await asked_model(node, body.model)
  texts = await aside(request.content_length or LARGE, prompt_ids, body.input, model, "input")
  size = model.checkpoint.config.hidden_size
  if body.dimensions is not None and body.dimensions != size:
    raise InvalidRequestError(
        f"dimensions: vectors of {model.id} have {size} numbers and cannot be shortened", "dimensions"
    )
  tell_exact(node.config.exact != "off")
  vectors = await asyncio.gather(*(embedding(node, model, text) for text in texts))
  data = [{"object": "embedding", "index": i, "embedding": _written(vector, body.encoding_format == "base64")}
          for i, vector in enumerate(vectors)]
  tokens = sum(map(len, texts))
  usage = {"prompt_tokens": tokens, "total_tokens": tokens}
  return json_response({"object": "list", "data": data, "model": model.id, "usage": usage})


def _written(vector: npt.NDArray[np.float32], as_base64: bool) -> Any:
  return base64.b64encode(vector.astype("<f4").tobytes()).decode() if as_base64 else vector.tolist()


async def embedding(node: Node, model: ModelInfo, ids: list[int]) -> npt.NDArray[np.float32]:
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
  vector: npt.NDArray[np.float32] = (mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32)
  return vector
