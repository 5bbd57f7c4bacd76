"""What a request must pass before a handler sees it: name asked for, origin, key, content type, body in time and bounds."""

from __future__ import annotations

import asyncio
import hmac
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from urllib.parse import urlsplit

from aiohttp import web

from exo.api.aside import LARGE, aside
from exo.api.body_room import BodyRoom
from exo.api.caller import Caller, Labels, TrustedProxies, note_caller
from exo.api.errors import body, in_form, json_response
from exo.api.failure_brake import MAX_DELAY_S, FailureBrake
from exo.api.json_depth import deeper_than, too_many_values
from exo.api.keys import ApiKeys
from exo.config import Config
from exo.log import log
from exo.networking.address_rule import IPAddress, own_addresses, parse_address
from exo.system_figures import host_name

MAX_JSON_DEPTH = 64
MAX_JSON_VALUES = 100_000  # texts, lists and objects: what takes the interpreter a microsecond each
MAX_JSON_ITEMS = 2_000_000  # token ids, for the most part
BODY_TIMEOUT_S = 20.0
MIN_BODY_RATE = 64 * 1024  # bytes a second, beyond the first 20 s
_OPEN_PATHS = ("/health", "/healthcheck", "/", "/favicon.ico")
_OPEN_PREFIXES = ("/static/", )
# what one may ask without changing the node for others; a POST of any other route is for admins
_ASKING = frozenset((
    "/chat/completions", "/completions", "/chat/token/encode", "/embeddings", "/responses", "/messages",
    "/messages/count_tokens", "/cancel/{id}", "/api/chat", "/api/generate", "/api/show"
))
_WANTS_KEY = {"WWW-Authenticate": 'Bearer realm="exo"'}
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_REFRESH_S = 10.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Refused(Exception):
  def __init__(self, status: int, message: str, code: str, headers: dict[str, str] | None = None) -> None:
    super().__init__(message)
    self.status, self.message, self.code, self.headers = status, message, code, headers


class Guard:
  """One node's rules. `local_token` is the secret of its runtime file, which stands for any key on this machine."""
  def __init__(self, config: Config, keys: ApiKeys, local_token: str, label_salt: bytes) -> None:
    self.keys = keys
    self._local_token = local_token
    self._brake = FailureBrake()
    self._labels = Labels(label_salt)
    self._proxies = TrustedProxies(config.trusted_proxies)
    self._shared_prefixes = config.shared_prefixes
    self._origins = frozenset(origin.lower() for origin in config.cors_origins)
    names = {"localhost", host_name(), *config.api_allowed_hosts}
    bound = parse_address(config.chatgpt_api_host)
    if bound is None or not bound.is_unspecified:  # browsers let pages ask 0.0.0.0
      names.add(config.chatgpt_api_host)
    if short := host_name().partition(".")[0].lower():
      names.add(f"{short}.local")
    self._names = frozenset(name.lower().strip("[]").rstrip(".") for name in names if name)
    self._bodies = BodyRoom()
    self._own: frozenset[IPAddress] = frozenset()
    self._looked_at = float("-inf")

  @web.middleware
  async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
      self._check_host(request)
      if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
        return self._preflight(request)
      self._check_origin(request)
      who = await self._caller(request)
      if not who.is_admin and _changes_node(request):
        self._refuse_change(request)
      note_caller(who)
      if request.method in _SAFE_METHODS:
        return await handler(request)
      length = self._body_length(request)
      with self._bodies.hold(length) as settle:
        settle(await self._check_body(request, length))
        return await handler(request)
    except _Refused as refused:
      log(1, "%s %s of %s: %d, %s", request.method, request.path, request.remote, refused.status, refused)
      kind = {401: "authentication_error", 429: "rate_limit_error"}.get(refused.status, "invalid_request_error")
      value = body(refused.message, kind, None, refused.code)
      return json_response(in_form(request, value), refused.status, refused.headers)

  async def add_cors_headers(self, request: web.Request, response: web.StreamResponse) -> None:
    """For `on_response_prepare`: an origin that was allowed may read the answer, nobody else."""
    origin = request.headers.get("Origin", "").lower()
    if origin in self._origins:
      response.headers["Access-Control-Allow-Origin"] = request.headers["Origin"]
      response.headers.add("Vary", "Origin")
      response.headers["Access-Control-Expose-Headers"] = "x-request-id, retry-after"

  # where it was asked for

  def _is_own(self, address: IPAddress) -> bool:
    if address.is_loopback or address in self._own:
      return True
    now = time.monotonic()
    if now - self._looked_at > _REFRESH_S:
      self._looked_at, self._own = now, own_addresses()
    return address in self._own

  def _check_host(self, request: web.Request) -> None:
    """A page whose name was made to point here (DNS rebinding) still asks under its own name."""
    host = _host_of(request.headers.get("Host", ""))
    address = parse_address(host)
    if host in self._names or host.endswith(".localhost") or (address is not None and self._is_own(address)):
      return
    raise _Refused(
        403, f"this node does not answer to the name {host[:100]!r}: start it with --api-allowed-host NAME to allow it",
        "host_not_allowed"
    )

  # who asks

  def _preflight(self, request: web.Request) -> web.Response:
    if request.headers.get("Origin", "").lower() not in self._origins:
      raise _Refused(403, "pages of this origin may not use the API (--cors-origin allows one)", "origin_not_allowed")
    headers = {
        "Access-Control-Allow-Methods": "GET, POST, DELETE",
        "Access-Control-Allow-Headers": request.headers.get("Access-Control-Request-Headers", "")[:1000],
        "Access-Control-Max-Age": "600",
    }
    if "Access-Control-Request-Private-Network" in request.headers:
      headers["Access-Control-Allow-Private-Network"] = "true"
    return web.Response(status=204, headers=headers)

  def _check_origin(self, request: web.Request) -> None:
    """What changes something is for this node's own page and for origins that were allowed."""
    origin = request.headers.get("Origin")
    if request.method in _SAFE_METHODS or origin is None or origin.lower() in self._origins:
      return
    try:
      parts = urlsplit(origin)
      same = parts.scheme in ("http", "https") and parts.netloc.lower() == request.headers.get("Host", "").lower()
    except ValueError:
      same = False
    if not same:
      raise _Refused(403, "pages of this origin may not use the API (--cors-origin allows one)", "origin_not_allowed")

  async def _caller(self, request: web.Request) -> Caller:
    """Who asks. Raises for nobody that may."""
    local = self._is_local(request)
    address = self._proxies.client_of(request)
    by_address = Caller(self._labels.of_address(address))
    path = request.path
    if path in _OPEN_PATHS or path.startswith(_OPEN_PREFIXES):
      return by_address
    given = _key_of(request)
    if given and local and self._local_token and hmac.compare_digest(
        given.encode("utf-8", "replace"), self._local_token.encode()
    ):
      return self._keyed(self._local_token, True) if self.keys.required else replace(by_address, is_admin=True)
    if not self.keys.required:
      return replace(by_address, is_admin=local)
    if given is None:
      raise _Refused(401, "this node wants an API key: Authorization: Bearer KEY", "invalid_api_key", _WANTS_KEY)
    key = self.keys.find(given)
    if key is None or self.keys.is_guessable(key):
      # until here both are alike, so that nothing is learnt by trying many at once
      if not await self._brake.admit(address, "" if key is None else key.sha256):
        text = "too many wrong API keys came from this address: try again in a moment"
        raise _Refused(429, text, "too_many_wrong_keys", {"Retry-After": str(math.ceil(MAX_DELAY_S))})
      if key is None:
        await self._brake.failed(address)
        raise _Refused(401, "this is no API key of this node", "invalid_api_key", _WANTS_KEY)
      self._brake.succeeded(address, key.sha256)
    return self._keyed(key.sha256, key.role == "admin")

  def _keyed(self, identity: str, is_admin: bool) -> Caller:
    label = self._labels.of_key(identity)
    return Caller(label, is_admin, "" if self._shared_prefixes else label, is_admin)

  def _refuse_change(self, request: web.Request) -> None:
    if self.keys.required:
      raise _Refused(
          403, f"{request.method} {request.path} is for admins: this API key has the role user", "admin_only"
      )
    raise _Refused(
        403, f"without an API key, {request.path} is for the same machine only (`exo key api new`)", "local_only"
    )

  def _is_local(self, request: web.Request) -> bool:
    """From this machine itself, and not handed on by a proxy that runs here."""
    address = parse_address(request.remote or "")
    forwarded = any(name in request.headers for name in ("X-Forwarded-For", "Forwarded", "X-Real-IP", "Via"))
    return address is not None and not forwarded and self._is_own(address)

  # what is sent

  def _body_length(self, request: web.Request) -> int:
    """How long the body is at most, of a kind that is read."""
    kind = request.content_type
    if request.method != "DELETE" and kind != "application/json" and not kind.endswith("+json"):
      raise _Refused(
          415, "the body must be JSON: send it with the header Content-Type: application/json", "unsupported_media_type"
      )
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
      raise _Refused(415, "compressed bodies are not read", "content_encoding")
    length = request.client_max_size if request.content_length is None else request.content_length
    if length > request.client_max_size:
      raise web.HTTPRequestEntityTooLarge(request.client_max_size, length)
    return length

  async def _check_body(self, request: web.Request, length: int) -> int:
    """Reads it; returns its length."""
    try:
      async with asyncio.timeout(BODY_TIMEOUT_S + length / MIN_BODY_RATE):
        data = await request.read()
    except TimeoutError:
      raise _Refused(408, "the body came too slowly", "body_timeout", {"Connection": "close"}) from None
    deep, many = await aside(len(data), _shape, data) if len(data) >= LARGE else _shape(data)
    if deep:
      raise _Refused(400, f"the body nests deeper than {MAX_JSON_DEPTH} levels", "json_depth")
    if many is not None:
      raise _Refused(400, f"the body has {many}", "json_values")
    return len(data)


def _shape(data: bytes) -> tuple[bool, str | None]:
  return deeper_than(data, MAX_JSON_DEPTH), too_many_values(data, MAX_JSON_VALUES, MAX_JSON_ITEMS)


def _changes_node(request: web.Request) -> bool:
  """For others too: models and downloads, or whether there is a node at all."""
  if request.method in _SAFE_METHODS:
    return False
  resource = request.match_info.route.resource
  return request.method != "POST" or (resource is not None and resource.canonical.removeprefix("/v1") not in _ASKING)


def _host_of(header: str) -> str:
  """"[::1]:80" as "::1", "Name.:80" as "name"."""
  header = header.strip().lower()
  if header.startswith("["):
    return header[1:].partition("]")[0]
  return header.rpartition(":")[0].rstrip(".") if header.count(":") == 1 else header.rstrip(".")


def _key_of(request: web.Request) -> str | None:
  scheme, _, key = request.headers.get("Authorization", "").partition(" ")
  if scheme.lower() == "bearer" and key.strip():
    return key.strip()
  return request.headers.get("x-api-key") or None
