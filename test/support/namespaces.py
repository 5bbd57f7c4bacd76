"""Hosts of one's own: network namespaces joined by a bridge, whose traffic can be cut and thinned out.

Needs root, iproute2 and nftables. Latency is `proxy.py`'s affair: netem is not in every kernel.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")
_numbers = itertools.count(os.getpid() % 4096 * 16)


def run(*command: str, check: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
  return subprocess.run(command, check=check, capture_output=True, text=True, timeout=20, input=stdin)


def missing() -> str:
  """Why this machine cannot have hosts of its own; "" where it can."""
  if os.geteuid() != 0:
    return "needs root"
  for tool in ("ip", "nft"):
    if shutil.which(tool) is None:
      return f"needs {tool}: scripts/test-deps.sh installs it"
  probe = run("ip", "netns", "add", f"exo-probe-{os.getpid()}", check=False)
  if probe.returncode:
    return f"this system allows no network namespaces ({probe.stderr.strip()})"
  run("ip", "netns", "del", f"exo-probe-{os.getpid()}")
  return ""


class Hosts:
  """Hosts 0, 1, … at 10.77.x.1, .2, … on one network. `prefix(i)` before a command runs it on host i."""
  def __init__(self, count: int) -> None:
    number = next(_numbers)
    self.names = [f"exo-{number}-{i}" for i in range(count)]
    self._bridge, self._net = f"exobr{number}", f"10.77.{number % 256}"
    self._hub = f"exo-{number}-hub"  # the bridge has a namespace of its own, so that nothing of this machine is touched

  def address(self, i: int) -> str:
    return f"{self._net}.{i + 1}"

  def sent_by(self, i: int) -> str:
    """What an nft rule says of everything that host i sends, over IPv4 and IPv6."""
    return f"ether saddr 02:00:00:00:00:{i + 1:02x}"

  def prefix(self, i: int) -> tuple[str, ...]:
    return "ip", "netns", "exec", self.names[i]

  def on(self, i: int, action: Callable[[], T]) -> T:
    """Do something on host i: sockets made meanwhile are that host's."""
    def work() -> T:
      with Path(f"/var/run/netns/{self.names[i]}").open("rb") as namespace:
        os.setns(namespace.fileno(), os.CLONE_NEWNET)  # of this thread alone, which ends after it
      return action()

    with ThreadPoolExecutor(1) as thread:
      return thread.submit(work).result()

  def build(self) -> None:
    for name in (self._hub, *self.names):
      run("ip", "netns", "add", name)
      run("ip", "-n", name, "link", "set", "lo", "up")
    run("ip", "-n", self._hub, "link", "add", self._bridge, "type", "bridge")
    run("ip", "-n", self._hub, "link", "set", self._bridge, "up")
    for i, name in enumerate(self.names):
      run("ip", "-n", self._hub, "link", "add", f"to{i}", "type", "veth", "peer", "name", "eth0", "netns", name)
      run("ip", "-n", self._hub, "link", "set", f"to{i}", "master", self._bridge, "up")
      run("ip", "-n", name, "link", "set", "eth0", "address", f"02:00:00:00:00:{i + 1:02x}")
      run("ip", "-n", name, "addr", "add", f"{self.address(i)}/24", "brd", "+", "dev", "eth0")
      run("ip", "-n", name, "link", "set", "eth0", "up")
      run("ip", "-n", name, "route", "add", "default", "dev", "eth0")

  def remove(self) -> None:
    for name in (*self.names, self._hub):
      run("ip", "netns", "del", name, check=False)

  def filter(self, i: int, *rules: str) -> None:
    """Replace what host i drops of what comes in: nft statements such as `udp dport 5678 drop`."""
    lines = ["flush ruleset"]
    if rules:
      lines += ["table inet exo {", "chain input {", "type filter hook input priority 0", *rules, "}", "}"]
    run(*self.prefix(i), "nft", "-f", "-", stdin="\n".join(lines) + "\n")


@contextmanager
def hosts(count: int) -> Iterator[Hosts]:
  """Skips the test where there can be none."""
  if reason := missing():
    pytest.skip(reason)
  created = Hosts(count)
  try:
    created.build()
    yield created
  finally:
    created.remove()
