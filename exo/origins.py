"""Which pages may use the API: those of `--cors-origin`, and of no other site than this node itself."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from exo.errors import ConfigError

_EXACT = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@*]+", re.IGNORECASE)
_ANY_PORT = re.compile(r"https?://([^\s/?#@*]+):\*", re.IGNORECASE)
_ANY_HOST = re.compile(r"([a-z][a-z0-9+.-]*)://\*?", re.IGNORECASE)
_SITES = frozenset({"http", "https", "ws", "wss", "ftp", "file", "data",
                    "blob"})  # schemes of which everybody may have an origin
_PORT = re.compile(r"(?<=[^:/]):[0-9]{1,5}\Z")
NULL = "null"


def check_origin(origin: str) -> None:
  """Raises `ConfigError` for a `--cors-origin` that means nothing, or too much."""
  if origin.lower() == NULL or _EXACT.fullmatch(origin):
    return
  if (match := _ANY_PORT.fullmatch(origin)) and _is_loopback(match[1]):
    return
  if (match := _ANY_HOST.fullmatch(origin)) and match[1].lower() not in _SITES:
    return
  raise ConfigError(
      f"--cors-origin {origin!r} must be like https://example.org, with scheme, without a path; http://localhost:* is any port "
      "of this machine, vscode-webview://* any window of that program, null a sandboxed or local page"
  )


def _is_loopback(host: str) -> bool:
  try:
    return host.lower() == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
  except ValueError:
    return False


class AllowedOrigins:
  """`allowed` as `check_origin` takes them.

  Programs' own schemes are not allowed by themselves: that a page is an editor's says nothing of who wrote it (extensions,
  previews of strange files), and a page of another port of this machine may be any server's that runs here.
  """
  def __init__(self, allowed: Iterable[str]) -> None:
    names = [origin.lower() for origin in allowed]
    self._exact = frozenset(name for name in names if not name.endswith("*"))
    self._hosts = frozenset(name.removesuffix(":*") for name in names if name.endswith(":*"))
    self._schemes = frozenset(name.removesuffix("*").removesuffix("://") for name in names if name.endswith("://*"))

  def allows(self, origin: str, *, keyed: bool) -> bool:
    """Whether pages of `origin` may use the API; `keyed`: only together with an API key."""
    origin = origin.lower()
    if origin == NULL:  # any site's frame can have it
      return keyed and NULL in self._exact
    host = _PORT.sub("", origin)
    return origin in self._exact or host in self._hosts or origin.partition("://")[0] in self._schemes

  def refusal(self, origin: str) -> str:
    """Why pages of `origin` may not, and what would allow them."""
    if origin.lower() == NULL and NULL in self._exact:
      return (
          "the origin null is allowed only where clients need an API key, since any site's sandboxed frame has it "
          "(`exo key api new`)"
      )
    told = origin if _EXACT.fullmatch(origin) and len(origin) <= 100 else NULL if origin == NULL else "ORIGIN"
    scheme = told.partition("://")[0]
    if "://" in told and scheme.lower() not in _SITES:
      told = f"'{scheme}://*'"
    with_key = ", together with an API key" if told == NULL else ""
    return f"pages of this origin may not use the API: start exo with --cors-origin {told}{with_key} to allow it"


def is_same(origin: str, host: str) -> bool:
  """Whether `origin` is the page of the very server that is asked, whose Host header is `host`."""
  try:
    parts = urlsplit(origin)
  except ValueError:
    return False
  return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()
