"""Requests on nodes inside this process while the package raises at one of its own points: is each answered?

  python -m test.support.injection --nodes 3 --stride 1 --errors all

A point is tried if a request passes it. Whatever is raised there, the client must get its right text or an error with a
reason, soon; afterwards nothing of the request may be left anywhere, and the next request must be answered rightly.
"""

from __future__ import annotations

from test.support.injector import Injector, Kind, errors, install

INJECTOR: Injector = install()

import argparse  # noqa: E402
import asyncio  # noqa: E402
import collections  # noqa: E402
import contextlib  # noqa: E402
import dataclasses  # noqa: E402
import faulthandler  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Awaitable, Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import aiohttp  # noqa: E402

from exo import log  # noqa: E402
from exo.api.chatgpt_api import ChatGPTAPI  # noqa: E402
from exo.config import Config  # noqa: E402
from exo.download.model_store import ModelStore  # noqa: E402
from exo.inference.engines import EngineChoice  # noqa: E402
from exo.networking.discovery import NoDiscovery  # noqa: E402
from exo.networking.grpc.grpc_mesh import GrpcMesh  # noqa: E402
from exo.networking.mesh import PeerCandidate  # noqa: E402
from exo.networking.messages import Hello  # noqa: E402
from exo.orchestration.model_catalog import ModelCatalog  # noqa: E402
from exo.orchestration.node import Node  # noqa: E402
from exo.tasks import log_lost_errors  # noqa: E402
from exo.topology.device_capabilities import DeviceCapabilities  # noqa: E402
from exo.topology.ring_memory_weighted_partitioning_strategy import RingMemoryWeightedPartitioningStrategy  # noqa: E402

BELOW_HTTP = {"connections.py", "protocol.py"}  # where nothing can be answered any more, the connection ends at once
# What asyncio calls to make its side of a connection (nothing of this package runs that could say that it failed), and how a
# thing looks in a log line (the log guards itself).
NOT_TRIED = (".factory.", "_BoundedProtocol.__init__", ".__str__", ".__repr__")
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


@dataclasses.dataclass
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
    out.ended = False
  return out


def _whole(out: Answer) -> None:
  try:
    value = json.loads(out.raw)
  except ValueError:
    return
  out.ended = True
  if "error" in value:
    out.error = str(value["error"].get("message") or "") if isinstance(value["error"], dict) else ""
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
      hello = Hello(name, time.time_ns() // 10**6, 0, DeviceCapabilities(memory=1000), "dummy", "none", "1")
      config = Config(default_model="dummy", exo_home=self._home, chatgpt_api_port=0, chatgpt_api_response_timeout=60)
      mesh = GrpcMesh(hello, "127.0.0.1", 60)
      node = Node(
          config, hello, mesh, NoDiscovery(), ModelCatalog(ModelStore(self._home)),
          EngineChoice("dummy", "none", "test"), RingMemoryWeightedPartitioningStrategy()
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
      node._loader._engine = None

  @property
  def unwell(self) -> bool:
    """A node takes no part in the model for a while, or is looking whether it still computes."""
    return any(node.planner.ailments() or node.plans.worker._doubted for node in self.nodes)

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
        if set(opened.runner.model._cache) != opened.runner.kept:
          found.append(f"caches {sorted(opened.runner.model._cache)} but kept {sorted(opened.runner.kept)}")
        if opened.driver is not None:
          counts = opened.driver.scheduler.counts
          if counts.reserved_kv_tokens:
            found.append(f"{counts.reserved_kv_tokens} tokens reserved")
          if counts.kept != len(opened.runner.kept):
            found.append(f"the scheduler keeps {counts.kept}, the stage {len(opened.runner.kept)}")
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
        link.end("cut by the test")
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


@dataclasses.dataclass
class Trial:
  """One point, one error, one scenario."""
  point: int
  error: str
  scenario: str
  nth: int = 1


@dataclasses.dataclass
class Finding:
  where: str
  error: str
  scenario: str
  what: list[str]


class Campaign:
  def __init__(self, count: int, home: Path) -> None:
    self._count, self._home = count, home
    self.cluster = Cluster(count, home)
    self.expected: dict[str, Answer] = {}
    self.calm: collections.Counter[str] = collections.Counter()
    self.lines: list[str] = []
    self.renewed = 0

  def heard(self, line: str) -> None:
    self.lines.append(line)

  async def begin(self) -> None:
    log.set_level(2)
    log.set_sink(self.heard)
    log_lost_errors(asyncio.get_running_loop())
    await self.cluster.start()

  async def renew(self) -> None:
    self.renewed += 1
    await self.cluster.stop()
    self.cluster = Cluster(self._count, self._home)
    await self.cluster.start()

  async def rehearse(self) -> dict[str, dict[int, int]]:
    """Run every scenario undisturbed; what each passes, and what it answers."""
    passed: dict[str, dict[int, int]] = {}
    for name, (cold, scenario) in SCENARIOS.items():
      for _ in range(2):  # the second time without what happens once in a process
        if cold:
          await self.cluster.cold()
        INJECTOR.record()
        self.expected[name] = await scenario(self.cluster)
        await self._settled()
        found = INJECTOR.recorded()
        passed[name] = {p: max(n, passed.get(name, {}).get(p, 0)) for p, n in found.items()}
        answer = self.expected[name]
        assert answer.status == 200 and answer.ended and not answer.error, (name, answer)
        assert await self.cluster.whole()
      await self._asked_again()
    await asyncio.sleep(0.2)
    self.calm = task_names()
    return passed

  async def _settled(self) -> list[str]:
    deadline = time.monotonic() + SETTLE_S
    while (left := self.cluster.left()) and time.monotonic() < deadline:  # noqa: ASYNC110
      await asyncio.sleep(0.01)
    return left

  async def _tasks_left(self) -> list[str]:
    deadline = time.monotonic() + SETTLE_S
    while (more := task_names() - self.calm) and time.monotonic() < deadline:  # noqa: ASYNC110
      await asyncio.sleep(0.02)
    return [f"{n} tasks of {name} more than before" for name, n in more.items()]

  async def _asked_again(self) -> str:
    """"" once the next request is answered rightly; an honest error may come before that."""
    deadline, answer = time.monotonic() + ANSWER_S, Answer()
    expected = self.expected["first"]
    while time.monotonic() < deadline:
      try:
        answer = await SCENARIOS["first"][1](self.cluster)
      except TimeoutError:
        return "the next request hangs"
      if answer.same(expected):
        return ""
      if not answer.error:
        break
      await asyncio.sleep(0.1)
    return f"the next request: {answer}"

  async def attempt(self, trial: Trial) -> Finding | None:
    cold, scenario = SCENARIOS[trial.scenario]
    marker = f"injected-{trial.point}"
    what: list[str] = []
    if cold:
      await self._settled()
      await self.cluster.cold()
    self.lines.clear()
    INJECTOR.arm(trial.point, dict(errors())[trial.error](marker), trial.nth)
    answer = Answer()
    started = time.monotonic()
    try:
      answer = await scenario(self.cluster)
    except TimeoutError:
      what.append(f"HANG: no answer in {ANSWER_S:g} s; on the desk: {self.cluster.left()}")
    except Exception as error:  # noqa: BLE001 - the client's own trouble with what it was sent
      what.append(f"the client could not read it: {error!r}")
    raised = INJECTOR.disarm()
    if not what:
      what += self._judge(trial, answer)
    if raised and not any(marker in line for line in self.lines) and marker not in answer.raw:
      what.append("SILENT: neither the log nor the client heard of it")
    if Path(INJECTOR.points[trial.point].file).name in BELOW_HTTP and answer.raw:
      what.clear()
    bad = bool(what)
    left = await self._settled()
    if left:
      what.append(f"LEFT: {left}")
    if not await self.cluster.whole():
      what.append("the ring is not whole again")
      left.append("")
    if again := await self._asked_again():
      what.append(again)
      left.append("")
    tasks = await self._tasks_left()
    what += [f"LEFT: {task}" for task in tasks]
    if left or tasks or bad or self.cluster.unwell:
      await self.renew()
    if not raised:
      return None if not what else Finding(
          str(INJECTOR.points[trial.point]), trial.error, trial.scenario, ["NOT REACHED", *what]
      )
    took = time.monotonic() - started
    self.slowest = max(getattr(self, "slowest", (0.0, "")), (took, str(trial)))
    return Finding(str(INJECTOR.points[trial.point]), trial.error, trial.scenario, what) if what else None

  def _judge(self, trial: Trial, answer: Answer) -> list[str]:
    expected = self.expected[trial.scenario]
    if answer.same(expected):
      return []
    if answer.error and answer.ended:
      return [] if len(answer.error) > 3 else [f"an error without a reason: {answer.raw[-300:]}"]
    if not answer.ended:
      return [f"CUT: {answer.status} {answer.raw[-200:]!r}"]
    return [f"WRONG: {answer.status} {answer.text[-200:]} instead of {expected.text[-200:]}"]


def trials(passed: dict[str, dict[int, int]], kinds: set[str], names: list[str], every: int) -> list[Trial]:
  """Each point with the first scenario that passes it, and again with the one in which a node is lost."""
  out: list[Trial] = []
  seen: set[int] = set()
  for scenario, points in passed.items():
    for point in sorted(points):
      kind = INJECTOR.points[point].kind
      label = "callback" if point in INJECTOR.callbacks else str(kind)
      if label not in kinds or any(part in INJECTOR.points[point].function for part in NOT_TRIED):
        continue
      if point in seen and scenario != "losing":
        continue
      seen.add(point)
      out.append(Trial(point, "", scenario))
  chosen = out[::every]
  if names == ["turns"]:
    all_names = [name for name, _ in errors()]
    return [dataclasses.replace(t, error=all_names[i % len(all_names)]) for i, t in enumerate(chosen)]
  return [dataclasses.replace(t, error=name) for t in chosen for name in names]


async def campaign(options: argparse.Namespace) -> int:
  kinds = {str(Kind.BEFORE), str(Kind.AFTER), "callback"} | ({str(Kind.ENTRY)} if options.calls else set())
  findings = []
  with tempfile.TemporaryDirectory() as home:
    work = Campaign(options.nodes, Path(home))
    await work.begin()
    passed = await work.rehearse()
    everything = {p for points in passed.values() for p in points}
    counts = collections.Counter(
        "callback" if p in INJECTOR.callbacks else str(INJECTOR.points[p].kind) for p in everything
    )
    print(f"{len(INJECTOR.points)} points in the package, requests pass {len(everything)}: {dict(counts)}", flush=True)
    names = [name for name, _ in errors()] if options.errors == "all" else options.errors.split(",")
    planned = trials(passed, kinds, names, options.stride)
    if options.only:
      planned = [t for t in planned if options.only in str(INJECTOR.points[t.point])]
    started = time.monotonic()
    for i, trial in enumerate(planned):
      faulthandler.dump_traceback_later(120, exit=True)
      finding = await work.attempt(trial)
      if finding is not None:
        findings.append(finding)
        print(
            f"FINDING {finding.where} {finding.error} in {finding.scenario}:",
            *(f"\n    {w}" for w in finding.what),
            flush=True
        )
      if options.verbose and i % 50 == 0:
        print(f"{i} of {len(planned)}, {work.renewed} renewed, {time.monotonic() - started:.0f} s", flush=True)
    faulthandler.cancel_dump_traceback_later()
    await work.cluster.stop()
    print(
        f"{len(planned)} tried on {options.nodes} node{'s' * (options.nodes > 1)} in {time.monotonic() - started:.0f} s, "
        f"{len(findings)} findings", getattr(work, "slowest", "")
    )
  return 1 if findings else 0


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--nodes", type=int, default=1)
  parser.add_argument("--stride", type=int, default=1, help="try every so many-th point")
  parser.add_argument("--errors", default="turns", help="all, turns (one each, in turn), or names of exceptions")
  parser.add_argument("--calls", action="store_true", help="functions that the package itself calls, too")
  parser.add_argument("--only", default="", help="points whose description holds this text")
  parser.add_argument("--verbose", action="store_true")
  return asyncio.run(campaign(parser.parse_args()))


if __name__ == "__main__":
  sys.exit(main())
