"""Ranges of a repository's files over HTTP: resumed after a break, checked against what was asked for, never appended to.

`huggingface_hub` decides addresses and headers; the bytes are read here with aiohttp, because the library fetches whole
files only, and in threads.
"""

from __future__ import annotations

import asyncio
import netrc
import re
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from urllib.parse import urljoin, urlsplit

import aiohttp

from exo.certificates import trusting_context
from exo.download.disk_threads import in_thread
from exo.download.hub import HubUnreachableError, is_offline, refused, unasked, unreachable
from exo.download.manifest import Manifest, RepoFile
from exo.download.rate_limit import RateLimit
from exo.download.retry import Attempts, RetryPolicy, Transient, retry_after_s
from exo.errors import DownloadError, NetworkCauseError
from exo.network_causes import answered_by, proxy_cause
from exo.proxies import proxy_for

_FLUSH_BYTES = 1 << 21
_READ_AHEAD_BYTES = 1 << 20
_MAX_REDIRECTS = 5
_AWAY_S = 60.0
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")

Sink = Callable[[int, bytes], Awaitable[None]]


class RangesIgnored(Exception):
  """The server answers a range with the whole file."""


class HubFetcher:
  """Fetches spans of files, at most `parallel` at once, with the user's token or without one. Close it when done."""
  def __init__(self, policy: RetryPolicy, limit: RateLimit, parallel: int, *, with_token: bool = True) -> None:
    self._with_token = with_token
    self._policy, self._limit = policy, limit
    self._slots = asyncio.Semaphore(parallel)
    self._parallel = parallel
    self._session: aiohttp.ClientSession | None = None
    self._opening = asyncio.Lock()
    self._resolved: dict[str, str] = {}
    self._away_at = float("-inf")

  @property
  def is_away(self) -> bool:
    """Whether the hub could not be reached a moment ago, so that what can do without it need not wait for it."""
    return is_offline() or time.monotonic() - self._away_at < _AWAY_S

  def note_away(self) -> None:
    self._away_at = time.monotonic()

  async def close(self) -> None:
    if self._session is not None:
      await self._session.close()
      self._session = None

  async def fetch(self, manifest: Manifest, file: RepoFile, start: int, end: int, block: int, sink: Sink) -> None:
    """Give bytes [start, end) to `sink` in order, in pieces of whole blocks (the file's last one may be shorter).

    Raises `DownloadError` (final, with what to do), `HubUnreachableError`, `RangesIgnored` when the server sends the
    whole file instead.
    """
    attempts, at = Attempts(self._policy), start
    while at < end:
      before = at
      try:
        async with self._slots, self._opened(manifest, file, at, end) as response:
          async for piece in self._pieces(response, end - at, block):
            await sink(at, piece)
            at += len(piece)
            await self._limit.take(len(piece))
      except Transient as error:
        if at > before:
          attempts.progress()
        if not await attempts.failed(error):
          raise self._given_up(file, error) from error

  async def fetch_whole(self, manifest: Manifest, file: RepoFile, block: int, sink: Sink) -> None:
    """The whole file from its beginning, for servers that know no ranges; a break starts it anew."""
    attempts = Attempts(self._policy)
    while True:
      try:
        async with self._slots, self._opened(manifest, file, None, file.size) as response:
          at = 0
          async for piece in self._pieces(response, file.size, block):
            await sink(at, piece)
            at += len(piece)
            await self._limit.take(len(piece))
          return
      except Transient as error:
        if not await attempts.failed(error):
          raise self._given_up(file, error) from error

  def _given_up(self, file: RepoFile, error: Transient) -> DownloadError:
    text = f"{file.name} could not be fetched after {self._policy.attempts} attempts: {error}. What came is kept."
    if error.connection:
      self.note_away()
      return HubUnreachableError(f"{file.name} could not be fetched: {error}. Check the network and HF_ENDPOINT")
    return DownloadError(text)

  async def _pieces(self, response: aiohttp.ClientResponse, wanted: int, block: int) -> AsyncIterator[bytes]:
    """The body in whole blocks of about 2 MiB. Raises `Transient` when it breaks off or stalls."""
    held: list[bytes] = []
    size, got = 0, 0
    flush = max(_FLUSH_BYTES // block, 1) * block
    try:
      async for data in response.content.iter_any():
        held.append(data)
        size += len(data)
        got += len(data)
        if got > wanted:
          raise DownloadError("the server sends more than was asked for")
        if size >= flush and got < wanted:
          whole = size // block * block
          joined = b"".join(held)
          yield joined[:whole]
          held, size = [joined[whole:]], size - whole
    except TimeoutError as error:
      raise Transient(f"nothing came for {self._policy.stall_s:g} s") from error
    except (aiohttp.ClientError, ConnectionError, OSError) as error:
      raise Transient(f"the connection broke ({type(error).__name__})") from error
    if got < wanted:
      if whole := size // block * block:
        yield b"".join(held)[:whole]
      raise Transient(f"the server closed after {got} of {wanted} bytes")
    yield b"".join(held)

  @asynccontextmanager
  async def _opened(self, manifest: Manifest, file: RepoFile, start: int | None,
                    end: int) -> AsyncIterator[aiohttp.ClientResponse]:
    """The response to a request for [start, end), checked; `start` None asks for the file without a range."""
    from huggingface_hub import hf_hub_url
    if is_offline():
      raise HubUnreachableError(f"{file.name} is not on this machine, nor in its ring, and HF_HUB_OFFLINE is set")
    session = await self._open_session()
    origin = hf_hub_url(manifest.source, file.name, revision=manifest.revision)
    url = self._resolved.get(origin, origin)
    headers = {"Accept-Encoding": "identity"}
    if start is not None and not (start == 0 and end == file.size):
      headers["Range"] = f"bytes={start}-{end - 1}"
    for _ in range(_MAX_REDIRECTS + 1):
      try:
        identified, proxy = headers | await in_thread(_headers, origin, url, self._with_token), proxy_for(url)
        response = await session.get(url, headers=identified, allow_redirects=False, proxy=proxy)
      except (aiohttp.ClientError, ConnectionError, TimeoutError, OSError, NetworkCauseError) as error:
        failure = unreachable(error, url)
        if not isinstance(failure, Transient):
          self.note_away()
        raise failure from error
      async with response:
        if response.status in (301, 302, 303, 307, 308) and (target := response.headers.get("Location")):
          url = self._redirect(url, target)
          continue
        if response.status in (401, 403) and url != origin:  # a signed address may have expired
          self._resolved.pop(origin, None)
          raise Transient(f"{urlsplit(url).netloc} answers {response.status}")
        self._check(response, manifest, file, "Range" in headers, start or 0, end, proxy)
        if url != origin:
          self._resolved[origin] = url
        yield response
        return
    raise DownloadError(f"{file.name}: the hub redirects without end")

  @staticmethod
  def _redirect(url: str, target: str) -> str:
    following = urljoin(url, target)
    schemes = urlsplit(url).scheme, urlsplit(following).scheme
    if schemes[1] not in ("http", "https") or schemes == ("https", "http"):
      raise DownloadError(f"the hub redirects to {urlsplit(following).scheme}://, which exo does not follow")
    return following

  def _check(
      self, response: aiohttp.ClientResponse, manifest: Manifest, file: RepoFile, ranged: bool, start: int, end: int,
      proxy: str | None
  ) -> None:
    """Raises unless the response is exactly the bytes that were asked for."""
    status, repo = response.status, manifest.source
    if status == 407 and proxy is not None:
      raise HubUnreachableError(proxy_cause(proxy, status))
    if status in (401, 403):
      from huggingface_hub import constants
      if not self._with_token:
        raise unasked(repo)
      raise refused(repo, constants.ENDPOINT, gated=response.headers.get("X-Error-Code") == "GatedRepo", proxy=proxy)
    if status == 404:
      raise DownloadError(f"{repo} has no file {file.name} (any more) at revision {manifest.revision[:12]}")
    if status == 429 or status >= 500:
      raise Transient(f"{answered_by('the hub', proxy)} {status}", retry_after_s(response.headers.get("Retry-After")))
    if ranged and status == 200:
      raise RangesIgnored
    if status != (206 if ranged else 200):
      raise DownloadError(f"the hub answers {status} for {file.name}, which cannot be used")
    if ranged:
      match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
      if match is None or tuple(map(int, match.groups())) != (start, end - 1, file.size):
        raise DownloadError(f"{file.name}: the server sends another range than was asked for")
    elif response.content_length is not None and response.content_length != file.size:
      raise DownloadError(
          f"{file.name} has {response.content_length} bytes there, but {file.size} in {repo}: the mirror is not up to date"
      )

  async def _open_session(self) -> aiohttp.ClientSession:
    async with self._opening:
      if self._session is None:
        self._session = self._new_session(await in_thread(trusting_context))
      return self._session

  def _new_session(self, context: ssl.SSLContext) -> aiohttp.ClientSession:
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._policy.connect_s, sock_read=self._policy.stall_s)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=self._parallel, ssl=context),
        timeout=timeout,
        auto_decompress=False,
        read_bufsize=_READ_AHEAD_BYTES,
        cookie_jar=aiohttp.DummyCookieJar()
    )


def _headers(origin: str, url: str, with_token: bool) -> dict[str, str]:
  """The library's user agent and the user's token, which no other host than the hub's own gets. May read files."""
  from huggingface_hub.utils import build_hf_headers
  here, there = urlsplit(origin), urlsplit(url)
  same = (here.scheme, here.netloc) == (there.scheme, there.netloc)
  headers: dict[str, str] = build_hf_headers(library_name="exo", token=None if same and with_token else False)
  if same and with_token and "authorization" not in headers:
    headers |= _netrc_headers(there.hostname or "")
  return headers


def _netrc_headers(host: str) -> dict[str, str]:
  """What the user's netrc has for a server, as for mirrors that want a password."""
  try:
    known = netrc.netrc().authenticators(host)
  except (OSError, netrc.NetrcParseError):
    return {}
  return {} if known is None else {"authorization": aiohttp.BasicAuth(known[0], known[2]).encode()}
