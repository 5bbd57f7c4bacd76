"""Which proxy an address outside is asked through: the usual variables, meaning the same for all that is fetched.

http_proxy, https_proxy, all_proxy and no_proxy in lower or upper case, and the system's settings where there are none of them
(macOS). Nothing that goes to this node or its peers asks here.
"""

from __future__ import annotations

import ipaddress
import sys
import urllib.request
from collections.abc import Mapping
from urllib.parse import urlsplit

from exo.errors import ProxyError

_KINDS = ("http", "https")


def proxy_for(url: str, settings: Mapping[str, str] | None = None) -> str | None:
  """The proxy's address with its credentials; None to ask directly. Raises `ProxyError` for one that exo cannot use.

  `settings` are those of `urllib.request.getproxies`, which are used where none are given.
  """
  settings = urllib.request.getproxies() if settings is None else settings
  parts = urlsplit(url)
  proxy = settings.get(parts.scheme) or settings.get("all")
  host = parts.hostname or ""
  if not proxy or _is_direct(host, parts.port, settings):
    return None
  proxy = proxy if "://" in proxy else f"http://{proxy}"
  variable = f"{parts.scheme}_proxy" if settings.get(parts.scheme) else "all_proxy"
  try:
    kind, there, _ = urlsplit(proxy).scheme.lower(), urlsplit(proxy).hostname, urlsplit(proxy).port
  except ValueError:
    kind, there = "", None
  if kind.startswith("socks"):
    raise ProxyError(
        f"{variable} names a SOCKS proxy ({shown(proxy)}), which exo cannot use: name an HTTP proxy, or put "
        f"{host or 'what is to be asked'} into no_proxy"
    )
  if kind not in _KINDS or not there:
    raise ProxyError(f"{variable} is no address of a proxy ({shown(proxy)}): it should be like http://10.0.0.1:3128")
  return proxy


def shown(proxy: str) -> str:
  """Without what only the proxy is to see."""
  kind, _, rest = proxy.rpartition("://")
  rest = rest.rpartition("@")[2].partition("/")[0]
  return f"{kind}://{rest}" if kind else rest


def _is_direct(host: str, port: int | None, settings: Mapping[str, str]) -> bool:
  """Whether no_proxy names the host: names and what ends with them, addresses, networks, each with or without a port."""
  excepted = settings.get("no", "")
  if sys.platform == "darwin" and not excepted:
    return bool(urllib.request.proxy_bypass(host))
  names = {"no": excepted.replace("[", "").replace("]", "")}
  asked = (host, f"{host}:{port}") if port else (host, )
  if any(urllib.request.proxy_bypass_environment(name, names) for name in asked):  # type: ignore[attr-defined]
    return True
  try:
    address = ipaddress.ip_address(host)
  except ValueError:
    return False
  for part in excepted.split(","):
    try:
      network = ipaddress.ip_network(part.strip().strip("[]"), strict=False)
    except ValueError:
      continue
    if address.version == network.version and address in network:
      return True
  return False
