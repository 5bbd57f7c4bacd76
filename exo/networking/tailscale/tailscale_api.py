"""The two parts of Tailscale's HTTP API that discovery needs: the devices of a network, and their posture attributes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from urllib.parse import quote

import aiohttp
import msgspec

from exo.certificates import trusting_context
from exo.errors import ConfigError, DiscoveryError
from exo.network_causes import lasting_cause, passing_cause, proxy_cause
from exo.proxies import proxy_for

API_URL = "https://api.tailscale.com"
_TIMEOUT_S = 10.0
_MAX_BYTES = 8 * 2**20


class _Device(msgspec.Struct, frozen=True):
  id: str = ""
  hostname: str = ""
  addresses: list[str] = []
  lastSeen: str = ""


class _Devices(msgspec.Struct, frozen=True):
  devices: list[_Device] = []


class _Attributes(msgspec.Struct, frozen=True):
  attributes: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Device:
  """A machine of the network, reachable at any of `addresses`."""
  device_id: str
  hostname: str
  addresses: tuple[str, ...]


@dataclass
class TailscaleApi:
  """Use as an async context manager. No error of it and nothing that it logs holds the key.

  Raises `ConfigError` where the key or the network is refused for good, `DiscoveryError` for what may pass.
  """
  key: str = field(repr=False)
  tailnet: str
  url: str = API_URL

  async def __aenter__(self) -> TailscaleApi:
    self._proxy = proxy_for(self.url)
    self._session = aiohttp.ClientSession(
        self.url,
        headers={"Authorization": f"Bearer {self.key}"},
        timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S),
        connector=aiohttp.TCPConnector(ssl=await asyncio.to_thread(trusting_context)),
    )
    return self

  async def __aexit__(
      self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
  ) -> None:
    await self._session.close()

  async def devices(self) -> list[Device]:
    found = await self._get(f"/api/v2/tailnet/{quote(self.tailnet, safe='')}/devices", _Devices)
    return [Device(d.id, d.hostname, tuple(d.addresses)) for d in found.devices]

  async def attributes(self, device_id: str) -> dict[str, Any]:
    """A device's posture attributes by their full names, such as `custom:exo_node_id`."""
    path = f"/api/v2/device/{quote(device_id, safe='')}/attributes"
    found: _Attributes = await self._get(path, _Attributes)
    return found.attributes

  async def set_attribute(self, device_id: str, name: str, value: str | int) -> None:
    path = f"/api/v2/device/{quote(device_id, safe='')}/attributes/{name}"
    try:
      async with self._session.post(path, json={"value": value}, allow_redirects=False, proxy=self._proxy) as response:
        self._check(response.status)
    except (aiohttp.ClientError, TimeoutError) as error:
      raise self._unanswered(error) from None

  async def _get(self, path: str, kind: type[Any]) -> Any:
    try:
      async with self._session.get(path, allow_redirects=False, proxy=self._proxy) as response:
        self._check(response.status)
        body = await response.content.read(_MAX_BYTES)
        return msgspec.json.decode(body, type=kind)
    except (aiohttp.ClientError, TimeoutError) as error:
      raise self._unanswered(error) from None
    except msgspec.MsgspecError as error:
      raise DiscoveryError(f"Tailscale's API gave an answer of another shape: {error}") from None

  def _unanswered(self, error: Exception) -> DiscoveryError:
    why = lasting_cause(error, self.url, self._proxy) or passing_cause(error, self.url, self._proxy)
    return DiscoveryError(f"Tailscale's API does not answer: {why}")

  def _check(self, status: int) -> None:
    if status == 407 and self._proxy is not None:
      raise DiscoveryError(f"Tailscale's API does not answer: {proxy_cause(self._proxy, status)}")
    if status in (401, 403):
      raise ConfigError(
          f"Tailscale refuses the API key (HTTP {status}): make one with access to devices and posture attributes, and "
          "give it as --tailscale-api-key"
      )
    if status == 404:
      raise ConfigError(f"Tailscale knows no network {self.tailnet!r}: --tailnet-name is its name in the admin console")
    if status != 200:
      raise DiscoveryError(f"Tailscale's API answered HTTP {status}")
