"""Where other machines of the network find an API that listens for them."""

from __future__ import annotations

import socket

from exo.networking.address_rule import parse_address
from exo.networking.udp.interfaces import list_interfaces

_ELSEWHERE = ("192.0.2.1", 9)  # an address of documentation: nothing is sent to it
_EVERYWHERE = ("0.0.0.0", "::", "")


def lan_url(api_host: str, port: int) -> str | None:
  """None where only this machine can reach the API, or no network is there."""
  address = parse_address(api_host)
  if api_host in _EVERYWHERE:
    found = _lan_address()
    return None if found is None else f"http://{found}:{port}"
  if api_host == "localhost" or (address is not None and address.is_loopback):
    return None
  return f"http://[{api_host}]:{port}" if ":" in api_host else f"http://{api_host}:{port}"


def _lan_address() -> str | None:
  """The address that the way out of this machine has, or that of its best interface."""
  own = [i.address for i in list_interfaces() if not i.is_ipv6 and i.kind not in ("loopback", "virtual")]
  try:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
      sock.connect(_ELSEWHERE)
      out = str(sock.getsockname()[0])
  except OSError:
    out = ""
  return out if out in own else next(iter(own), None)
