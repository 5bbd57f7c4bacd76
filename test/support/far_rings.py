"""Rings of two nodes over a link that is slow, narrow or dead."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from test.support.nodes import NodeProcess, free_port, wait_until
from test.support.proxy import SlowProxy


@contextmanager
def two_over_a_proxy(
    home: Path,
    *flags: str,
    prefixes: Sequence[Sequence[str]] = ((), ()),
    env: Mapping[str, str] | None = None,
    **how: float
) -> Iterator[tuple[list[NodeProcess], SlowProxy]]:
  """node0 dials node1 through a proxy, which is made with `how`; `prefixes` stand before the commands of the two."""
  ports = [free_port(), free_port()]
  home.mkdir(parents=True, exist_ok=True)
  with SlowProxy(ports[1], **how) as proxy, ExitStack() as stack:
    nodes = []
    for i, others in enumerate(({"node1": {"address": "127.0.0.1", "port": proxy.port}}, {})):
      path = home / f"{i}.json"
      path.write_text(json.dumps({"peers": {f"node{i}": {"address": "127.0.0.1", "port": ports[i]}, **others}}))
      manual = ("--discovery-module", "manual", "--discovery-config-path", str(path), "--node-port", str(ports[i]))
      node = NodeProcess(
          home / str(i),
          *flags,
          *manual,
          node_id=f"node{i}",
          prefix=tuple(prefixes[i]),
          env=None if env is None else dict(env)
      )
      stack.callback(node.stop)
      nodes.append(node)
    for node in nodes:
      node.wait_ready()
    wait_until(lambda: all(len(node.peers()) == 2 for node in nodes), 30, "a link through the proxy")
    yield nodes, proxy
