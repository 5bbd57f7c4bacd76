"""Where a connection comes from."""

from __future__ import annotations

from exo.networking.address_rule import parse_address

Place = tuple[str, int]  # address and port of the other side


def place_of(host: str, port: int | str) -> Place:
  """The same for whatever way an address is written in."""
  address = parse_address(host)
  return str(address or host), int(port)
