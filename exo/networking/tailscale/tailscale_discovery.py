"""Discovery through Tailscale: every node writes its id and port into its device's attributes and reads the others'."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from exo.errors import ConfigError, DiscoveryError
from exo.log import say
from exo.networking.discovery import Discovery
from exo.networking.mesh import PeerCandidate
from exo.networking.peer_messages import Hello
from exo.networking.refusals import Refusals
from exo.networking.tailscale.tailscale_api import API_URL, Device, TailscaleApi
from exo.networking.udp.interfaces import list_interfaces
from exo.tasks import TaskOwner

_LOOK_S = 10.0
_PREFIX = "custom:exo_"


class TailscaleDiscovery(Discovery):
  """`device_addresses` are this machine's; None asks its interfaces."""
  def __init__(
      self,
      key: str,
      tailnet: str,
      node_ids: tuple[str, ...] = (),
      url: str = API_URL,
      device_addresses: tuple[str, ...] | None = None
  ) -> None:
    self._api = TailscaleApi(key, tailnet, url)
    self._node_ids, self._addresses = node_ids, device_addresses
    self._tasks = TaskOwner("tailscale discovery")
    self._refusals = Refusals()
    self._announced = False

  async def start(self, local: Hello, offer: Callable[[PeerCandidate], None]) -> None:
    await self._api.__aenter__()
    try:
      devices = await self._api.devices()
      await self._announce(local, devices)
    except ConfigError:
      await self._api.__aexit__(None, None, None)
      raise
    except DiscoveryError as error:
      say(f"{error}; trying again")
    self._tasks.spawn(self._look(local, offer), "look")

  async def stop(self) -> None:
    await self._tasks.close()
    await self._api.__aexit__(None, None, None)

  def refusals(self) -> Sequence[str]:
    return self._refusals.texts()

  def problems(self) -> Sequence[str]:
    return self._refusals.problems()

  def _own(self, devices: list[Device]) -> Device | None:
    mine = set(self._addresses or (interface.address for interface in list_interfaces()))
    return next((device for device in devices if mine & set(device.addresses)), None)

  async def _announce(self, local: Hello, devices: list[Device]) -> None:
    own = await asyncio.to_thread(self._own, devices)
    if own is None:
      raise ConfigError("this machine is no device of that Tailscale network: run `tailscale up` first")
    c = local.capabilities
    values: dict[str, str | int] = {
        "node_id": local.node_id.replace("-", "_"),
        "node_port": local.port,
        "device_capability_chip": _plain(c.chip),
        "device_capability_model": _plain(c.model),
        "device_capability_memory": c.memory,
        "device_capability_flops_fp16": str(c.flops.fp16),
        "device_capability_flops_fp32": str(c.flops.fp32),
        "device_capability_flops_int8": str(c.flops.int8),
    }
    for name, value in values.items():
      await self._api.set_attribute(own.device_id, f"{_PREFIX}{name}", value)
    self._announced = True

  async def _look(self, local: Hello, offer: Callable[[PeerCandidate], None]) -> None:
    while True:
      try:
        devices = await self._api.devices()
        if not self._announced:
          await self._announce(local, devices)
        own = await asyncio.to_thread(self._own, devices)
        for device in devices:
          if own is None or device.device_id != own.device_id:
            await self._offer(device, offer)
      except (ConfigError, DiscoveryError) as error:
        self._refusals.note(str(error), wrong=True, loud=True)
      await asyncio.sleep(_LOOK_S)

  async def _offer(self, device: Device, offer: Callable[[PeerCandidate], None]) -> None:
    attributes = await self._api.attributes(device.device_id)
    node_id, port = attributes.get(f"{_PREFIX}node_id"), attributes.get(f"{_PREFIX}node_port")
    if node_id is None and port is None:
      return  # not a node
    digits = str(port)
    number = int(digits) if digits.isascii() and digits.isdigit() else 0
    if not isinstance(node_id, str) or not 1024 <= number <= 65535:
      self._refusals.note(f"{device.hostname} has impossible exo attributes: id {node_id!r}, port {port!r}", wrong=True)
      return
    if self._node_ids and node_id not in {n.replace("-", "_") for n in self._node_ids}:
      self._refusals.note(f"{device.hostname} ({node_id}) is not in --node-id-filter")
      return
    if device.addresses:
      # the attribute cannot hold every character of an id, so the address alone counts and the node says who it is
      address = min(device.addresses, key=lambda a: ":" in a)
      offer(PeerCandidate("", address, number, 1, "tailscale", configured=True))


def _plain(text: str) -> str:
  """What an attribute may hold: letters, digits, '_' and '.', at most 50 of them."""
  return "".join(c if c.isascii() and (c.isalnum() or c in "_.") else "_" for c in text)[:50] or "_"
