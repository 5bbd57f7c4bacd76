"""Parsers that face strangers, under thousands of mutated inputs: no crash, no hang, no growth.

The bounded run here is the same every time; `pytest -m slow test/test_fuzz.py` runs a hundred times as many, and
`scripts/fuzz.py` is guided by coverage.
"""

from __future__ import annotations

import faulthandler
import gc
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType

import psutil
import pytest

from exo.networking.cluster_key import ClusterKeyring
from exo.networking.udp.seal import DatagramSeal
from test.fuzz.mutate import inputs
from test.fuzz.targets import TARGETS, Target
from test.support.nodes import ROOT

HANG_S = 10.0
GROWTH_BYTES = 64 * 2**20


class Hang(BaseException):
  """Beyond every `except Exception`."""


@contextmanager
def no_hang(seconds: float) -> Iterator[None]:
  def alarm(number: int, frame: FrameType | None) -> None:
    raise Hang(f"no end within {seconds:g} s")

  before = signal.signal(signal.SIGALRM, alarm)
  signal.setitimer(signal.ITIMER_REAL, seconds)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def campaign(target: Target, count: int, seed: int) -> None:
  faulthandler.enable()
  grown_from = 0
  for i, data in enumerate(inputs([*target.corpus, *target.seeds], count, seed, target.max_bytes)):
    try:
      with no_hang(HANG_S):
        target.run(data)
    except BaseException as error:
      raise AssertionError(f"{target.name}: {type(error).__name__}: {error} for {data!r}") from error
    if i == count // 2:
      gc.collect()
      grown_from = psutil.Process().memory_info().rss
  gc.collect()
  assert psutil.Process().memory_info().rss - grown_from < GROWTH_BYTES, f"{target.name} grows"


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_right(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
  """A target whose seeds are refused at once would fuzz nothing."""
  import test.fuzz.targets as module
  refused: list[Exception] = []

  @contextmanager
  def noting(*errors: type[Exception]) -> Iterator[None]:
    try:
      yield
    except (module.ExoError, *errors) as error:
      refused.append(error)

  monkeypatch.setattr(module, "_expecting", noting)
  monkeypatch.setattr(
      module, "_SEAL", DatagramSeal(ClusterKeyring((module.KEY, )), lambda: 1000.0)
  )  # opens a beacon once
  target = TARGETS[name]
  # a body is of one kind, and refused by the others; a header is read as of two files, one of which lacks its end
  most = {"http_body": len(module.KINDS) - 1, "safetensors": 1}.get(name, 0)
  clean = 0
  for data in target.seeds:
    refused.clear()
    target.run(data)
    clean += len(refused) <= most
  assert clean == len(target.seeds) if most else clean


def test_22_line_14_every_kind_of_body_is_fuzzed() -> None:
  """By their names: `class …Request(` in the modules of the API."""
  import test.fuzz.targets as module
  described = {
      name
      for path in (ROOT / "exo" / "api").glob("*.py")
      for name in re.findall(r"^class (\w+Request)\(", path.read_text(), re.MULTILINE)
  }
  assert described == {kind.__name__ for kind in module.KINDS}


def test_22_line_14_a_target_whose_seeds_are_refused_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
  import test.fuzz.targets as module
  for name in ("http_body", "safetensors", "sealed_beacon"):
    with monkeypatch.context() as broken:
      broken.setitem(TARGETS, name, replace(TARGETS[name], seeds=(b"{]", )))
      broken.setattr(module, "deeper_than", lambda data, levels: False)
      with pytest.raises(AssertionError):
        test_seeds_are_right(name, broken)


@pytest.mark.parametrize("name", TARGETS)
def test_a_bounded_run(name: str) -> None:
  target = TARGETS[name]
  began = time.monotonic()
  campaign(target, 500 if target.slow else 3000, 1)
  assert time.monotonic() - began < 300


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_a_long_run(name: str) -> None:
  target = TARGETS[name]
  campaign(target, 20_000 if target.slow else 100_000, int(time.time()))
