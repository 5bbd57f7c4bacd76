"""File descriptors: how many this process may have, and who gets how many of them.

Whoever connects takes one, so what strangers may take is bounded by shares: the API's clients, other nodes, and the rest
for models, logs and what this node itself opens.
"""

from __future__ import annotations

import contextlib
import resource

from exo.system_figures import open_files

_WANTED = (16384, 10240)  # the latter is what macOS grants at most
_MOST_CLIENTS, _LEAST_CLIENTS = 1024, 16
_MOST_PEERS, _LEAST_PEERS = 1024, 24


def raise_limit() -> None:
  """Take as many descriptors as the system lets this process have: the usual limit of 1024, or 256 on macOS, is soft."""
  try:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  except Exception:  # noqa: BLE001 - it stays as it is, wherever this is not for processes to know
    return
  for wanted in _WANTED:
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= most:
      return
    with contextlib.suppress(ValueError, OSError):
      resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
      return


def client_connections() -> int:
  """How many connections the API may have: at most half of the descriptors."""
  return _share(2, _LEAST_CLIENTS, _MOST_CLIENTS)


def peer_connections() -> int:
  """How many connections other nodes and strangers may open to this one, three for each link: at most a quarter."""
  return _share(4, _LEAST_PEERS, _MOST_PEERS)


def _share(part: int, least: int, most: int) -> int:
  granted = open_files()
  return most if granted is None else max(least, min(most, granted // part))
