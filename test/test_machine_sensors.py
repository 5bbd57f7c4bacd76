"""Issue 22, line 10: temperature and power where the system tells them, and what goes over links, told around the ring."""

from __future__ import annotations

import time
from pathlib import Path

from exo.machine_sensors import Sensed, Sensors
from exo.networking.grpc.codec import decode, encode
from exo.networking.messages import Heartbeat
from exo.networking.peer_messages import PeerLink
from test.support.nodes import ring, wait_until


def write(root: Path, name: str, value: object) -> None:
  path = root / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f"{value}\n")


def test_22_line_10_the_hottest_sensor_and_a_draining_battery(tmp_path: Path) -> None:
  write(tmp_path, "hwmon/hwmon0/temp1_input", 41_500)
  write(tmp_path, "hwmon/hwmon1/temp2_input", 63_250)
  write(tmp_path, "hwmon/hwmon1/temp3_input", 6_553_500)  # a sensor that is not connected
  write(tmp_path, "thermal/thermal_zone0/temp", "what")
  assert Sensors(tmp_path).read() == Sensed(63.2, 0.0)
  write(tmp_path, "hwmon/hwmon2/power1_average", 45_000_000)
  assert Sensors(tmp_path).read().power_w == 45
  write(tmp_path, "power_supply/BAT0/status", "Discharging")
  write(tmp_path, "power_supply/BAT0/power_now", 12_340_000)
  assert Sensors(tmp_path).read().power_w == 12.3
  assert Sensors(tmp_path / "none").read() == Sensed()


def test_22_line_10_the_processors_counters_give_watts(tmp_path: Path) -> None:
  sensors = Sensors(tmp_path)
  write(tmp_path, "powercap/intel-rapl:0/energy_uj", 5_000_000)
  write(tmp_path, "powercap/intel-rapl:0:0/energy_uj", 10**15)  # a part of the one above
  assert sensors.read().power_w == 0
  time.sleep(0.05)
  write(tmp_path, "powercap/intel-rapl:0/energy_uj", 6_000_000)
  assert 0 < sensors.read().power_w <= 20.1
  write(tmp_path, "powercap/intel-rapl:0/energy_uj", 1_000_000)  # it begins anew
  assert sensors.read().power_w == 0


def test_22_line_10_heartbeats_tell_of_them() -> None:
  beat = Heartbeat(7, links=(PeerLink("a", 1.5, "eth0", 2e6), ), temperature_c=63.2, power_w=45.0)
  assert decode(encode(beat))[0] == beat


def test_22_line_10_the_streams_picture_says_what_goes_over_a_link(tmp_path: Path) -> None:
  import json
  import urllib.request
  with ring(tmp_path, 2, "--inference-engine", "dummy", "--default-model", "dummy") as (one, _):

    def rate() -> float:
      one.chat("count", max_tokens=300, ignore_eos=True)
      with urllib.request.urlopen(f"{one.url}/v1/topology/stream", timeout=10) as response:
        line = next(line for line in response if line.startswith(b"data: "))
      state = json.loads(line[6:])
      assert {"temperature_c", "power_w"} <= set(state["nodes"]["node1"])
      return float(state["links"][0]["bytes_per_s"])

    wait_until(lambda: rate() > 0, 30, "data on the link")
