"""What a request must pass before a handler sees it: name asked for, origin, key, and a body that is read here."""

from __future__ import annotations

import hmac
import math
from dataclasses import replace

from aiohttp import web

from exo.api.body_room import BodyRoom
from exo.api.caller import Caller, Labels, TrustedProxies, note_caller
from exo.api.errors import Refused, body, in_form, json_response
from exo.api.failure_brake import MAX_DELAY_S, FailureBrake
from exo.api.handlers import Handler
from exo.api.host_rule import HostRule, host_of
from exo.api.keys import ApiKeys
from exo.api.request_body import body_length, check_body
from exo.config import Config
from exo.log import log
from exo.networking.address_rule import parse_address
from exo.origins import AllowedOrigins, is_same

_HEALTH = ("/health", "/healthcheck")
_OPEN_PATHS = (*_HEALTH, "/", "/favicon.ico")
_OPEN_PREFIXES = ("/static/", )
# what one may ask without changing the node for others; a POST of any other route is for admins
_ASKING = frozenset((
    "/chat/completions", "/completions", "/chat/token/encode", "/embeddings", "/responses", "/messages",
    "/messages/count_tokens", "/cancel/{id}", "/api/chat", "/api/generate", "/api/show", "/api/embed",
    "/api/embeddings", "/rerank", "/v2/rerank", "/score", "/infill", "/tokenize", "/detokenize", "/apply-template",
    "/responses/input_tokens", "/responses/compact", "/responses/{id}/cancel", "/conversations", "/conversations/{id}",
    "/conversations/{id}/items", "/documents/text"
))
# what is kept for a client, who may delete it
_OWN = frozenset(("/responses/{id}", "/conversations/{id}", "/conversations/{id}/items/{item}"))
_WANTS_KEY = {"WWW-Authenticate": 'Bearer realm="exo"'}
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class Guard:
  """One node's rules. `local_token` is the secret of its runtime file, which stands for any key on this machine."""
  def __init__(self, config: Config, keys: ApiKeys, local_token: str, label_salt: bytes) -> None:
    self.keys = keys
    self._local_token = local_token
    self._brake = FailureBrake()
    self._labels = Labels(label_salt)
    self._proxies = TrustedProxies(config.trusted_proxies)
    self._shared_prefixes = config.shared_prefixes
    self._origins = AllowedOrigins(config.cors_origins)
    self._hosts = HostRule(config.api_allowed_hosts, config.chatgpt_api_host)
    self._bodies = BodyRoom()

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
      if request.method in _SAFE_METHODS or request.match_info.http_exception is not None:  # which no body changes
        return await handler(request)
      length = body_length(request, asks=_asks(request))
      with self._bodies.hold(length) as settle:
        settle(await check_body(request, length))
        return await handler(request)
    except Refused as refused:
      log(1, "%s %s of %s: %d, %s", request.method, request.path, request.remote, refused.status, refused)
      kind = {401: "authentication_error", 429: "rate_limit_error"}.get(refused.status, "invalid_request_error")
      value = body(refused.message, kind, None, refused.code)
      return json_response(in_form(request, value, refused.status), refused.status, refused.headers)

  async def add_cors_headers(self, request: web.Request, response: web.StreamResponse) -> None:
    """For `on_response_prepare`: an origin that was allowed may read the answer, nobody else."""
    origin = request.headers.get("Origin", "")
    if origin and self._allows(origin):
      response.headers["Access-Control-Allow-Origin"] = origin
      response.headers.add("Vary", "Origin")
      response.headers["Access-Control-Expose-Headers"
                       ] = "x-request-id, retry-after, x-exo-exact, x-exo-ignored-tools, x-exo-relaxed"

  # where it was asked for

  def _check_host(self, request: web.Request) -> None:
    header = request.headers.get("Host", "")
    if self._hosts.allows(header, parse_address(request.remote or "")) or (not header and request.path in _HEALTH):
      return
    raise Refused(
        403,
        f"this node does not answer to the name {host_of(header)[:100]!r}: start it with --api-allowed-host NAME to allow it",
        "host_not_allowed"
    )

  # who asks

  def _allows(self, origin: str) -> bool:
    return self._origins.allows(origin, keyed=self.keys.required)

  def _preflight(self, request: web.Request) -> web.Response:
    origin = request.headers.get("Origin", "")
    if not self._allows(origin):
      raise Refused(403, self._origins.refusal(origin), "origin_not_allowed")
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
    if request.method in _SAFE_METHODS or origin is None or self._allows(origin):
      return
    if not is_same(origin, self._proxies.host_of(request)):
      raise Refused(403, self._origins.refusal(origin), "origin_not_allowed")

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
      raise Refused(401, "this node wants an API key: Authorization: Bearer KEY", "invalid_api_key", _WANTS_KEY)
    key = self.keys.find(given)
    if key is None or self.keys.is_guessable(key):
      # until here both are alike, so that nothing is learnt by trying many at once
      if not await self._brake.admit(address, "" if key is None else key.sha256):
        text = "too many wrong API keys came from this address: try again in a moment"
        raise Refused(429, text, "too_many_wrong_keys", {"Retry-After": str(math.ceil(MAX_DELAY_S))})
      if key is None:
        await self._brake.failed(address)
        raise Refused(401, "this is no API key of this node", "invalid_api_key", _WANTS_KEY)
      self._brake.succeeded(address, key.sha256)
    return replace(self._keyed(key.sha256, key.role == "admin"), key=key.sha256)

  def _keyed(self, identity: str, is_admin: bool) -> Caller:
    label = self._labels.of_key(identity)
    return Caller(label, is_admin, "" if self._shared_prefixes else label, is_admin)

  def _refuse_change(self, request: web.Request) -> None:
    if self.keys.required:
      raise Refused(403, f"{request.method} {request.path} is for admins: this API key has the role user", "admin_only")
    raise Refused(
        403, f"without an API key, {request.path} is for the same machine only (`exo key api new`)", "local_only"
    )

  def _is_local(self, request: web.Request) -> bool:
    """From this machine itself, and not handed on by a proxy that runs here."""
    address = parse_address(request.remote or "")
    forwarded = any(name in request.headers for name in ("X-Forwarded-For", "Forwarded", "X-Real-IP", "Via"))
    return address is not None and not forwarded and self._hosts.is_own(address)


def _changes_node(request: web.Request) -> bool:
  """For others too: models and downloads, or whether there is a node at all."""
  if request.method in _SAFE_METHODS or _is_own(request):
    return False
  return request.method != "POST" or (request.match_info.route.resource is not None and not _asks(request))


def _asks(request: web.Request) -> bool:
  resource = request.match_info.route.resource
  return request.method == "POST" and resource is not None and resource.canonical.removeprefix("/v1") in _ASKING


def _is_own(request: web.Request) -> bool:
  """To delete it changes nothing for others."""
  resource = request.match_info.route.resource
  return request.method == "DELETE" and resource is not None and resource.canonical.removeprefix("/v1") in _OWN


def _key_of(request: web.Request) -> str | None:
  scheme, _, key = request.headers.get("Authorization", "").partition(" ")
  if scheme.lower() == "bearer" and key.strip():
    return key.strip()
  return request.headers.get("x-api-key") or None
