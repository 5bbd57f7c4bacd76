"""Requests on nodes inside this process while the package raises at one of its own points: is each answered?

  python -m test.support.injection --nodes 3 --errors all --calls

A point is tried if a request passes it. Whatever is raised there, the client must get its right text or an error with a
reason, soon, and the log or the client must have heard of it; afterwards nothing of the request may be left anywhere, and
the next request must be answered rightly.
"""

from __future__ import annotations

from test.support.injector import Injector, Kind, errors, install

INJECTOR: Injector = install()

import argparse  # noqa: E402
import asyncio  # noqa: E402
import collections  # noqa: E402
import dataclasses  # noqa: E402
import faulthandler  # noqa: E402
import random  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

from exo import log, system_figures  # noqa: E402
from exo.tasks import log_lost_errors  # noqa: E402
from test.support.trials import ANSWER_S, SCENARIOS, SETTLE_S, Answer, Cluster, task_names  # noqa: E402

BELOW_HTTP = {"connections.py", "protocol.py"}  # where nothing can be answered any more, the connection ends at once
# What asyncio calls to make its side of a connection, or to say what nobody else has (nothing of this package runs that could say
# that it failed), what kind of error another node has told of (its message is heard in any case), and its words (`in_words` minds it).
NOT_TRIED = (".factory.", "_BoundedProtocol.__init__", "log_lost_errors.", "from_wire", "_kinds", "ExoError.__str__")


@dataclasses.dataclass(frozen=True)
class Trial:
  """One point that raises when it is passed for the `nth` time in a scenario; `then`, a second one that raises after it."""
  point: int
  error: str
  scenario: str
  nth: int = 1
  then: int | None = None

  def __str__(self) -> str:
    then = "" if self.then is None else f", then {INJECTOR.points[self.then]}"
    return f"{self.error} at {INJECTOR.points[self.point]}{then}, passed {self.nth} times in {self.scenario!r}"


@dataclasses.dataclass(frozen=True)
class Finding:
  trial: Trial
  what: list[str]


class Campaign:
  def __init__(self, count: int, home: Path) -> None:
    self._count, self._home = count, home
    self.cluster = Cluster(count, home)
    self.expected: dict[str, Answer] = {}
    self.calm: collections.Counter[str] = collections.Counter()
    self.lines: list[str] = []
    self.renewed = self.reached = 0

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
    if cold:
      await self._settled()
      await self.cluster.cold()
    self.lines.clear()
    system_figures._unreadable.clear()  # what is missing is told once in a process
    INJECTOR.arm(trial.point, dict(errors())[trial.error](f"injected-{trial.point}-"), trial.nth)
    if trial.then is not None:
      INJECTOR.arm(trial.then, KeyError(f"injected-{trial.then}-"))
    answer, what = Answer(), []
    try:
      answer = await scenario(self.cluster)
    except TimeoutError:
      what.append(f"HANG: no answer in {ANSWER_S:g} s; on the desk: {self.cluster.left()}")
    except Exception as error:  # noqa: BLE001 - the client's own trouble with what it was sent
      what.append(f"the client could not read it: {error!r}")
    raised = INJECTOR.disarm()
    self.reached += bool(raised)
    what = what or self._judge(trial, answer)
    left = [f"LEFT: {text}" for text in await self._settled()]
    if not await self.cluster.whole():
      left.append("the ring is not whole again")
    if again := await self._asked_again():
      left.append(again)
    left += await self._tasks_left()
    heard = (*self.lines, answer.raw)
    if raised and not any(f"injected-{point}-" in text for text in heard for point in raised):
      what.append("SILENT: neither the log nor the client heard of it")
    if any(Path(INJECTOR.points[point].file).name in BELOW_HTTP for point in raised) and answer.raw:
      what = []
    if what or left or self.cluster.unwell:
      await self.renew()
    return Finding(trial, [*what, *left]) if what or left else None

  async def handling(self, trial: Trial, passed: dict[str, dict[int, int]]) -> list[int]:
    """Which points are passed only because this one raises: what handles the error."""
    INJECTOR.record_what_follows = True
    await self.attempt(trial)
    INJECTOR.record_what_follows = False
    everything = {p for points in passed.values() for p in points}
    return sorted(p for p in INJECTOR.recorded() if p not in everything and is_tried(p))

  def _judge(self, trial: Trial, answer: Answer) -> list[str]:
    expected = self.expected[trial.scenario]
    if answer.same(expected):
      return []
    if answer.error and answer.ended:
      return [] if len(answer.error) > 3 else [f"an error without a reason: {answer.raw[-300:]}"]
    if not answer.ended:
      return [f"CUT: {answer.status} {answer.raw[-200:]!r}"]
    return [f"WRONG: {answer.status} {answer.text[-200:]} instead of {expected.text[-200:]}"]


def label(point: int) -> str:
  return "callback" if point in INJECTOR.callbacks else str(INJECTOR.points[point].kind)


def is_tried(point: int) -> bool:
  return not any(part in INJECTOR.points[point].function for part in NOT_TRIED)


def trials(passed: dict[str, dict[int, int]], options: argparse.Namespace) -> list[Trial]:
  """Each point with the first scenario that passes it, and again with the one in which a node is lost."""
  kinds = {str(Kind.BEFORE), str(Kind.AFTER), "callback"} | ({str(Kind.ENTRY)} if options.calls else set())
  out: list[Trial] = []
  seen: set[int] = set()
  for scenario, points in passed.items():
    for point, times in sorted(points.items()):
      if label(point) not in kinds or not is_tried(point) or times < options.nth:
        continue
      if (point in seen and scenario != "losing") or options.only not in str(INJECTOR.points[point]):
        continue
      seen.add(point)
      out.append(Trial(point, "", scenario, options.nth))
  chosen, names = out[::options.stride], [name for name, _ in errors()]
  if options.errors == "turns":
    return [dataclasses.replace(t, error=names[i % len(names)]) for i, t in enumerate(chosen)]
  return [dataclasses.replace(t, error=name) for t in chosen for name in names]


async def campaign(options: argparse.Namespace) -> int:
  """Returns how many findings there were."""
  with tempfile.TemporaryDirectory() as home:
    work = Campaign(options.nodes, Path(home))
    await work.begin()
    passed = await work.rehearse()
    everything = {p for points in passed.values() for p in points}
    print(
        f"{len(INJECTOR.points)} points in the package; requests on {options.nodes} node{'s' * (options.nodes > 1)} pass "
        f"{len(everything)} of them: {dict(collections.Counter(label(p) for p in everything))}",
        flush=True
    )
    planned, started, pick = trials(passed, options), time.monotonic(), random.Random(options.seed)
    if options.pairs:
      for first in list(planned):
        faulthandler.dump_traceback_later(120, exit=True)
        seconds = await work.handling(first, passed)
        chosen = pick.sample(seconds, min(options.pairs, len(seconds)))
        planned += [dataclasses.replace(first, then=second) for second in chosen]
      planned = [trial for trial in planned if trial.then is not None]
    work.reached = findings = 0
    for i, trial in enumerate(planned):
      faulthandler.dump_traceback_later(120, exit=True)
      if (finding := await work.attempt(trial)) is not None:
        findings += 1
        print(f"FINDING {finding.trial}", *finding.what, sep="\n    ", flush=True)
        if options.verbose:
          print(*work.lines[-60:], sep="\n      ", flush=True)
      if options.verbose and i % 50 == 0:
        print(f"{i} of {len(planned)}, {work.renewed} renewed, {time.monotonic() - started:.0f} s", flush=True)
    faulthandler.cancel_dump_traceback_later()
    await work.cluster.stop()
  print(
      f"{len(planned)} times made to raise, {work.reached} of them raised, in {time.monotonic() - started:.0f} s: {findings} findings"
  )
  return findings


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--nodes", type=int, default=1)
  parser.add_argument("--stride", type=int, default=1, help="try every so many-th point")
  parser.add_argument(
      "--errors", default="turns", choices=["turns", "all"], help="one kind at each point, in turn, or all kinds"
  )
  parser.add_argument("--calls", action="store_true", help="functions that the package itself calls, too")
  parser.add_argument("--nth", type=int, default=1, help="raise when a point is passed for the so many-th time")
  parser.add_argument(
      "--pairs", type=int, default=0, help="raise again at so many of the points that handle the first error"
  )
  parser.add_argument("--seed", type=int, default=0, help="for the choice of those")
  parser.add_argument("--only", default="", help="points whose description holds this text")
  parser.add_argument("--verbose", action="store_true")
  return 1 if asyncio.run(campaign(parser.parse_args())) else 0


if __name__ == "__main__":
  sys.exit(main())
