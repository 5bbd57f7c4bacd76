"""Why a server outside cannot be had, in words that say what to do: its certificate, a proxy, a clock, the network itself."""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from exo import proxies
from exo.errors import NetworkCauseError

# numbers of OpenSSL's verification
_NOT_YET, _EXPIRED, _NAMES = 9, 10, (62, 64)
_UNKNOWN = (2, 18, 19, 20, 21)
_WORDS = {"not yet valid": _NOT_YET, "expired": _EXPIRED, "mismatch": _NAMES[0], "doesn't match": _NAMES[0]}
_STATUS = re.compile(r"\b(40[0-9]|5[0-9][0-9])\b")


def lasting_cause(error: BaseException, url: str, proxy: str | None) -> str:
  """What will not pass by itself; "" where the error may, or is of another kind."""
  host = urlsplit(url).netloc.rpartition("@")[2]
  for one in _chain(error):
    if isinstance(one, NetworkCauseError):
      return str(one)
    if isinstance(one, ssl.SSLCertVerificationError) and hasattr(one, "verify_code"):  # aiohttp's own holds another
      return certificate_cause(host, one.verify_code, one.verify_message)
    if isinstance(one, ssl.SSLError) and "WRONG_VERSION_NUMBER" in str(one):
      return f"{host} does not speak TLS: is it http:// instead of https://?"
  if proxy is not None and (status := _proxy_status(error)):
    return proxy_cause(proxy, status)
  return ""


def passing_cause(error: BaseException, url: str, proxy: str | None) -> str:
  """What may be over at the next attempt."""
  host, kinds = urlsplit(url).netloc.rpartition("@")[2], {type(one).__name__ for one in _chain(error)}
  if proxy is not None:
    if kinds & {"ClientProxyConnectionError", "ProxyError", "ConnectError"} or "Timeout" in "".join(kinds):
      return f"the proxy {proxies.shown(proxy)} does not answer ({type(error).__name__})"
    return f"{host} cannot be reached through the proxy {proxies.shown(proxy)} ({type(error).__name__})"
  if any(isinstance(one, socket.gaierror) for one in _chain(error)):
    return f"the name of {host} is not known: no network, or no name server"
  if "Timeout" in "".join(kinds):
    return f"{host} did not answer in time"
  return f"{host} cannot be reached ({type(error).__name__})"


def certificate_cause(host: str, code: int, message: str) -> str:
  now = time.strftime("%Y-%m-%d %H:%M %Z")
  if code == _NOT_YET:
    return f"the certificate of {host} is not valid yet, as this machine's clock ({now}) has it: is the clock right?"
  if code == _EXPIRED:
    return f"the certificate of {host} has expired, as this machine's clock ({now}) has it: is the clock right?"
  if code in _UNKNOWN:
    return (
        f"the certificate of {host} is signed by nobody whom this machine trusts ({message}). If your network looks into "
        "TLS, or the server is your own, name the file of its certificates in SSL_CERT_FILE"
    )
  if code in _NAMES:
    return f"the certificate of {host} is for another name ({message})"
  return f"the certificate of {host} cannot be trusted ({message})"


def proxy_cause(proxy: str, status: int) -> str:
  """`status` is what the proxy answered instead of the server."""
  if status == 407:
    return (
        f"the proxy {proxies.shown(proxy)} wants a name and a password (407): give them as http://NAME:PASSWORD@HOST:PORT "
        "in the variable that names it"
    )
  return (
      f"the proxy {proxies.shown(proxy)} refuses the way out ({status}): let it allow the address, or except that by "
      "no_proxy"
  )


def answered_by(server: str, proxy: str | None) -> str:
  """Who gives a status: a proxy that is asked for http:// may have made it up itself."""
  return f"{server} answers" if proxy is None else f"{server}, or the proxy {proxies.shown(proxy)} before it, answers"


def cause_in(text: str) -> str:
  """What pip's log says of it; "" where it is of another kind."""
  asked = re.search(r"Could not fetch URL (\S+): (.*)", text)
  if asked is None:
    return ""
  url, why = asked[1], asked[2]
  if match := re.search(r"certificate verify failed: ([^()'\"]+)", why):
    words = match[1].strip()
    code = next((code for key, code in _WORDS.items() if key in words.lower()), _UNKNOWN[0])
    return certificate_cause(urlsplit(url).netloc.rpartition("@")[2], code, words)
  try:
    proxy = proxies.proxy_for(url)
  except NetworkCauseError as error:
    return str(error)
  if proxy is None:
    return ""
  if refused := re.search(r"Tunnel connection failed: (\d+)|^(407) Client Error", why):
    return proxy_cause(proxy, int(refused[1] or refused[2]))
  return f"the proxy {proxies.shown(proxy)} does not answer" if "proxy" in why.lower() else ""


def _chain(error: BaseException) -> Iterator[BaseException]:
  seen: set[int] = set()
  pending: list[object] = [error]
  while pending:
    one = pending.pop(0)
    if not isinstance(one, BaseException) or id(one) in seen:
      continue
    seen.add(id(one))
    yield one
    pending += [
        one.__cause__, one.__context__,
        getattr(one, "certificate_error", None),
        getattr(one, "os_error", None), *one.args
    ]


def _proxy_status(error: BaseException) -> int:
  """What a proxy answered to being asked for a tunnel; 0 where it did not answer."""
  for one in _chain(error):
    if type(one).__name__ == "ClientHttpProxyError":
      return int(getattr(one, "status", 0))
    if type(one).__name__ == "ProxyError" and (found := _STATUS.search(str(one))):
      return int(found[1])
  return 0
