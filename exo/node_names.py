"""What people call nodes: by their hosts' names. Programs, files and messages call them by their ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from exo.bounds import is_node_id
from exo.system_figures import host_name

MAX_NAME = 40
_LEAST_SUFFIX = 4


def own_name(node_id: str, given: bool) -> str:
  """The id, where somebody has chosen it (`given`), else the host's name without its domain."""
  return node_id if given else name_in(host_name().partition(".")[0]) or node_id


def name_in(said: str) -> str:
  """A name as a node says it, or "" where it could not stand in a line."""
  name = said.strip().replace(" ", "-")[:MAX_NAME]
  return name if name and name != "localhost" and is_node_id(name) else ""


def called(node_id: str, name: str) -> str:
  """For a log: both where they differ."""
  return f"{name} ({node_id})" if name and name != node_id else node_id


def distinct(names: Mapping[str, str]) -> dict[str, str]:
  """By id, each once: where several nodes have one name, the first letters of their ids follow it, as many as tell them apart.

  Nobody gets another's name by coming later. A node without a name is called by its id.
  """
  count = Counter(name or node_id for node_id, name in names.items())
  shown: dict[str, str] = {}
  for node_id, name in names.items():
    if not name or name == node_id or count[name] == 1:
      shown[node_id] = name or node_id
      continue
    others = [other for other, theirs in names.items() if theirs == name and other != node_id]
    letters = _LEAST_SUFFIX
    while letters < len(node_id) and any(other.startswith(node_id[:letters]) for other in others):
      letters += 1
    shown[node_id] = f"{name}-{node_id[:letters]}"
  return shown
