"""Whether there is a way to the hub now, for whoever wants to know before a model is asked for."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import aiohttp

from exo.certificates import trusting_context
from exo.download.hub import is_offline
from exo.errors import NetworkCauseError
from exo.network_causes import answered_by, lasting_cause, passing_cause, proxy_cause
from exo.proxies import proxy_for, shown

_PROXY_STATUS = (403, 407, 502, 503, 504)


@dataclass(frozen=True, slots=True)
class HubState:
  """`text` tells of it in words. `broken`: settings or what stands in the way must be mended; else it is there, or there is
  just no network.
  """
  reachable: bool
  broken: bool
  text: str


async def look_at_hub(timeout_s: float) -> HubState:
  """Asks for the hub's first page, as everything is asked for that is fetched. Never raises."""
  from huggingface_hub import constants
  url = constants.ENDPOINT
  if is_offline():
    return HubState(False, False, f"HF_HUB_OFFLINE is set: {url} is not asked")
  proxy = None
  try:
    proxy = proxy_for(url)
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    connector = aiohttp.TCPConnector(ssl=await asyncio.to_thread(trusting_context))
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
      async with session.head(url, allow_redirects=False, proxy=proxy) as response:
        status = response.status
  except (aiohttp.ClientError, OSError, TimeoutError, NetworkCauseError) as error:
    lasting = lasting_cause(error, url, proxy)
    return HubState(False, bool(lasting or proxy), lasting or passing_cause(error, url, proxy))
  if proxy is not None and status == 407:
    return HubState(False, True, proxy_cause(proxy, status))
  if status >= 500 or (proxy is not None and status in _PROXY_STATUS):
    return HubState(False, proxy is not None, f"{answered_by(url, proxy)} {status}")
  return HubState(True, False, f"{url} can be reached" + (f" through the proxy {shown(proxy)}" if proxy else ""))
