"""Tailscale discovery against a local server that plays its API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from exo import log
from exo.config import Config, config_from
from exo.errors import ConfigError
from exo.networking.mesh import PeerCandidate
from exo.networking.peer_messages import Hello
from exo.networking.tailscale import tailscale_discovery
from exo.networking.tailscale.tailscale_discovery import TailscaleDiscovery
from exo.topology.device_capabilities import DeviceCapabilities
from test.support.workers import dummy_offers

KEY = "tskey-api-secret"


class Tailnet:
  """Devices with attributes, as the real API tells of them."""
  def __init__(self) -> None:
    self.devices = {
        "n1": {"id": "n1", "hostname": "desk", "addresses": ["100.64.0.1", "fd7a::1"]},
        "n2": {"id": "n2", "hostname": "laptop", "addresses": ["fd7a::2", "100.64.0.2"]},
        "n3": {"id": "n3", "hostname": "printer", "addresses": ["100.64.0.3"]},
    }
    self.attributes: dict[str, dict[str, Any]] = {name: {"node:os": "linux"} for name in self.devices}
    self.status = 200

  def app(self) -> web.Application:
    app = web.Application(middlewares=[self._check])
    app.router.add_get("/api/v2/tailnet/{name}/devices", self._devices)
    app.router.add_get("/api/v2/device/{id}/attributes", self._get)
    app.router.add_post("/api/v2/device/{id}/attributes/{name}", self._set)
    return app

  @web.middleware
  async def _check(self, request: web.Request, handler: Any) -> web.StreamResponse:
    if request.headers.get("Authorization") != f"Bearer {KEY}":
      return web.json_response({"message": "unauthorized"}, status=401)
    if self.status != 200:
      return web.json_response({"message": "out of order"}, status=self.status)
    return await handler(request)

  async def _devices(self, request: web.Request) -> web.Response:
    if request.match_info["name"] != "home.example":
      return web.json_response({"message": "not found"}, status=404)
    return web.json_response({"devices": list(self.devices.values())})

  async def _get(self, request: web.Request) -> web.Response:
    return web.json_response({"attributes": self.attributes[request.match_info["id"]], "expiries": {}})

  async def _set(self, request: web.Request) -> web.Response:
    value = (await request.json())["value"]
    if not request.match_info["name"].startswith("custom:") or (isinstance(value, str) and len(value) > 50):
      return web.json_response({"message": "bad attribute"}, status=400)
    self.attributes[request.match_info["id"]][request.match_info["name"]] = value
    return web.json_response({})


@asynccontextmanager
async def tailnet() -> AsyncIterator[tuple[Tailnet, str]]:
  net = Tailnet()
  runner = web.AppRunner(net.app())
  await runner.setup()
  site = web.TCPSite(runner, "127.0.0.1", 0)
  await site.start()
  try:
    yield net, f"http://127.0.0.1:{runner.addresses[0][1]}"
  finally:
    await runner.cleanup()


def hello(node_id: str, port: int) -> Hello:
  return Hello(
      node_id, 1, port, DeviceCapabilities("Mac mini (2024)", "Apple M4 Pro", 65536), dummy_offers(65536, ("gpu0", )),
      "1"
  )


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
  monkeypatch.setattr(tailscale_discovery, "_LOOK_S", 0.05)
  heard: list[str] = []
  log.set_sink(heard.append)
  log.set_level(9)
  yield heard
  log.set_sink(None)
  log.set_level(0)


def test_nodes_announce_themselves_and_find_each_other(lines: list[str]) -> None:
  async def scenario() -> None:
    async with tailnet() as (net, url):
      found: dict[str, set[tuple[str, int]]] = {"desk": set(), "laptop": set()}
      nodes = []
      for i, name in enumerate(found):
        node = TailscaleDiscovery(KEY, "home.example", (), url, (f"100.64.0.{i + 1}", ))

        def offer(candidate: PeerCandidate, name: str = name) -> None:
          assert candidate.configured and candidate.interface == "tailscale"
          found[name].add((candidate.host, candidate.port))

        await node.start(hello(name, 50001 + i), offer)
        nodes.append(node)
      net.attributes["n3"] |= {"custom:exo_node_id": "odd", "custom:exo_node_port": "many"}
      net.status = 500  # for a while it is out of order
      await asyncio.sleep(0.2)
      net.status = 200
      await asyncio.sleep(0.4)
      assert any("HTTP 500" in text for text in nodes[0].refusals())
      assert any("printer has impossible exo attributes" in text for text in nodes[0].refusals())
      for node in nodes:
        await node.stop()
      assert found == {"desk": {("100.64.0.2", 50002)}, "laptop": {("100.64.0.1", 50001)}}
      assert net.attributes["n1"] | {
          "custom:exo_node_id": "desk", "custom:exo_node_port": 50001, "custom:exo_device_capability_memory": 65536,
          "custom:exo_device_capability_chip": "Apple_M4_Pro"
      } == net.attributes["n1"]

  asyncio.run(asyncio.wait_for(scenario(), 30))
  assert lines and not any(KEY in line for line in lines)


@pytest.mark.parametrize(("key", "name", "address", "reason"), [
    ("wrong", "home.example", "100.64.0.1", "refuses the API key"),
    (KEY, "nowhere", "100.64.0.1", "no network 'nowhere'"),
    (KEY, "home.example", "10.0.0.9", "tailscale up"),
])
def test_what_is_wrong_is_said_at_the_start(lines: list[str], key: str, name: str, address: str, reason: str) -> None:
  async def scenario() -> None:
    async with tailnet() as (_, url):
      with pytest.raises(ConfigError, match=reason) as caught:
        await TailscaleDiscovery(key, name, (), url, (address, )).start(hello("a", 50000), lambda _: None)
      assert key not in str(caught.value)

  asyncio.run(asyncio.wait_for(scenario(), 30))


def test_the_key_is_in_no_representation_of_the_configuration() -> None:
  with pytest.raises(ConfigError, match="--tailscale-api-key KEY and --tailnet-name NAME"):
    config_from({"discovery_module": "tailscale"}, {})
  assert KEY not in repr(Config(tailscale_api_key=KEY)) + repr(TailscaleDiscovery(KEY, "n")._api)
