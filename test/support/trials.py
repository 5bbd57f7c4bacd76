"""Nodes inside this process with real links and a real API, the requests that are tried on them, and what is left of one."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from exo.api.chatgpt_api import ChatGPTAPI
from exo.config import Config
from exo.download.model_store import ModelStore
from exo.log import log
from exo.networking.discovery import NoDiscovery
from exo.networking.grpc.grpc_mesh import GrpcMesh
from exo.networking.mesh import PeerCandidate
from exo.networking.peer_messages import Hello
from exo.orchestration.model_catalog import ModelCatalog
from exo.orchestration.node import Node
from exo.topology.device_capabilities import DeviceCapabilities
from exo.topology.placements import load_strategy
from test.support.workers import dummy_offers, make_workers

ANSWER_S = 5.0  # for an answer; far more than one takes
SETTLE_S = 4.0
QUESTION = [{"role": "user", "content": "hello"}]
CHAT = {"messages": QUESTION, "max_tokens": 8}
SCHEMA = {
    "type": "json_schema", "json_schema": {
        "name": "n", "schema": {
            "type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False
        }
    }
}


@dataclass
class Answer:
  """What a client saw. `error` is the message of an error in the API's shape; `ended` is False for a cut connection."""
  status: int = 0
  text: str = ""
  error: str = ""
  ended: bool = False
  raw: str = ""

  def same(self, other: Answer) -> bool:
    return not self.error and (self.status, self.text, self.ended) == (other.status, other.text, other.ended)


OnText = Callable[[str], Awaitable[bool]]


async def ask(
    session: aiohttp.ClientSession, url: str, path: str, body: dict[str, Any], on_text: OnText | None = None
) -> Answer:
  """`on_text` is called with the request's id after each event; True ends the connection."""
  out = Answer()
  try:
    async with session.post(url + path, json=body) as response:
      out.status = response.status
      if response.content_type != "text/event-stream":
        out.raw = await response.text()
        _whole(out)
        return out
      async for raw in response.content:
        line = raw.decode().strip()
        out.raw += line + "\n"
        if line == "data: [DONE]":
          out.ended = True
        elif line.startswith("data: "):
          event = json.loads(line[6:])
          if "error" in event:
            out.error = str(event["error"].get("message"))
          else:
            out.text += _text(event)
            if on_text is not None and await on_text(event["id"]):
              return out
  except (aiohttp.ClientError, ConnectionError) as error:
    out.raw += f"<{type(error).__name__}: {error}>"
  return out


def _whole(out: Answer) -> None:
  try:
    value = json.loads(out.raw)
  except ValueError:
    return
  out.ended = True
  if "error" in value:
    error = value["error"]  # Ollama's is a text
    out.error = str(error.get("message") or "") if isinstance(error, dict) else str(error)
  elif "choices" in value:
    out.text = _text(value)
  else:
    out.text = json.dumps(value.get("data") or value.get("message") or value.get("content"))


def _text(event: dict[str, Any]) -> str:
  """What is told of every choice, in a form that can be compared."""
  parts = [(
      c["index"], c.get("text")
      or (c.get("delta") or c.get("message") or {}).get("content"), c.get("logprobs"), c["finish_reason"]
  ) for c in event["choices"]]
  return json.dumps(parts)


class Cluster:
  """Nodes with real links on the loopback; the one that is asked is the plan's second stage, where there is one."""
  def __init__(self, count: int, home: Path) -> None:
    self.count, self._home = count, home
    self.nodes: list[Node] = []
    self.meshes: list[GrpcMesh] = []

  async def start(self) -> None:
    for i in range(self.count):
      name = f"n{i}"
      hello = Hello(name, time.time_ns() // 10**6, 0, DeviceCapabilities(memory=1000), dummy_offers(1000), "1")
      config = Config(
          default_model="dummy",
          default_temp=0.0,
          exo_home=self._home,
          chatgpt_api_port=0,
          chatgpt_api_response_timeout=60
      )
      mesh = GrpcMesh(hello, "127.0.0.1", 60)
      node = Node(
          config, hello, mesh, NoDiscovery(), ModelCatalog(ModelStore(self._home)), make_workers(name, hello.workers),
          load_strategy("memory")
      )
      await node.start()
      self.nodes.append(node)
      self.meshes.append(mesh)
    await self.whole()
    plan = self.nodes[0].planner.plan(self.nodes[0].hello, await self.nodes[0].model("dummy"))
    names = [stage.node_id for stage in plan.stages]
    self.entry = next(n for n in self.nodes if n.node_id == names[min(1, len(names) - 1)])
    self.last = next(m for m in self.meshes if m.hello.node_id == names[-1])
    self.api = ChatGPTAPI(self.entry, lambda: None)
    await self.api.start()
    self.session = aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=ANSWER_S), connector=aiohttp.TCPConnector(force_close=True)
    )
    self.url = f"http://127.0.0.1:{self.api.port}"

  async def whole(self) -> bool:
    """Wait until every node has a link to every other, and tell each where the others are."""
    deadline = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline:
      if all(len(mesh.peers()) == self.count - 1 for mesh in self.meshes):
        return True
      for i, mesh in enumerate(self.meshes):
        for other in self.meshes[i + 1:]:
          mesh.offer(PeerCandidate(other.hello.node_id, "127.0.0.1", other.hello.port, 4, "lo"))
      await asyncio.sleep(0.02)
    return False

  async def stop(self) -> None:
    with contextlib.suppress(Exception):
      await self.session.close()
    for end in (self.api.stop, *(node.stop for node in self.nodes)):
      with contextlib.suppress(Exception, asyncio.CancelledError):
        await asyncio.wait_for(end(), 10)

  async def cold(self) -> None:
    """Nothing is loaded, nothing is known of the model."""
    for node in self.nodes:
      node.planner._book._in_use.clear()
      node.planner._book._preparing.clear()
      await node.plans.close_model("dummy")
      node.catalog._opened.clear()
      node.workers[0].engines.renew()

  @property
  def unwell(self) -> bool:
    """A node takes no part in the model for a while, or is looking whether it still computes."""
    return any(node.planner.ailments() or node.workers[0].health.doubted for node in self.nodes)

  def left(self) -> list[str]:
    """What still is there of requests, in words."""
    found = []
    for node in self.nodes:
      if len(node.desk):
        found.append(f"{len(node.desk)} on the desk of {node.node_id}")
      if node.plans.busy or not node.plans.idle:
        found.append(f"plans of {node.node_id} are busy")
      if node.activity.running:
        found.append(f"{node.node_id} shows a running request")
      for opened in node.plans._open.values():
        runner = opened.stages[min(opened.stages)].runner
        if set(runner.model._cache) != runner.kept:
          found.append(f"caches {sorted(runner.model._cache)} but kept {sorted(runner.kept)}")
        if opened.driver is not None:
          counts = opened.driver.scheduler.counts
          if counts.reserved_kv_tokens:
            found.append(f"{counts.reserved_kv_tokens} tokens reserved")
          if counts.kept != len(runner.kept):
            found.append(f"the scheduler keeps {counts.kept}, the stage {len(runner.kept)}")
    return found


def task_names() -> collections.Counter[str]:
  """Of tasks that run, by what they run: those that an object owns end with it, those of a link with the link, and either may
  outlive a request.
  """
  def counts(task: asyncio.Task[Any]) -> bool:
    file = getattr(getattr(task.get_coro(), "cr_code", None), "co_filename", "grpc")
    return not task.done() and ": " not in task.get_name() and "grpc" not in file

  return collections.Counter(
      getattr(task.get_coro(), "__qualname__", "?") for task in asyncio.all_tasks() if counts(task)
  )


Scenario = Callable[[Cluster], Awaitable[Answer]]


def posting(path: str, **body: Any) -> Scenario:
  async def scenario(cluster: Cluster) -> Answer:
    return await ask(cluster.session, cluster.url, path, body)

  return scenario


async def leaving(cluster: Cluster) -> Answer:
  """The client goes in mid-stream."""
  async def enough(_: str) -> bool:
    return True

  await ask(cluster.session, cluster.url, "/v1/chat/completions", CHAT | {"stream": True, "max_tokens": 4000}, enough)
  return Answer(200, "left", ended=True)


async def cancelling(cluster: Cluster) -> Answer:
  """Somebody cancels it in mid-stream; the stream says so and ends."""
  asked: list[Answer] = []

  async def cancel(request_id: str) -> bool:
    if not asked:
      asked.append(await ask(cluster.session, cluster.url, f"/v1/cancel/{request_id}", {}))
    return False

  out = await ask(
      cluster.session, cluster.url, "/v1/chat/completions", CHAT | {"stream": True, "max_tokens": 4000}, cancel
  )
  if out.ended and "was cancelled" in out.error:
    return Answer(200, "cancelled", ended=True)
  if asked and asked[0].error and out.status == 200:  # the cancelling failed, honestly; the stream is ended by hand
    return asked[0]
  return out


async def losing_a_node(cluster: Cluster) -> Answer:
  """The link to the last stage breaks in mid-stream."""
  broken = []

  async def cut(_: str) -> bool:
    if not broken and cluster.count > 1:
      broken.append(True)
      for link in cluster.last._links.get(cluster.entry.node_id, []):
        try:
          link.end("cut by the test")
        except Exception as error:  # noqa: BLE001 - made to raise, it has told who called it
          log(0, "the link was not cut: %s", error)
    return False

  return await ask(cluster.session, cluster.url, "/v1/chat/completions", CHAT | {"stream": True, "max_tokens": 60}, cut)


V1 = "/v1/chat/completions"
SCENARIOS: dict[str, tuple[bool, Scenario]] = {  # whether it begins cold
    "first": (True, posting(V1, **CHAT)),
    "streamed": (False, posting(V1, **CHAT, stream=True, logprobs=True, top_logprobs=2)),
    "choices": (False, posting(V1, **CHAT, n=2, stop=["zzz"], temperature=0.8, seed=3)),
    "grammar": (False, posting(V1, **(CHAT | {"max_tokens": 30}), response_format=SCHEMA, stream=True)),
    "text": (False, posting("/v1/completions", prompt="abc", max_tokens=6, stream=True, logprobs=1, echo=True)),
    "texts": (False, posting("/v1/completions", prompt=["abc", "d"], max_tokens=6)),
    "vectors": (False, posting("/v1/embeddings", input=["abc", "d"])),
    "messages": (False, posting("/v1/messages", **CHAT)),
    "ollama": (False, posting("/api/chat", messages=QUESTION, stream=False, options={"num_predict": 6})),
    "leaving": (False, leaving),
    "cancelling": (False, cancelling),
    "losing": (False, losing_a_node),
}
