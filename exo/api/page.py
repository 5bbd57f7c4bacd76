"""The web page at `/`: static files of this package, and the headers that let nothing else into it."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from aiohttp import web

import exo

WEB_ROOT = Path(exo.__file__).parent / "web" / "static"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
# Trusted Types with no policy at all: a browser that knows them refuses every string where HTML or a script is expected
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class _File:
  plain: bytes
  zipped: bytes
  etag: str


@lru_cache(maxsize=64)
def _load(path: Path, changed_ns: int) -> _File:
  """Read once for each state of the file."""
  data = path.read_bytes()
  return _File(data, gzip.compress(data, 6, mtime=0), hashlib.sha256(data).hexdigest()[:16])


def _open(name: str) -> _File | None:
  path = WEB_ROOT / name
  if path.parent != WEB_ROOT or path.suffix not in _TYPES or not path.is_file():
    return None
  return _load(path, path.stat().st_mtime_ns)


async def page(request: web.Request) -> web.StreamResponse:
  """`/` and `/static/{name}`: compressed where the browser takes it, and not sent again where it has it."""
  name = request.match_info.get("name", "index.html")
  file = await asyncio.to_thread(_open, name)
  if file is None:
    raise web.HTTPNotFound
  headers = _HEADERS | {"ETag": f'"{file.etag}"', "Vary": "Accept-Encoding"}
  if any(tag.value == file.etag for tag in request.if_none_match or ()):
    return web.Response(status=304, headers=headers)
  body = file.plain
  if "gzip" in request.headers.get("Accept-Encoding", ""):
    body, headers["Content-Encoding"] = file.zipped, "gzip"
  return web.Response(body=body, content_type=_TYPES[Path(name).suffix], charset="utf-8", headers=headers)
